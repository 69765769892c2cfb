"""The ppo stage with what a recipe can add: LoRA, several rewards, raw text, a KL budget."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatpipe.recipe import load_recipe
from chatpipe.run.steps import step_of
from chatpipe.stages.shared import longest_answer

pytest.importorskip("peft")

REWARD_FUNCTION = """
def short(prompts, completions):
    assert all(message["role"] for prompt in prompts for message in prompt)
    return [-len(text) / 10 for text in completions]
"""


@pytest.fixture(scope="module")
def stage(tiny_run, chatpipe, small, tmp_path_factory):
    """One stage with all of it, on the models of the shared run."""
    folder = tmp_path_factory.mktemp("ppo")
    (folder / "rewards_of_this_test.py").write_text(REWARD_FUNCTION)
    rewards = f"[{{model: {tiny_run.folder}/rm, weight: 0.5}}, {{function: 'rewards_of_this_test:short', weight: 2}}]"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said = chatpipe(
            *("ppo", "pocket", f"out={folder}/run", "--model", tiny_run.folder / "sft", *small),
            *(f"ppo.reward={rewards}", "ppo.lora={r: 4}", "ppo.ptx_coef=1", "ppo.learning_rate=1e-2"),
            *("ppo.total_episodes=160", "ppo.kl_budget=0.05", "--json"),
        )
    assert said.code == 0, said.err
    return folder / "run" / "ppo", said.object, tiny_run


@pytest.mark.parametrize("data", [[], ["sft.data=[{source: chats.jsonl, use: train}]"]])
def test_without_conversations_to_measure_an_answer_has_the_usual_limit(tiny_run, data):
    step = step_of(load_recipe(None, ["ppo.model=chat", *data]).recipe, "ppo")
    tokenizer = AutoTokenizer.from_pretrained(tiny_run.folder / "sft")
    assert longest_answer(step, None, tokenizer, 4096) == 512
    assert longest_answer(step, None, tokenizer, 100) == 50


def test_the_saved_policy_is_a_plain_model_that_has_learned(stage):
    folder, _, run = stage
    model, before = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, run.folder / "sft"))
    ids = torch.tensor([[5, 6, 7, 8]])
    assert not torch.allclose(model(ids).logits, before(ids).logits, atol=1e-3)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in before.named_parameters()}


def test_metrics_name_every_reward_and_the_oracle(stage):
    folder, _, _ = stage
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]
    raw = 0.5 * first["rewards/model"] + 2 * first["rewards/short"]
    assert first["objective/scores_raw"] == pytest.approx(raw, abs=1e-4)
    assert {"objective/oracle", "loss/ptx", "objective/kl_se"} <= set(first)


def test_training_ended_at_its_budget_and_the_verdict_names_it(stage):
    folder, said, _ = stage
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["objective/kl"] > 0.05
    assert lines[-1]["step"] < lines[-1]["max_steps"]
    assert any("above the budget of 0.05 (ppo.kl_budget)" in reason for reason in said["verdict"]["reasons"])


def test_the_manifest_has_what_it_was_made_from(stage):
    folder, _, _ = stage
    manifest = json.loads((folder / "chatpipe.json").read_text())
    assert set(manifest["parents"]) == {"ppo.model", "ppo.reward.0"}
    assert set(manifest["data"]) == {"ppo.data", "ppo.ptx_data", "ppo.reward.1.function"}
    assert manifest["settings"]["ppo.lora.r"] == 4
    assert manifest["settings"]["ppo.reward"][1] == {"function": "rewards_of_this_test:short", "weight": 2.0}


SELF_EDITING_FUNCTION = """
from pathlib import Path

def finished(prompts, completions, ended):
    Path(__file__).write_text(Path(__file__).read_text() + "# edited while it trained\\n")
    return [float(did_end) for did_end in ended]
"""


@pytest.fixture(scope="module")
def evaluated(tiny_run, chatpipe, small, tmp_path_factory):
    """On prompts that no oracle knows, with one function as the reward and a reward model as the oracle."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "own_rewards.py").write_text(SELF_EDITING_FUNCTION)
    rows = [{"prompt": f"What is {number} and {number}?"} for number in range(200)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = (
        *("ppo", "pocket", f"out={folder}/run", "--model", tiny_run.folder / "sft", *small),
        *("ppo.reward=[{function: 'own_rewards:finished'}]", f"ppo.oracle_reward_model={tiny_run.folder}/rm"),
        *("--data", folder / "prompts.jsonl", "ppo.total_episodes=32", "evaluation.prompts=10", "--json"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder, command, chatpipe(*command)


def test_an_oracle_reward_model_decides_the_verdict(evaluated):
    folder, _, said = evaluated
    metrics, reasons = said.object["metrics"], said.object["verdict"]["reasons"]
    assert metrics["oracle_reward_change_low"] <= metrics["oracle_reward_score"] - metrics["oracle_reward_score_before"]
    assert (
        metrics["oracle_reward_score"] - metrics["oracle_reward_score_before"] <= metrics["oracle_reward_change_high"]
    )
    assert metrics["reward_score"] == pytest.approx(metrics["eos_share"] - (1 - metrics["eos_share"]), abs=1e-6)
    told = f"ppo.oracle_reward_model on validation prompts is {metrics['oracle_reward_score']:.2f}, "
    assert any(told in reason for reason in reasons)
    assert not any(reason.startswith("Only") for reason in reasons)
    first = json.loads((folder / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["objective/scores_raw"] == pytest.approx(first["response/eos_frac"], abs=1e-6)


def test_a_reward_function_that_changed_while_it_trained_or_later_makes_another_stage(evaluated, chatpipe):
    folder, command, _ = evaluated
    said = chatpipe(*command)
    assert said.code == 2
    assert "holds another ppo:\nppo.reward.0.function (own_rewards:finished) was " in said.err
    assert "--fresh" in said.err
    (folder / "own_rewards.py").write_text(SELF_EDITING_FUNCTION)
    assert chatpipe(*command).object["skipped"]
