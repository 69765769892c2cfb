import json

import pytest

from chatpipe.models.new_model import train_tokenizer
from chatpipe.recipe.loading import load_recipe
from chatpipe.recipe.schema import TRAINING_STAGES, DataBlock
from chatpipe.run.chain import _memory
from chatpipe.run.steps import step_of

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


def test_the_dry_run_of_a_stage_begins_with_what_differs_in_it(chatpipe, chats, make_model):
    model = make_model("base", "GPT2LMHeadModel")
    words = ("sft", "--model", model, "--data", chats, "--out", "tuned", "sft.batch_size=8", "--processes", "1")
    said = chatpipe(*words, "--dry-run")
    assert said.code == 0, said.err
    values, plan = said.out.split("\n\n")
    keys = [line.split()[0] for line in values.splitlines()]
    assert set(keys[:3]) == {"sft.model", "sft.data", "sft.batch_size"}
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


def test_parameters_that_are_in_no_safetensors_file_are_unknown(chatpipe, chats, make_model, work):
    model = make_model("base", "GPT2LMHeadModel")
    (work / "base" / "model.safetensors").rename(work / "base" / "pytorch_model.bin")
    words = ("--model", model, "--data", chats, "--out", "tuned", "--processes", "1", "--dry-run", "--json")
    [plan] = json.loads(chatpipe("sft", *words).out)["stages"]
    assert plan["parameters"] == "unknown"


def test_the_plan_of_a_stage_with_a_folder_of_its_own_names_that_folder(chatpipe, chats, make_model):
    model = make_model("base", "GPT2LMHeadModel")
    words = ("--model", model, "--data", chats, "--out", "tuned", "--processes", "2", "--dry-run", "--json")
    [plan] = json.loads(chatpipe("sft", *words).out)["stages"]
    assert (plan["out"], plan["models"], plan["processes"]) == ("tuned", "base", 2)
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
