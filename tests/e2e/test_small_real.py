"""The packaged recipe `small-real` on the fixtures, which have the shapes of published data: all stages run.

The rankings of the run are those of the file.
"""

import json
from pathlib import Path

import pytest

from chatpipe.data.datasets import load_prompts, load_rankings
from chatpipe.data.messages import prompt_key
from chatpipe.recipe import load_recipe

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

DATA = (
    f"pretrain.data=[{FIXTURES}/wiki.txt, {{source: {FIXTURES}/c4.jsonl, limit: 30}}]",
    f"sft.data={FIXTURES}/alpaca.json",
    f"rm.data=[{{source: {FIXTURES}/hh_harmless.jsonl, max_skipped: 0.1}}]",
)
TINY = (
    "pretrain.architecture={n_layer: 1, n_head: 2, n_embd: 48, n_positions: 512}",
    "pretrain.tokenizer.vocab_size=1024",
    "pretrain.block_size=64",
    "pretrain.max_steps=30",
    "sft.num_train_epochs=1",
    "sft.max_length=512",
    "rm.max_length=256",
    "ppo.total_episodes=32",
    "ppo.batch_size=16",
    "ppo.response_length=16",
    "evaluation.prompts=20",
    "evaluation.max_new_tokens=16",
    "checks.reward_at_chance=false",  # so little training makes no reward model
    *(f"{stage}.bf16=false" for stage in ("pretrain", "sft", "rm", "ppo")),
)


@pytest.fixture(scope="module")
def real_run(tmp_path_factory, chatpipe):
    """The run's folder, its stages by name, and its recipe."""
    folder = tmp_path_factory.mktemp("real") / "run"
    said = chatpipe("run", "small-real", f"out={folder}", *DATA, *TINY, "--json")
    stages = {stage["stage"]: stage for stage in said.object["stages"]}
    return folder, stages, load_recipe(str(folder / "recipe.yaml")).recipe


def test_all_stages_run(real_run):
    folder, stages, _ = real_run
    assert list(stages) == ["pretrain", "sft", "rank", "rm", "ppo"]
    for stage in stages.values():
        assert stage["verdict"]["reasons"]
        assert (folder / stage["stage"] / "chatpipe.json").exists()
    assert not any("oracle" in key for stage in stages.values() for key in stage["metrics"])


def test_the_rankings_are_the_file_s_as_read(real_run):
    folder, _, recipe = real_run
    rows = [json.loads(line) for line in (folder / "rank" / "rankings.jsonl").read_text().splitlines()]
    loaded = load_rankings(recipe.rm.data, recipe.worlds, "rm.data")
    assert len(loaded.train) + len(loaded.validation) == 44
    assert rows == [ranking.to_row() for ranking in [*loaded.train, *loaded.validation]]
    text = (FIXTURES / "hh_harmless.jsonl").read_text(encoding="utf-8")
    for row in rows:
        assert row["ranks"] == [1, 2]
        assert all(json.dumps(answer, ensure_ascii=False)[1:-1] in text for answer in row["responses"])


def test_rm_is_evaluated_on_pairs_of_the_file_that_it_did_not_see(real_run):
    folder, stages, recipe = real_run
    metrics = stages["rm"]["metrics"]
    loaded = load_rankings(recipe.rm.data, recipe.worlds, "rm.data")
    assert metrics["train_rankings"] + sum(metrics["left_out_rankings"].values()) == len(loaded.train)
    assert 0.5 * len(loaded.validation) < metrics["eval_pairs"] <= len(loaded.validation)
    assert "annotator_agreement" not in metrics
    # at this size it is no better than a rule of thumb, and the verdict names it
    assert stages["rm"]["verdict"]["status"] in ("warn", "fail")
    assert any("always choosing the" in reason for reason in stages["rm"]["verdict"]["reasons"])


def test_ppo_trains_on_no_validation_prompt(real_run):
    _, stages, recipe = real_run
    prompts = load_prompts(recipe.rm.data, recipe.worlds, "ppo.data")
    ranked = load_rankings(recipe.rm.data, recipe.worlds, "rm.data")
    train, validation = ({prompt_key(prompt) for prompt in side} for side in (prompts.train, prompts.validation))
    assert not train & validation
    assert validation == {prompt_key(ranking.prompt) for ranking in ranked.validation}
    assert 0 < stages["ppo"]["metrics"]["eval_prompts"] <= min(20, len(validation))


def test_ppo_s_verdict_names_the_reward_model_as_the_only_scorer(real_run):
    _, stages, _ = real_run
    reasons = stages["ppo"]["verdict"]["reasons"]
    assert any(reason.startswith("Only the reward model scored this: its score on validation") for reason in reasons)
    assert "win_rate" not in stages["ppo"]["metrics"]


def test_sft_without_an_oracle_is_evaluated_by_whether_it_heeds_the_question(real_run):
    _, stages, _ = real_run
    assert {"question_gain", "question_gain_low"} <= set(stages["sft"]["metrics"])
    assert any("likelier under their own question" in reason for reason in stages["sft"]["verdict"]["reasons"])


def test_its_data_must_be_given(tmp_path, chatpipe):
    said = chatpipe("run", "small-real", f"out={tmp_path}/run")
    assert said.code == 2
    assert "pretrain.data is not given.\nGive a file: pretrain.data=FILE" in said.err
    assert not (tmp_path / "run").exists()
