import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chatpipe.models.new_model import train_tokenizer
from chatpipe.recipe.loading import load_recipe
from chatpipe.recipe.schema import TRAINING_STAGES, DataBlock
from chatpipe.run.chain import _memory
from chatpipe.run.steps import step_of
from chatpipe.stages.shared import padded, rehearsed_rows

RECIPE = """\
pretrain:
  data: pocketworld
  architecture: {n_layer: 3, n_embd: 64, n_positions: 96}
  tokenizer: {vocab_size: 512}
  learning_rate: 3e-3
  max_steps: 50
  batch_size: 8
  block_size: 64
sft:
  data: pocketworld
sample:
  data: pocketworld
  prompts: 100
rank:
  rater: pocketworld
rm:
  batch_size: 16
  num_train_epochs: 2
ppo:
  data: pocketworld
  total_episodes: 100
  batch_size: 8
  num_mini_batches: 2
  num_ppo_epochs: 3
"""


@pytest.fixture
def recipe(work) -> str:
    """A recipe over the built-in world."""
    (work / "mine.yaml").write_text(RECIPE)
    return "mine.yaml"


def test_a_dry_run_shows_every_value_with_its_origin_and_writes_nothing(chatpipe, recipe, listing):
    before = listing()
    result = chatpipe("run", recipe, "seed=7", "--processes", "1", "--dry-run")
    assert result.code == 0, result.err
    assert listing() == before
    rows = [line.split() for line in result.out.splitlines()]
    for row in (
        ["seed", "7", "command", "line"],
        ["processes", "1", "command", "line"],
        ["out", "runs/mine", "the", "recipe's", "name"],
        ["pretrain.learning_rate", "0.003", "mine.yaml:5"],
        ["pretrain.architecture.n_embd", "64", "mine.yaml:3"],
        ["pretrain.architecture.n_head", "4", "default"],
        ["ppo.adam_beta1", "0.9", "default"],
    ):
        assert row in rows


@pytest.fixture
def chat_model(work, tiny_run) -> Path:
    """A small chat model that can be trained."""
    return Path(shutil.copytree(tiny_run.folder / "sft", work / "chat"))


@pytest.fixture
def pairs(work) -> str:
    """A file with pairs that can be used."""
    rows = ({"prompt": f"Question {i}?", "chosen": f"Yes, {i}.", "rejected": f"No, {i}."} for i in range(60))
    (work / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "pairs.jsonl"


ONE = ("--processes", "1", "--dry-run")


def rehearse(chatpipe, stage: str, *words: object) -> dict[str, Any]:
    """The plan of a stage's dry run."""
    said = chatpipe(stage, *words, *ONE, "--json")
    assert said.code == 0, said.err
    [plan] = json.loads(said.out)["stages"]
    return plan


def words_of(stage: str, model: object, chats: str, pairs: str, reward: object) -> list[object]:
    data = pairs if stage == "rm" else chats
    more = ["--reward", reward, "ppo.response_length=24", "checks.reward_at_chance=false"] if stage == "ppo" else []
    return ["--model", model, "--data", data, "--out", "made", "evaluation.max_new_tokens=24", *more]


@pytest.mark.parametrize("stage", ["sft", "rm", "ppo"])
def test_memory_and_time_of_a_stage_are_those_of_a_few_steps(
    chatpipe, listing, chat_model, chats, pairs, tiny_run, stage
):
    before = listing()
    words = words_of(stage, chat_model, chats, pairs, tiny_run.folder / "rm")
    # a schedule that is longer than what is tried
    schedule = (f"{stage}.lr_scheduler_type=warmup_stable_decay", f"{stage}.decay_steps=500")
    plan = rehearse(chatpipe, stage, *words, f"{stage}.batch_size=16", *schedule)
    assert listing() == before
    memory = plan["memory_gib"]
    assert memory["total"] == pytest.approx(sum(memory.values()) - memory["total"], abs=0.02)
    assert 0 < plan["train_seconds"] < 600
    assert 0 <= plan["evaluation_seconds"] < 600
    assert (plan["bf16"], plan["gradient_checkpointing"]) == (plan["bf16"], False)
    assert plan["micro_batch"] == 16
    assert plan.get("longest_answer") == (None if stage == "rm" else 24)


def test_twice_the_work_takes_twice_the_time(chatpipe, chat_model, chats):
    words = ("--model", chat_model, "--data", chats, "--out", "made")
    work = [rehearse(chatpipe, "sft", *words, f"sft.num_train_epochs={n}") for n in (4, 400)]
    assert work[1]["steps"] == 100 * work[0]["steps"]
    assert work[1]["train_seconds"] > 10 * work[0]["train_seconds"]


def test_a_model_that_is_not_here_is_not_fetched(chatpipe, chats):
    plan = rehearse(chatpipe, "sft", "--model", "nobody/nothing", "--data", chats, "--out", "made")
    assert plan["train_seconds"] == "unknown: nobody/nothing is not here"


def test_a_block_of_data_is_shown_with_what_it_sets(chatpipe, recipe):
    said = chatpipe("run", recipe, "sft.data=[{source: pocketworld, limit: 40}]", "--processes", "1", "--dry-run")
    assert "pocketworld {'limit': 40}" in said.out


def test_what_the_run_has_to_make_first_is_named(chatpipe, recipe, tiny_run):
    plan = rehearse(
        chatpipe, "rm", recipe, f"rm.model={tiny_run.folder / 'sft'}", f"sft.model={tiny_run.folder / 'sft'}"
    )
    assert plan["train_seconds"].startswith("unknown: there are no rankings yet")


def test_a_model_that_cannot_be_trained_is_refused_before_it_is_trained(chatpipe, refused, chat_model, chats):
    weights = load_file(chat_model / "model.safetensors")
    first = next(name for name in weights if name.endswith("weight"))
    weights[first][0] = torch.nan
    save_file(weights, chat_model / "model.safetensors", metadata={"format": "pt"})
    said = refused("sft", "--model", str(chat_model), "--data", chats, "--out", "made", *ONE)
    assert str(chat_model) in said


@pytest.mark.parametrize(
    ("body", "named"),
    [("    raise KeyError('x')", "KeyError"), ("    return [1.0]", "1 numbers")],
)
def test_a_reward_function_is_tried(chatpipe, refused, work, chat_model, chats, monkeypatch, body, named):
    monkeypatch.syspath_prepend(work)
    (work / f"of_{len(body)}.py").write_text(f"def score(prompts, completions):\n{body}\n")
    reward = f"ppo.reward=[{{function: of_{len(body)}:score}}]"
    words = ("ppo", "--model", str(chat_model), "--data", chats, "--out", "made", reward, "ppo.response_length=24")
    assert named in refused(*words, "evaluation.max_new_tokens=24", *ONE)


def test_memory_that_ends_names_the_keys_that_help(chatpipe, chat_model, chats, monkeypatch):
    def rehearse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("chatpipe.stages.sft.rehearse", rehearse)
    said = chatpipe("sft", "--model", chat_model, "--data", chats, "--out", "made", *ONE)
    assert said.code == 1
    assert "sft.per_device_train_batch_size=1" in said.err


def test_a_rehearsal_reads_the_longest_rows_that_it_can_afford_second():
    lengths = np.array([900, 10, 30, 20, 40, 10, 50, 30])
    steps = rehearsed_rows(lengths, micro=4, tokens=60)
    assert {len(step) for step in steps} == {2}
    assert lengths[steps[1]].max() == 50
    assert 900 not in lengths[sum(steps, [])]
    assert rehearsed_rows(np.array([900, 800]), micro=4, tokens=60) == [[1]] * len(steps)


def test_rows_of_a_micro_batch_are_as_long_as_its_longest():
    assert padded(np.full(10, 7), micro=4).tolist() == [7] * 12
    lengths = padded(np.arange(1, 9), micro=4)
    assert lengths.reshape(2, 4).std(1).tolist() == [0, 0]
    assert lengths.max() == 8


def test_the_dry_run_of_a_stage_begins_with_what_differs_in_it(chatpipe, chats, chat_model):
    words = ("sft", "--model", chat_model, "--data", chats, "--out", "tuned", "sft.batch_size=8", "--processes", "1")
    said = chatpipe(*words, "--dry-run")
    assert said.code == 0, said.err
    values, plan = said.out.split("\n\n")
    keys = [line.split()[0] for line in values.splitlines()]
    assert set(keys[:3]) == {"sft.model", "sft.data", "sft.batch_size"}
    assert ["sft.data", chats, "command", "line"] in [line.split() for line in values.splitlines()]
    assert all(key.startswith("sft.") for key in keys[:20])
    assert [key for key in keys if not key.startswith("sft.")] == ["processes"]
    lines = dict(line.split(maxsplit=1) for line in plan.splitlines())
    assert lines["learning_rate"] == "2e-05"
    [plan] = json.loads(chatpipe(*words, "sft.lora={}", "--dry-run", "--json").out)["stages"]
    assert plan["learning_rate"] == 2e-4


@pytest.mark.parametrize(
    ("words", "trained", "frozen"),
    [(["sft.model=m"], 1, 0), (["sft.model=m", "sft.lora={}"], 0, 1)],
)
def test_memory_is_of_float32_weights_gradients_and_moments(work, words, trained, frozen):
    step = step_of(load_recipe(None, words).recipe, "sft")
    assert _memory(step, 2**28) == {
        "weights": trained,
        "gradients": trained,
        "optimizer": 2 * trained,
        "frozen": frozen,
        "total": 4 * trained + frozen,
    }


def test_memory_of_ppo_has_a_value_model_a_reference_and_a_reward_model():
    recipe = load_recipe(None, ["ppo.model=m", "ppo.reward_model=r"]).recipe
    assert _memory(step_of(recipe, "ppo"), 2**28)["total"] == 2 * 4 + 2
    adapted = load_recipe(None, ["ppo.model=m", "ppo.reward_model=r", "ppo.lora={}"]).recipe
    assert _memory(step_of(adapted, "ppo"), 2**28)["total"] == 4 + 2


def test_the_plan_has_parameters_steps_and_tokens_of_each_stage(chatpipe, recipe):
    result = chatpipe("run", recipe, "--processes", "1", "--dry-run", "--json")
    plans = {plan["stage"]: plan for plan in json.loads(result.out)["stages"]}
    assert tuple(plans) == ("pretrain", "sft", "sample", "rank", "rm", "ppo")
    assert (plans["pretrain"]["steps"], plans["pretrain"]["tokens"]) == (50, 50 * 8 * 64)
    assert len({plans[stage]["parameters"] for stage in TRAINING_STAGES}) == 1
    width, layers, vocabulary, positions = 64, 3, 512, 96
    counted = (vocabulary + positions) * width + layers * (12 * width**2 + 13 * width) + 2 * width
    assert plans["pretrain"]["parameters"] == counted
    assert plans["ppo"]["iterations"] == 7  # 16 episodes each, of 100
    assert plans["ppo"]["steps"] == 7 * 3 * 2
    assert plans["rm"]["rankings"] == 90  # nine tenths of the prompts that are sampled
    assert plans["rm"]["steps"] == 6 * 2
    assert plans["sft"]["out"] == "runs/mine/sft"
    assert {plan["command"] for plan in plans.values()} == {"in this process"}


def test_the_plan_counts_the_tokens_of_the_tokenizer_that_is_taken(chatpipe, recipe, work):
    tokenizer = train_tokenizer(["A line of text, and a number of other words."], 280, 64)
    tokenizer.save_pretrained(work / "own")
    assert len(tokenizer) == 280

    def parameters(*words: str) -> int | str:
        plans = json.loads(chatpipe("run", recipe, *words, "--processes", "1", "--dry-run", "--json").out)["stages"]
        return plans[0]["parameters"]

    assert parameters("pretrain.tokenizer.pretrained=own") == parameters("pretrain.tokenizer.vocab_size=280")
    assert parameters("pretrain.tokenizer.pretrained=gpt2") == "unknown"
    rows = "pretrain.architecture.vocab_size=50257"
    assert parameters("pretrain.tokenizer.pretrained=gpt2", rows) == parameters(rows)


def test_nothing_is_foreseen_of_a_tokenizer_of_the_hub(chatpipe, recipe):
    words = ("pretrain.tokenizer.pretrained=gpt2", "--processes", "1", "--dry-run", "--json")
    [plan] = json.loads(chatpipe("pretrain", recipe, *words).out)["stages"]
    assert (plan["parameters"], plan["train_seconds"]) == ("unknown", "unknown")
    assert "pretrain.architecture.vocab_size is not given" in plan["memory_gib"]


def test_a_damaged_tokenizer_is_refused_before_anything_is_foreseen(chatpipe, recipe, work):
    (work / "own").mkdir()
    (work / "own" / "tokenizer.json").write_text("{")
    words = ("pretrain", recipe, "pretrain.tokenizer.pretrained=own", "--processes", "1", "--dry-run")

    def refused(*more: str) -> None:
        said = chatpipe(*words, *more)
        assert (said.code, said.out) == (2, "")
        assert "own holds no tokenizer that can be read" in said.err

    refused()
    train_tokenizer(["A line of text."], 280, 64).save_pretrained(work / "own")
    (work / "own" / "tokenizer_config.json").write_text("{")  # which would name a mask token
    refused("pretrain.objective=masked", "pretrain.architecture={family: modernbert}")


def test_values_are_json_values(chatpipe, recipe):
    values = json.loads(chatpipe("run", recipe, "--processes", "1", "--dry-run", "--json").out)["recipe"]
    assert values["pretrain.learning_rate"] == {"value": 0.003, "origin": "mine.yaml:5"}
    assert values["pretrain.bf16"]["value"] == "auto"
    assert values["launch"]["value"] is None
    assert values["sft.data"]["value"] == [DataBlock(source="pocketworld").model_dump()]


def test_parameters_that_are_in_no_safetensors_file_are_unknown(chatpipe, chats, chat_model):
    weights = load_file(chat_model / "model.safetensors")
    torch.save(weights, chat_model / "pytorch_model.bin")
    (chat_model / "model.safetensors").unlink()
    plan = rehearse(chatpipe, "sft", "--model", chat_model, "--data", chats, "--out", "tuned")
    assert plan["parameters"] == "unknown"
    assert isinstance(plan["train_seconds"], float)


def test_the_plan_of_a_stage_with_a_folder_of_its_own_names_that_folder(chatpipe, chats, chat_model):
    words = ("--model", chat_model, "--data", chats, "--out", "tuned", "--processes", "2", "--dry-run", "--json")
    [plan] = json.loads(chatpipe("sft", *words).out)["stages"]
    assert (plan["out"], plan["models"], plan["processes"]) == ("tuned", str(chat_model), 2)
    assert plan["command"].endswith("chatpipe step sft tuned/recipe.yaml --out tuned")


def test_the_plan_of_pretrain_predicts_memory_and_time_without_its_data(chatpipe, recipe, listing):
    before = listing()
    words = ("pretrain.data=not-there.txt", "pretrain.max_steps=100", "--processes", "1", "--dry-run", "--json")
    [plan] = json.loads(chatpipe("pretrain", recipe, *words).out)["stages"]
    assert listing() == before
    assert plan["flops"] == f"{100 * 8 * 64 * (6 * plan['parameters'] + 12 * 3 * 64 * 64):.2e}"
    assert plan["chinchilla_ratio"] == pytest.approx(100 * 8 * 64 / plan["parameters"] / 20, abs=1e-3)
    memory = plan["memory_gib"]
    assert memory["weights"] == pytest.approx(4 * plan["parameters"] / 2**30, abs=1e-3)
    assert memory["optimizer"] == pytest.approx(8 * plan["parameters"] / 2**30, abs=1e-3)
    assert memory["total"] == pytest.approx(sum(memory.values()) - memory["total"], abs=5e-3)
    # seconds are rounded to a tenth
    assert plan["train_seconds"] == pytest.approx(100 * 8 * 64 / plan["tokens_per_second"], rel=0.02, abs=0.06)
    assert "whole micro-batches" in plan["probed_with"]
