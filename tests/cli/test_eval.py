"""`chatpipe eval`: what a stage's verdict measures, of any model folder on any data."""

import json

import pytest
from transformers import AutoTokenizer

from chatpipe.data.text_blocks import add_mask_token
from chatpipe.models.new_model import new_model
from chatpipe.recipe.architectures import Architecture


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def test_a_base_model_on_its_world_gets_the_numbers_of_its_verdict(chatpipe, tiny_run):
    said = chatpipe("eval", tiny_run.folder / "pretrain", "--data", "pocketworld", "--json").object
    assert (said["kind"], said["measured"]) == ("causal", "text")
    before = tiny_run.stage("pretrain")["metrics"]
    for name in ("eval_loss", "bits_per_byte", "perplexity"):
        assert said["metrics"][name] == pytest.approx(before[name], rel=1e-5)


def test_a_chat_model_on_its_world_is_scored_by_the_oracle_as_in_its_stage(chatpipe, tiny_run):
    said = chatpipe("eval", tiny_run.folder / "sft", "--data", "pocketworld", "--json").object
    assert said["measured"] == "answers"
    before = tiny_run.stage("sft")["metrics"]
    for name in ("right", "right_low", "oracle_score", "chance", "eos_share", "eval_prompts"):
        assert said["metrics"][name] == pytest.approx(before[name])


def test_a_file_of_text_is_read_whole(chatpipe, work, tiny_run, listing):
    folder = tiny_run.folder / "pretrain"
    text = "Mara is a baker. She lives in the mill.\n" * 20
    (work / "book.txt").write_text(text)
    before = listing()
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    said = chatpipe("eval", folder, "--data", "book.txt", "--json").object
    assert (said["format"], said["rows"]) == ("text", 1)
    tokens = len(AutoTokenizer.from_pretrained(folder)(text)["input_ids"]) + 1  # the end of text
    metrics = said["metrics"]
    assert metrics["tokens"] == tokens
    assert len(metrics["samples"]) == 1
    assert metrics["bits_per_byte"] > 0
    assert listing() == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == files


def test_the_share_of_answers_that_are_cut_is_named(chatpipe, work, tiny_run):
    data = write(work / "asked.jsonl", [{"prompt": f"What does Mara {i} work as?"} for i in range(5)])
    said = chatpipe("eval", tiny_run.folder / "sft", "--data", data, "evaluation.max_new_tokens=1")
    assert "100% of the answers are cut at 1 tokens (evaluation.max_new_tokens)" in said.err


def test_conversations(chatpipe, work, tiny_run):
    rows = [
        {"question": f"What does {name} work as?", "answer": f"{name} works as a {step}."}
        for name, step in zip(["Mara", "Tom", "Ida", "Bo"] * 5, ["baker", "cook", "sailor"] * 7, strict=False)
    ]
    data = write(work / "asked.jsonl", rows)
    words = ("evaluation.prompts=10", "evaluation.max_new_tokens=8")
    said = chatpipe("eval", tiny_run.folder / "sft", "--data", data, *words, "--json")
    assert (said.object["measured"], said.object["rows"], said.object["format"]) == (
        "conversations",
        20,
        "question_answer",
    )
    metrics = said.object["metrics"]
    assert {"eval_loss", "question_gain", "question_gain_low", "eos_share", "answer_length"} <= metrics.keys()
    assert (metrics["eval_prompts"], len(metrics["samples"])) == (10, 2)
    assert "eval_loss" in said.err
    few = chatpipe("eval", tiny_run.folder / "sft", "--data", data, "--limit", "5", *words, "--json").object
    assert few["rows"] == 5


def test_too_many_rows_that_cannot_be_used_stop_it(refused, work, tiny_run):
    data = write(work / "asked.jsonl", [{"question": "Who?", "answer": text} for text in ("Me.", "", "", "You.")])
    assert "2 of 4 rows cannot be used" in refused("eval", tiny_run.folder / "sft", "--data", data)


def test_prompts_are_answered(chatpipe, work, tiny_run):
    data = write(work / "prompts.jsonl", [{"prompt": f"Who is number {i}?"} for i in range(12)])
    said = chatpipe("eval", tiny_run.folder / "sft", "--data", data, "evaluation.max_new_tokens=4", "--json").object
    assert (said["measured"], said["rows"]) == ("answers", 12)
    assert "oracle_score" not in said["metrics"]
    assert said["metrics"]["answers"][0]["question"] == "Who is number 0?"


def test_a_reward_model_that_is_right_on_pairs_is_wrong_on_the_same_pairs_exchanged(chatpipe, work, tiny_run):
    lines = (tiny_run.folder / "rank" / "rankings.jsonl").read_text().splitlines()
    rankings = [row for row in map(json.loads, lines) if len(set(row["ranks"])) > 1][:40]
    pairs = []
    for row in rankings:
        ordered = [text for _, text in sorted(zip(row["ranks"], row["responses"], strict=True))]
        pairs.append({"prompt": row["prompt"], "chosen": ordered[0], "rejected": ordered[-1]})
    exchanged = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs]
    one, other = (
        chatpipe("eval", tiny_run.folder / "rm", "--data", write(work / name, rows), "--json").object["metrics"]
        for name, rows in (("pairs.jsonl", pairs), ("exchanged.jsonl", exchanged))
    )
    assert one["eval_accuracy"] == pytest.approx(1 - other["eval_accuracy"])
    assert one["accuracy_low"] <= one["eval_accuracy"] <= one["accuracy_high"]
    assert one["length_baseline"] == other["length_baseline"]
    assert one["eval_pairs"] == len(pairs)


def test_a_masked_model_on_text(chatpipe, work, tiny_run):
    tokenizer = AutoTokenizer.from_pretrained(tiny_run.folder / "pretrain")
    add_mask_token(tokenizer)
    shape = Architecture(family="modernbert", n_layer=1, n_head=2, n_embd=32, n_positions=64)
    new_model(shape, tokenizer).save_pretrained(work / "encoder")
    tokenizer.save_pretrained(work / "encoder")
    (work / "book.txt").write_text("Mara is a baker. She lives in the mill.\n" * 20)
    said = chatpipe("eval", "encoder", "--data", "book.txt", "--json").object
    assert (said["kind"], said["measured"]) == ("masked", "text")
    assert 0 < said["metrics"]["eval_loss"] < 12
    assert 0 <= said["metrics"]["accuracy"] <= 1


def test_model_and_data_that_do_not_go_together(refused, chats, work, tiny_run):
    told = refused("eval", tiny_run.folder / "rm", "--data", chats)
    assert "is a reward model, and --data chats.jsonl is messages" in told
    assert "rankings or pairs" in told


def test_rankings_that_are_all_ties_are_refused_by_the_flag_that_named_them(refused, work, tiny_run):
    rows = [{"prompt": f"Who is {i}?", "responses": ["a", "b"], "ranks": [1, 1]} for i in range(3)]
    told = refused("eval", tiny_run.folder / "rm", "--data", write(work / "ties.jsonl", rows))
    assert told == (
        "error: --data: none of the 3 rankings prefers one answer to another.\nGive some that are not all ties.\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ppo.kl_coef=1",), "ppo.kl_coef"),
        (("twice",), "'twice' is not understood"),
        (("evaluation.temperatur=1",), "did you mean evaluation.temperature?"),
    ],
)
def test_settings_that_are_none(refused, chats, tiny_run, words, told):
    assert told in refused("eval", tiny_run.folder / "sft", "--data", chats, *words)


def test_a_folder_that_holds_no_model(refused, chats):
    assert "there is no such folder" in refused("eval", "./none", "--data", chats)
