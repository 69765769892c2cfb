"""The section `ppo` of a recipe, and what the stage makes of it without torch."""

import hashlib
import sys

import pytest

from chatpipe.errors import UsageError
from chatpipe.evaluation.preference_verdicts import ppo_verdict
from chatpipe.recipe.loading import load_recipe
from chatpipe.reward.functions import source_fingerprint
from chatpipe.run.status import manifest_of
from chatpipe.run.step_checks import check_step
from chatpipe.run.steps import step_of
from stub_models import write_stub_model


@pytest.mark.parametrize(
    "override, message",
    [
        ("ppo.kl_estimator=k3", "ppo.kl_estimator"),
        ("ppo.kl_loss=k2", "ppo: kl_loss and kl_loss_coef belong together"),
        ("ppo.missing_eos=drop", "ppo.missing_eos"),
        ("ppo.target_kl=0", "ppo.target_kl"),
        ("ppo.reward=[]", "at least one"),
        ("ppo.reward_model=mine:score", "ppo.reward=mine:score"),
        ("ppo.reward=[{model: a, function: 'm:f'}]", "ppo.reward.0: a reward is either a model or a function"),
        ("ppo.reward=[{function: nothing}]", "ppo.reward.0.function"),
        ("ppo.reward=[{model: a, wieght: 2}]", "did you mean ppo.reward.0.weight"),
        ("ppo.lora={r: 8, dropout: 0.1}", "there is no key ppo.lora.dropout"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(override, message):
    with pytest.raises(UsageError, match=message):
        load_recipe(None, [override])


def test_reward_model_and_a_list_of_rewards_exclude_each_other():
    with pytest.raises(UsageError, match="reward_model is then left out"):
        load_recipe(None, ["ppo.reward=[{model: a}]", "ppo.reward_model=b"])


def model_folder(path, architecture):
    write_stub_model(path, architecture)
    return path


@pytest.fixture
def step(tmp_path, monkeypatch):
    """A stage with two reward models, a function in the working folder and an oracle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text("def short(): ...\n")
    sft = model_folder(tmp_path / "sft", "GPT2LMHeadModel")
    for name in ("helpful", "harmless", "oracle"):
        model_folder(tmp_path / name, "GPT2ForSequenceClassification")
    rewards = f"[{{model: {tmp_path}/helpful, weight: 2}}, {{function: 'mine:short'}}, {{model: {tmp_path}/harmless}}]"
    overrides = [f"out={tmp_path}/run", f"ppo.model={sft}", f"ppo.reward={rewards}", "ppo.data=pocketworld"]
    overrides += [f"ppo.oracle_reward_model={tmp_path}/oracle"]
    yield step_of(load_recipe(None, overrides).recipe, "ppo")
    sys.modules.pop("mine", None)


def test_all_reward_models_are_checked_and_are_in_the_manifest(step, tmp_path):
    check_step(step)
    parents = manifest_of(step).parents
    assert set(parents) == {"ppo.model", "ppo.reward.0", "ppo.reward.2", "ppo.oracle_reward_model"}
    before = manifest_of(step)
    write_stub_model(tmp_path / "harmless", "GPT2ForSequenceClassification", weights="others")
    assert before.differences(manifest_of(step))
    assert "ppo.reward.2" in before.differences(manifest_of(step))[0]
    step.recipe.ppo.reward[0].weight = 3.0
    assert any("ppo.reward was" in line for line in before.differences(manifest_of(step)))


def test_a_changed_reward_function_makes_another_stage_and_is_not_run_to_find_out(step, tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('this module was run')\ndef short(): ...\n")
    before = manifest_of(step)
    assert before.differences(manifest_of(step)) == []
    (tmp_path / "mine.py").write_text("def short(prompts, completions): ...\n")
    [changed] = before.differences(manifest_of(step))
    assert changed.startswith("ppo.reward.1.function (mine:short) was ")
    assert "mine" not in sys.modules


def test_a_reward_function_in_a_package_is_found_without_running_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "ours" / "rewards").mkdir(parents=True)
    (tmp_path / "ours" / "__init__.py").write_text("raise SystemExit('this package was run')\n")
    (tmp_path / "ours" / "rewards" / "short.py").write_text("def short(prompts, completions): ...\n")
    whole = hashlib.sha256((tmp_path / "ours" / "rewards" / "short.py").read_bytes()).hexdigest()
    assert source_fingerprint("ours.rewards.short:short", "ppo.reward.0.function") == whole


@pytest.mark.parametrize(
    "module, place",
    [
        ("def short(prompts, completions):\n    return (0\n", "mine.py:2: "),
        ("import json\n\njson.loads('no')\ndef short(prompts, completions): ...\n", "mine.py:3: "),
        ("raise SystemExit(3)\n", "mine.py:1: "),
        ("def shorter(prompts, completions): ...\n", ""),
        ("short = 3\n", ""),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_with_its_key_and_line(step, tmp_path, module, place):
    (tmp_path / "mine.py").write_text(module)
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as refused:
        check_step(step)
    assert refused.value.message.startswith(f"{place}ppo.reward.1.function = mine:short ")
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("name", ["nowhere:f", "mine.inner:f", "sys:exit", "..mine:f"])
def test_a_reward_function_without_a_file_is_refused_with_its_key_before_anything_is_written(step, tmp_path, name):
    step.recipe.ppo.reward[1].function = name
    with pytest.raises(UsageError, match=f"ppo.reward.1.function = {name} cannot be imported"):
        check_step(step)
    assert not (tmp_path / "run").exists()


def test_a_policy_in_the_list_of_rewards_is_refused(step, tmp_path):
    step.models["reward.0"] = str(tmp_path / "sft")
    with pytest.raises(UsageError, match=r"ppo.reward.0 = .* is a causal language model, but a reward model is needed"):
        check_step(step)


def test_text_to_mix_in_is_part_of_what_the_stage_is_made_from(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("word " * 1000)
    base = ["ppo.data=pocketworld", f"pretrain.data={text}"]
    assert "ppo.ptx_data" not in step_of(load_recipe(None, base).recipe, "ppo").data
    mixed = step_of(load_recipe(None, [*base, "ppo.ptx_coef=1"]).recipe, "ppo").data
    assert [block.source for block in mixed["ppo.ptx_data"]] == [str(text)]
    own = step_of(load_recipe(None, [*base, "ppo.ptx_coef=1", "ppo.ptx_data=pocketworld"]).recipe, "ppo").data
    assert [block.source for block in own["ppo.ptx_data"]] == ["pocketworld"]


GOOD = {
    "objective/kl": 3.0,
    "eos_share": 1.0,
    "eos_share_before": 1.0,
    "eos_change_high": 0.0,
    "length_before": 10.0,
    "length_after": 10.0,
    "reward_score": 1.0,
    "reward_score_before": 0.0,
    "reward_change_low": 0.5,
    "reward_change_high": 1.5,
    "reward_sources": ["model"],
}


def test_alarms_of_the_training_are_in_the_verdict():
    assert ppo_verdict({**GOOD, "alarms": {}, "kl_budget_note": None}).status == "pass"
    warned = ppo_verdict({**GOOD, "alarms": {"value_model": "Iteration 20: The value model ... Try: more."}})
    assert warned.status == "warn"
    assert warned.reasons[0] == "Iteration 20: The value model ... Try: more."
    ended = ppo_verdict({**GOOD, "kl_budget_note": "Training ended after 3 of 9 iterations: ..."})
    assert ended.status == "pass"
    assert any("ppo.kl_budget" in reason for reason in ended.reasons)


@pytest.mark.parametrize(
    ("given", "rewards"),
    [
        ("mine:score", [{"function": "mine:score"}]),
        ("runs/rm", [{"model": "runs/rm"}]),
        ("[mine:score, {model: rm, weight: 2}]", [{"function": "mine:score"}, {"model": "rm", "weight": 2.0}]),
    ],
)
def test_a_reward_is_a_function_a_model_or_a_list(given, rewards):
    found = load_recipe(None, [f"ppo.reward={given}"]).recipe.ppo.reward
    assert [reward.model_dump(exclude_unset=True) for reward in found] == rewards
