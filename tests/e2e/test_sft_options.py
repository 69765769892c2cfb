"""sft with packing, LoRA, evaluations and the best weights, from base models of several families."""

import json
import signal

import pytest
import torch
from own_files import FEW_PROMPTS, as_messages, asked, write_rows
from safetensors.torch import load_file
from test_resume_stages import assert_same_result, kill_after_first_resume_point
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, set_seed

from chatpipe.data.chat_template import encode_prompt
from chatpipe.models.new_model import build_model, model_config
from chatpipe.recipe.architectures import Architecture
from foreign_models import CHATML, foreign_tokenizer

ALL_ON = (
    "sft.packing=true",
    "sft.lora={r: 8, alpha: 16}",
    "sft.bf16=false",
    "sft.learning_rate=1e-2",
    "sft.max_length=96",
    "sft.batch_size=8",
    "sft.num_train_epochs=2",
    "sft.warmup_steps=2",
    "sft.eval_steps=4",
    "sft.load_best_model_at_end=true",
    'sft.sample_prompts=["What colour is the barn?"]',
    "sft.logging_steps=3",
    "sft.save_steps=6",
    *FEW_PROMPTS,
)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    return write_rows(folder / "chats.jsonl", [as_messages(one.question, one.right) for one in asked()])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A new model with a tokenizer as Qwen's base models have it: EOS is not what its template ends a turn with."""
    texts = [f"{one.question} {one.right}" for one in asked()]
    tokenizer = foreign_tokenizer(CHATML, texts, 500, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    set_seed(0)
    shape = Architecture(family="llama", n_layer=2, n_head=2, n_embd=64, n_positions=96, dropout=0)
    model = build_model("llama", model_config(shape, len(tokenizer), tokenizer.eos_token_id, 0))
    folder = tmp_path_factory.mktemp("llama") / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_it_learns_and_stops_where_its_template_ends_a_turn(base, chats, tmp_path, chatpipe):
    how = ("sft.packing=true", "sft.learning_rate=5e-3", "sft.num_train_epochs=6", "sft.batch_size=8", *FEW_PROMPTS)
    told = chatpipe("sft", "--model", base, "--data", chats, "--out", tmp_path / "out", *how, "--json").object
    metrics = told["metrics"]
    assert metrics["eval_loss"] < 0.5 * metrics["eval_loss_before"]
    assert metrics["eos_share"] >= 0.95
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    end, text_end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.chat_template) == (text_end, text_end, CHATML)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [end, text_end]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = encode_prompt(tokenizer, [{"role": "user", "content": asked()[0].question}])
    answer = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
    assert answer[-1].item() == end
    assert tokenizer.decode(answer, skip_special_tokens=True) in {one.right for one in asked()}


def test_evaluations_are_logged_and_the_best_of_them_is_saved(tiny_run, chats, tmp_path, chatpipe):
    out = tmp_path / "out"
    command = ("sft", "--model", tiny_run.folder / "pretrain", "--data", chats, "--out", out, *ALL_ON, "--json")
    told = chatpipe(*command)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluations = {line["step"]: line for line in lines if "eval_loss" in line}
    last = lines[-1]["max_steps"]
    assert sorted(evaluations) == sorted({*range(4, last + 1, 4), last})
    metrics = told.object["metrics"]
    assert evaluations[metrics["best_step"]]["eval_loss"] == min(line["eval_loss"] for line in evaluations.values())
    assert metrics["eval_loss"] == pytest.approx(evaluations[metrics["best_step"]]["eval_loss"], abs=1e-4)
    assert metrics["eval_loss"] < metrics["eval_loss_before"]
    for line in evaluations.values():
        assert [sample.split(" -> ")[0] for sample in line["samples"]] == ["What colour is the barn?"]
    assert f"step {last}: validation: loss" in told.err
    before = load_file(tiny_run.folder / "pretrain" / "model.safetensors")
    after = load_file(out / "model.safetensors")
    assert after.keys() == before.keys()  # a plain model
    assert not any("lora" in path.name or "adapter" in path.name for path in out.iterdir())

    # killed on its way, it ends with the same
    again = tmp_path / "killed"
    killed = [str(again) if word == out else word for word in command]
    code, _, _ = kill_after_first_resume_point(killed, again)
    assert code == -signal.SIGKILL
    rows = again / "rows" / "train.ids.bin"
    written = rows.stat().st_mtime_ns
    resumed = chatpipe(*killed)
    assert rows.stat().st_mtime_ns == written  # rows are written once
    assert "going on from step-" in resumed.err
    assert_same_result(again, out)
    assert resumed.object["metrics"]["best_step"] == metrics["best_step"]


@pytest.mark.parametrize(
    "given, said",
    [
        (("sft.load_best_model_at_end=true",), "load_best_model_at_end needs eval_steps"),
        (("sft.max_length=16",), "conversations are longer than 16 tokens"),
    ],
)
def test_what_cannot_be_is_refused(tiny_run, chats, tmp_path, chatpipe, given, said):
    told = chatpipe("sft", "--model", tiny_run.folder / "pretrain", "--data", chats, "--out", tmp_path / "o", *given)
    assert told.code == 2
    assert said in told.err
    assert len(told.err.splitlines()) <= 8
