"""Rounds: each samples from the newest policy, ranks, trains a reward model on all rankings so far, then the policy."""

import json
import shutil

import pytest

from chatpipe.data.datasets import load_prompts
from chatpipe.evaluation.answers import evaluate_answers
from chatpipe.evaluation.policy import oracle_comparison
from chatpipe.models.manifest import checkpoint_id
from chatpipe.models.pretrained import load_causal_model, load_tokenizer
from chatpipe.ranking.completions import worlds_of_answers
from chatpipe.recipe import load_recipe
from chatpipe.recipe.schema import TRAINING_STAGES
from chatpipe.run.steps import step_of
from chatpipe.stages.shared import answering, oracle_of, validation_prompts


@pytest.fixture
def folder(tiny_run, work):
    shutil.copytree(tiny_run.folder, work / "run")
    return work / "run"


def rows_of(path):
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def manifest(folder):
    return json.loads((folder / "chatpipe.json").read_text())


def win_rate_over_sft(folder):
    """How often the oracle prefers the answers of the second round's policy to those of sft."""
    step = step_of(load_recipe(str(folder / "recipe.yaml"), [f"out={folder}", "rounds=2"]).recipe, "ppo", 2)
    tokenizer = load_tokenizer(folder / "sft")
    validation = load_prompts(step.data["ppo.data"], step.recipe.worlds, "ppo.data").validation
    models = [load_causal_model(folder / stage) for stage in ("ppo.2", "sft")]
    context = models[0].config.max_position_embeddings
    params, seed = answering(step, tokenizer, context), step.recipe.seed
    prompts = validation_prompts(step, tokenizer, validation, context, params.max_new_tokens)
    new, old = (evaluate_answers(model, tokenizer, prompts, params, seed, oracle_of(step)).ratings for model in models)
    return oracle_comparison(new, old, step.recipe.seed)


def test_a_second_round_continues_the_first_and_resumes_wherever_it_was_interrupted(folder, chatpipe):
    command = ("run", folder / "recipe.yaml", f"out={folder}", "rounds=2", "--json")
    stages = chatpipe(*command).object["stages"]
    assert [(stage["stage"], stage["round"], stage["skipped"]) for stage in stages] == [
        *((stage, 1, True) for stage in ("pretrain", "sft", "sample", "rank", "rm", "ppo")),
        *((stage, 2, False) for stage in ("sample", "rank", "rm", "ppo")),
    ]
    rm, ppo = manifest(folder / "rm.2"), manifest(folder / "ppo.2")
    assert list(rm["data"]["rm.data"]) == ["rank/rankings.jsonl", "rank.2/rankings.jsonl"]
    assert rm["parents"] == {"rm.model": checkpoint_id(str(folder / "sft"))}
    assert manifest(folder / "sample.2")["parents"] == {"sample.model": checkpoint_id(str(folder / "ppo"))}
    assert ppo["parents"] == {
        "ppo.model": checkpoint_id(str(folder / "ppo")),
        "ppo.reward_model": checkpoint_id(str(folder / "rm.2")),
    }
    assert (rm["round"], ppo["round"]) == (2, 2)
    measured, before, over_sft = ppo["metrics"], manifest(folder / "ppo")["metrics"], win_rate_over_sft(folder)
    # The policy of the round before was measured against sft on the same prompts when that round ended.
    for end in ("", "_low", "_high"):
        assert measured[f"win_rate_over_first_before{end}"] == before[f"win_rate{end}"]
        assert measured[f"win_rate_over_first{end}"] == over_sft[f"win_rate{end}"]
    first, second = (rows_of(folder / name / "rankings.jsonl") for name in ("rank", "rank.2"))
    assert {row["round"] for row in second} == {2}
    assert rm["metrics"]["train_rankings"] > len(first)  # of both rounds, without the validation split

    again = chatpipe(*command)
    assert all(stage["skipped"] for stage in again.object["stages"])

    # A run that was killed while it sampled.
    sampled = folder / "sample.2" / "completions.jsonl"
    whole = sampled.read_bytes()
    sampled.with_name(sampled.name + ".0-of-1.partial").write_bytes(whole[: len(whole) // 2])
    sampled.unlink()
    (folder / "sample.2" / "chatpipe.json").unlink()
    for stage in ("rank.2", "rm.2", "ppo.2"):
        shutil.rmtree(folder / stage)
    assert chatpipe(*command).code == 0
    assert sampled.read_bytes() == whole
    assert rows_of(folder / "rank.2" / "rankings.jsonl") == second
    for stage, before in (("rm.2", rm), ("ppo.2", ppo)):
        assert manifest(folder / stage)["files"] == before["files"]


def test_a_stage_that_was_deleted_or_broke_off_is_made_again_and_what_follows_it_is_kept(folder, chatpipe):
    command = ("run", folder / "recipe.yaml", f"out={folder}", "--json")

    def skipped():
        return [stage["skipped"] for stage in chatpipe(*command).object["stages"]]

    shutil.rmtree(folder / "rm")
    refused = chatpipe(*command, "ppo.kl_coef=0.3")  # before rm is trained
    assert (refused.code, (folder / "rm").exists()) == (2, False)
    assert "holds another ppo:\nppo.kl_coef was " in refused.err
    assert skipped() == [True, True, True, True, False, True]
    before = checkpoint_id(str(folder / "rm"))
    (folder / "rm" / "chatpipe.json").unlink()  # as of a kill behind the last step
    assert skipped() == [True, True, True, True, False, True]
    assert checkpoint_id(str(folder / "rm")) == before

    # Also where the run has been moved: this one was made in the folder of another test.
    completions = (folder / "sample" / "completions.jsonl").read_bytes()
    shutil.rmtree(folder / "sample")
    assert skipped() == [True, True, False, True, True, True]
    assert (folder / "sample" / "completions.jsonl").read_bytes() == completions
    worlds = worlds_of_answers(folder / "sample" / "completions.jsonl")  # by the model that the file names
    assert worlds == load_recipe(str(folder / "recipe.yaml")).recipe.worlds


def test_weights_that_nothing_reads_any_more_may_be_deleted(folder, chatpipe):
    command = ("run", folder / "recipe.yaml", f"out={folder}", "--json")
    (folder / "pretrain" / "model.safetensors").unlink()
    assert all(stage["skipped"] for stage in chatpipe(*command).object["stages"])
    alone = chatpipe("pretrain", folder / "recipe.yaml", f"out={folder}")
    assert (alone.code, "`chatpipe pretrain ... --fresh` makes it again" in alone.err) == (2, True)
    shutil.rmtree(folder / "sft")
    refused = chatpipe(*command)
    assert (refused.code, "its weights are missing" in refused.err) == (
        2,
        True,
    )


@pytest.mark.parametrize(
    ("command", "rater", "told"),
    [("rm", "rm", "cannot be the folder of rm: it holds"), ("run", "rm.2", "which --fresh deletes")],
)
def test_fresh_does_not_delete_the_rater_that_it_is_to_ask(folder, chatpipe, listing, command, rater, told):
    shutil.copytree(folder / "rm", folder / "rm.2")  # as a second round leaves it
    before = [listing(folder / stage) for stage in TRAINING_STAGES]
    rated = f"rank.rater={folder / rater}"
    said = chatpipe(command, folder / "recipe.yaml", f"out={folder}", rated, "--fresh")
    assert said.code == 2
    assert told in said.err
    assert [listing(folder / stage) for stage in TRAINING_STAGES] == before


def test_one_stage_of_a_later_round_and_an_answer_to_what_is_missing(folder, chatpipe):
    recipe = (folder / "recipe.yaml").read_text()
    said = chatpipe("ppo", folder / "recipe.yaml", f"out={folder}", "round=2")
    assert said.code == 2
    assert "Run `chatpipe rm ... round=2` first, or give a model with ppo.reward_model=FOLDER (--reward)." in said.err
    said = chatpipe("rm", folder / "recipe.yaml", f"out={folder}", "round=3")
    assert said.code == 2
    assert f"sample.3 starts from what ppo.2 makes, but there is no {folder}/ppo.2 yet." in said.err
    assert "Run `chatpipe ppo ... round=2` first." in said.err
    assert not (folder / "rm.3").exists()
    said = chatpipe("rm", folder / "recipe.yaml", f"out={folder}", "round=2", "rm.age_weight=0", "--json")
    assert said.object["out"] == f"{folder}/rm.2"
    assert list(manifest(folder / "rm.2")["data"]["rm.data"]) == ["rank.2/rankings.jsonl"]
    assert (folder / "recipe.yaml").read_text() == recipe


def test_a_stage_that_comes_once_has_no_later_round(folder, chatpipe):
    said = chatpipe("sft", folder / "recipe.yaml", f"out={folder}", "round=2")
    assert said.code == 2
    assert "round = 2: sft comes once, in the first round." in said.err
    assert "rounds have sample, rank, rm, ppo" in said.err
