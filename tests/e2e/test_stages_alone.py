"""Each stage by itself, on files of a user's own and without a recipe; and what `--dry-run` knows of it beforehand."""

import json
import random

import pytest
import torch
from own_files import FEW_PROMPTS, LEARN, as_messages, asked, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from chatpipe.data.chat_template import encode_conversation, encode_prompt
from chatpipe.data.documents import RawText, sample_texts
from chatpipe.data.encoding import Encoder
from chatpipe.data.text_blocks import ValidationText
from chatpipe.evaluation.text import text_loss
from chatpipe.recipe.schema import DataBlock

STAGES = ("pretrain", "sft", "rm", "ppo")
TINY = (
    "pretrain.architecture={n_layer: 1, n_head: 2, n_embd: 32, n_positions: 64}",
    "pretrain.tokenizer.vocab_size=300",
    "pretrain.block_size=32",
    "pretrain.batch_size=8",
    "pretrain.learning_rate=3e-3",
    "pretrain.max_steps=40",
)


# ---- sft, rm and ppo on jsonl files ----


def test_each_stage_reports_what_it_made(own):
    for stage, told in own.results.items():
        assert told["stage"] == stage
        assert told["out"] == str(own.file(stage))
        assert told["skipped"] is False
        assert json.loads((own.file(stage) / "chatpipe.json").read_text())["verdict"] == told["verdict"]
        assert not (own.file(stage) / "recipe.yaml").exists()


def test_sft_teaches_the_answers_of_the_file(own):
    model = AutoModelForCausalLM.from_pretrained(own.file("sft"))
    tokenizer = AutoTokenizer.from_pretrained(own.file("sft"))
    right = 0
    for one in asked()[:40]:
        ids = encode_prompt(tokenizer, [{"role": "user", "content": one.question}])
        answer = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
        right += tokenizer.decode(answer, skip_special_tokens=True).strip() == one.right and answer[-1].item() == (
            tokenizer.eos_token_id
        )
    assert right >= 32


def test_rm_scores_the_chosen_answers_higher(own):
    model = AutoModelForSequenceClassification.from_pretrained(own.file("rm"))
    tokenizer = AutoTokenizer.from_pretrained(own.file("rm"))
    rows = asked()[:60]

    def score(question, answer):
        ids, _ = encode_conversation(tokenizer, as_messages(question, answer)["messages"])
        with torch.no_grad():
            return model(torch.tensor([ids])).logits.item()

    right = sum(score(one.question, one.right) > score(one.question, one.wrong) for one in rows)
    assert right >= 54
    assert own.results["rm"]["metrics"]["eval_accuracy"] >= 0.8


def test_ppo_without_an_oracle_names_the_scorer(own):
    reasons = own.results["ppo"]["verdict"]["reasons"]
    assert any(reason.startswith("Only the reward model scored this:") for reason in reasons)
    assert "oracle_score" not in own.results["ppo"]["metrics"]


# ---- pretraining on a text file ----


@pytest.fixture(scope="module")
def base(tmp_path_factory, chatpipe):
    """A base model from a text file: the folder of both, and what was said."""
    folder = tmp_path_factory.mktemp("base")
    rng = random.Random(0)
    text = "\n".join(f"{one.question} {one.right}" for one in rng.choices(asked(), k=600))
    (folder / "a.txt").write_text(text + "\n")
    command = ("pretrain", "--data", folder / "a.txt", "--out", folder / "base", *TINY, "--json")
    return folder, command, chatpipe(*command).object


def test_pretrain_on_a_text_file(base):
    folder, _, told = base
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    assert model.num_parameters() == told["metrics"]["parameters"]
    assert len(tokenizer) <= 300
    assert told["metrics"]["bits_per_byte"] < 0.8 * told["metrics"]["untrained_bits_per_byte"]


def test_pretraining_continues_from_a_model(base, tmp_path, chatpipe):
    folder, _, told = base
    more = ("pretrain", "--model", folder / "base", "--data", folder / "a.txt", "--out", tmp_path / "more")
    further = chatpipe(*more, *TINY, "--json").object["metrics"]
    assert further["bits_per_byte_before"] == pytest.approx(told["metrics"]["bits_per_byte"], rel=1e-6)
    assert further["bits_per_byte"] < told["metrics"]["bits_per_byte"]
    assert (tmp_path / "more" / "tokenizer.json").read_bytes() == (folder / "base" / "tokenizer.json").read_bytes()


def test_the_same_command_again_skips(base, chatpipe):
    _, command, told = base
    assert chatpipe(*command).object == {**told, "skipped": True}


def test_a_changed_key_is_refused_with_its_name(base, chatpipe, listing):
    folder, command, _ = base
    before = listing(folder)
    said = chatpipe(*command, "pretrain.learning_rate=1e-3")
    assert said.code == 2
    assert "base holds another pretrain:\npretrain.learning_rate was 0.003, is 0.001 now\n" in said.err
    assert "--fresh" in said.err
    assert listing(folder) == before


def test_a_changed_data_file_is_refused_with_its_name(base, chatpipe):
    folder, command, told = base
    file = folder / "a.txt"
    text = file.read_text()
    file.write_text(text + "One more line.\n")
    said = chatpipe(*command)
    file.write_text(text)
    assert said.code == 2
    assert f"pretrain.data ({file}) was " in said.err
    assert chatpipe(*command).object["skipped"]


def test_a_changed_parent_is_refused(base, own, tiny_run, chatpipe):
    folder, _, _ = base
    command = ("sft", "--data", own.file("chats.jsonl"), "--out", own.file("sft"), *LEARN["sft"])
    assert chatpipe(*command, "--model", tiny_run.folder / "pretrain", *FEW_PROMPTS, "--json").object["skipped"]
    said = chatpipe(*command, "--model", folder / "base", *FEW_PROMPTS)
    assert said.code == 2
    assert "the model given as sft.model was " in said.err


def test_fresh_makes_a_stage_again_with_other_values(base, chatpipe, tmp_path):
    folder, _, _ = base
    command = ("pretrain", "--data", folder / "a.txt", "--out", tmp_path / "b", *TINY, "pretrain.max_steps=2")
    assert chatpipe(*command).code == 0
    assert chatpipe(*command, "pretrain.learning_rate=1e-3").code == 2
    assert chatpipe(*command, "pretrain.learning_rate=1e-3", "--fresh", "--json").object["skipped"] is False
    assert json.loads((tmp_path / "b" / "chatpipe.json").read_text())["settings"]["pretrain.learning_rate"] == 1e-3


# ---- sft: other formats, raw text, long conversations ----


def test_alpaca_rows_and_long_conversations(base, tmp_path, chatpipe):
    """A conversation that is too long loses its oldest turns; one whose last is too long is left out and counted."""
    folder, _, _ = base
    rows = [{"instruction": one.question, "input": "", "output": one.right} for one in asked()[:60]]
    rows += [{"instruction": f"{number} " + "word " * 80, "input": "", "output": "Long."} for number in range(10)]
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(json.dumps(rows))
    turns = as_messages("Hello " * 40, "Hello.")["messages"]
    old = write_rows(
        tmp_path / "turns.jsonl",
        [{"messages": turns + as_messages(one.question, one.right)["messages"]} for one in asked()[60:120]],
    )
    out = tmp_path / "chat"
    command = ("sft", "--model", folder / "base", "--data", f"{alpaca},{old}", "--out", out, "sft.max_length=64")
    said = chatpipe(*command, "evaluation.prompts=10", "evaluation.max_new_tokens=8", "--json")
    metrics = said.object["metrics"]
    assert 0 < metrics["left_out_conversations"] <= 10
    assert metrics["train_conversations"] + metrics["left_out_conversations"] > 90
    assert "conversations left out: longer than 64 tokens" in said.err


def test_when_most_conversations_are_too_long_the_corrected_command_runs(base, tmp_path, chatpipe):
    folder, _, _ = base
    rows = [as_messages(one.question + one.wrong, one.right) for one in asked()[:60]]
    data = write_rows(tmp_path / "long.jsonl", rows)
    command = ("sft", "--model", folder / "base", "--data", data, "--out", tmp_path / "chat", "sft.max_steps=2")
    few = ("evaluation.prompts=10", "evaluation.max_new_tokens=4")
    said = chatpipe(*command, *few, "sft.max_length=16")
    assert said.code == 2
    assert "conversations are longer than 16 tokens" in said.err
    assert "sft.max_length" in said.err
    assert chatpipe(*command, *few, "sft.max_length=64").code == 0


def test_pretrain_mix_keeps_raw_text_from_being_forgotten(base, tmp_path, chatpipe):
    folder, _, _ = base
    other = [as_messages(one.question, "I will not say a word about it.") for one in asked()[:200]]
    data = write_rows(tmp_path / "chats.jsonl", other)
    learn = ("sft.learning_rate=3e-3", "sft.batch_size=16", "sft.max_length=64", "sft.max_steps=40")
    few = ("evaluation.prompts=10", "evaluation.max_new_tokens=8")
    losses = {}
    for mix in (0.0, 0.5):
        command = ("sft", "--model", folder / "base", "--data", data, "--out", tmp_path / f"mix-{mix}", *learn, *few)
        raw = (f"sft.pretrain_mix={mix}", f"pretrain.data={folder}/a.txt")
        assert chatpipe(*command, *raw).code == 0
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"mix-{mix}")
        source = RawText(DataBlock(source=f"{folder}/a.txt"), {}, "data")
        texts = sample_texts([source], "validation", max_bytes=10**6)
        tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        losses[mix] = text_loss(model, ValidationText.of(texts, Encoder.of(tokenizer), 32)).nats_per_token
    assert losses[0.5] < losses[0.0] - 0.3


# ---- the dry run ----


def test_dry_run_predicts_what_the_run_then_did(tiny_run, chatpipe, listing):
    before = listing(tiny_run.folder)
    told = chatpipe("run", tiny_run.recipe, "seed=0", "--dry-run", "--json").object
    assert listing(tiny_run.folder) == before
    assert [stage["stage"] for stage in told["stages"]] == ["pretrain", "sft", "sample", "rank", "rm", "ppo"]
    for stage in told["stages"]:
        if stage["stage"] not in STAGES:
            continue
        first = json.loads((tiny_run.folder / stage["stage"] / "metrics.jsonl").read_text().splitlines()[0])
        assert stage["steps"] == first["max_steps"], stage["stage"]
        assert stage["out"] == str(tiny_run.folder / stage["stage"])
        assert stage["command"] == "in this process"
    assert told["stages"][0]["parameters"] == tiny_run.stage("pretrain")["metrics"]["parameters"]
    assert told["stages"][0]["tokens"] == tiny_run.stage("pretrain")["metrics"]["train_tokens"]
    assert told["recipe"]["seed"] == {"value": 0, "origin": "command line"}
    assert told["recipe"]["ppo.kl_coef"]["origin"].startswith(f"{tiny_run.recipe}:")


def test_dry_run_of_a_run_that_is_not_there(tmp_path, small, chatpipe):
    out = tmp_path / "run"
    said = chatpipe("run", "pocket", f"out={out}", *small, "--processes", "2", "--dry-run", "--json")
    told = said.object
    assert not out.exists()
    assert said.err == ""
    assert [stage["stage"] for stage in told["stages"]] == ["pretrain", "sft", "sample", "rank", "rm", "ppo"]
    rank = told["stages"].pop(3)  # an oracle ranks
    assert (rank["processes"], rank["command"], "parameters" in rank) == (1, "in this process", False)
    for stage in told["stages"]:
        assert stage["parameters"] > 100_000
        assert stage["processes"] == 2
        assert stage["command"].startswith("accelerate launch ")
        assert "--multi_gpu --num_processes 2 " in stage["command"]
        assert stage["command"].endswith(
            f"{stage['stage']} {out}/{stage['stage']}/recipe.yaml --out {out}/{stage['stage']}"
        )


def test_dry_run_for_people(tmp_path, own, chatpipe):
    out = tmp_path / "chat"
    said = chatpipe("sft", "--model", own.file("sft"), "--data", own.file("chats.jsonl"), "--out", out, "--dry-run")
    assert said.code == 0
    assert not out.exists()
    rows = {line.split()[0]: line.split() for line in said.out.splitlines() if line}
    assert rows["sft.model"][1:] == [str(own.file("sft")), "command", "line"]
    assert rows["sft.batch_size"][1:] == ["32", "default"]
    trained = own.results["sft"]["metrics"]["train_conversations"]
    assert rows["rows"][1] == str(trained)
    assert rows["steps"][1] == str(2 * -(-trained // 32))  # two epochs
