"""Which stage a run begins with, and which models take the place of those that it does not make."""

import pytest
from pydantic import ValidationError

from chatpipe.errors import UsageError
from chatpipe.recipe import Recipe
from chatpipe.run.folder import steps_in_folder
from chatpipe.run.step_checks import check_recipe
from chatpipe.run.steps import steps_for, steps_of
from stub_models import write_stub_model

FROM_SFT = ["sft", "sample", "rank", "rm", "ppo"]
FROM_RM = FROM_SFT[1:]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(recipe):
    return [step.name for step in steps_of(recipe)]


def problem(**sections):
    with pytest.raises(UsageError) as raised:
        check_recipe(Recipe(**sections))
    return f"{raised.value.message}\n{raised.value.hint}"


@pytest.mark.parametrize(
    "sections, expected",
    [
        ({"pretrain": {"data": "b.txt"}, "sft": {"data": "c.jsonl"}}, ["pretrain", *FROM_SFT]),
        ({"pretrain": {"data": "b.txt"}, "sft": {"model": "m", "data": "c.jsonl"}}, ["pretrain", *FROM_SFT]),
        ({"pretrain": {"model": "m"}, "sft": {"model": "m", "data": "c.jsonl"}}, ["pretrain", *FROM_SFT]),
        ({"sft": {"model": "m", "data": "c.jsonl"}}, FROM_SFT),
        ({"sft": {"model": "m"}}, FROM_SFT),
        ({"sft": {"model": "m", "data": "c.jsonl"}, "rm": {"data": "r.jsonl"}}, ["sft", "rank", "rm", "ppo"]),
        ({"sft": {"model": "m", "data": "c.jsonl"}, "rm": {"model": "m"}, "ppo": {"model": "m"}}, FROM_SFT),
        ({"rm": {"model": "m"}, "ppo": {"model": "m"}, "sample": {"data": "p.jsonl"}}, FROM_RM),
        ({"rm": {"model": "m"}, "sample": {"data": "p.jsonl"}}, FROM_RM),
        ({"rm": {"model": "m", "data": "r.jsonl"}, "ppo": {"model": "m"}}, ["rank", "rm", "ppo"]),
        (
            {"sft": {"model": "m"}, "rm": {"model": "m", "data": "r.jsonl"}, "ppo": {"model": "m"}},
            ["rank", "rm", "ppo"],
        ),
        ({"ppo": {"model": "m", "reward_model": "r", "data": "p.jsonl"}}, ["ppo"]),
        ({"ppo": {"model": "m", "reward": [{"function": "a:b"}], "data": "p.jsonl"}}, ["ppo"]),
        ({"rm": {"data": "r.jsonl"}, "ppo": {"model": "m", "reward_model": "r"}}, ["ppo"]),
        ({"sample": {"data": "p.jsonl"}, "ppo": {"model": "m"}}, ["pretrain", *FROM_SFT]),
    ],
)
def test_a_run_begins_with_the_first_stage_whose_input_is_given(sections, expected):
    assert names(Recipe(**sections)) == expected


@pytest.mark.parametrize("start, expected", [("sft", FROM_SFT), ("rm", FROM_RM), ("ppo", ["ppo"])])
def test_the_key_start_wins_over_what_is_given(start, expected):
    sections = {"pretrain": {"data": "b.txt"}, "sft": {"model": "m", "data": "c.jsonl"}}
    assert names(Recipe(start=start, **sections)) == expected


def test_start_names_a_stage_that_trains():
    with pytest.raises(ValidationError, match="start"):
        Recipe(start="rank")


def test_later_rounds_have_all_their_stages():
    recipe = Recipe(rounds=2, ppo={"model": "m", "reward_model": "r"}, sample={"data": "p.jsonl"})
    assert names(recipe) == ["ppo", "sample.2", "rank.2", "rm.2", "ppo.2"]
    rm = steps_of(recipe)[3]
    assert (rm.models["model"], rm.makers["rm.data"]) == ("m", ("rank.2",))


def models(recipe):
    return {step.stage: step.models["model"] for step in steps_of(recipe) if "model" in step.models}


def test_the_model_that_is_given_answers_and_is_trained():
    only_policy = {"start": "rm", "ppo": {"model": "m"}}
    for given in ({"rm": {"model": "m"}}, {"rm": {"model": "m"}, "ppo": {"model": "m"}}, only_policy):
        recipe = Recipe(sample={"data": "p.jsonl"}, **given)
        assert models(recipe) == {"sample": "m", "rm": "m", "ppo": "m"}
    other_body = Recipe(sample={"data": "p.jsonl"}, rm={"model": "encoder"}, ppo={"model": "m"})
    assert models(other_body) == {"sample": "m", "rm": "encoder", "ppo": "m"}
    from_sft = Recipe(out="run", sft={"model": "m", "data": "c.jsonl"}, rm={"data": "r.jsonl"})
    assert models(from_sft) == {"sft": "m", "rm": "run/sft", "ppo": "run/sft"}


def test_what_nothing_says_where_to_begin_names_both_ways():
    for sections in ({}, {"sft": {"data": "c.jsonl"}}, {"rm": {"data": "r.jsonl"}}):
        told = problem(**sections)
        assert "pretrain.data is not given." in told
        assert "pretrain.data=FILE" in told
        assert "sft.model=FOLDER" in told


def test_a_start_without_its_model_names_the_key(tmp_path):
    (tmp_path / "c.jsonl").write_text("".join(f'{{"prompt": "Is it {n}?", "completion": "b"}}\n' for n in range(60)))
    assert "sft.model=FOLDER" in problem(start="sft", sft={"data": "c.jsonl"})
    assert "ppo.model=FOLDER" in problem(start="ppo", ppo={"data": "c.jsonl"})


def test_text_that_is_mixed_in_is_asked_for_by_its_own_key(tmp_path):
    write_stub_model("m")
    (tmp_path / "c.jsonl").write_text("".join(f'{{"prompt": "Is it {n}?", "completion": "b"}}\n' for n in range(60)))
    told = problem(sft={"model": "m", "data": "c.jsonl", "pretrain_mix": 0.2})
    assert "pretrain.data is not given." in told
    assert "start=sft" in told
    assert "leave sft.pretrain_mix out" in told


def test_a_command_of_one_stage_has_its_steps_wherever_the_run_begins():
    recipe = Recipe(sample={"data": "p.jsonl"}, ppo={"model": "m", "reward_model": "r"})
    assert [step.name for step in steps_for(recipe, "rm")] == ["sample", "rank", "rm"]
    assert [step.name for step in steps_for(recipe, "sft")] == ["sft"]


def test_fresh_deletes_no_stage_before_the_first_one(tmp_path):
    for stage in ("pretrain", "sft", "sample"):
        (tmp_path / "run" / stage).mkdir(parents=True)
    recipe = Recipe(out="run", start="sft", sft={"data": "c.jsonl"}, rm={"data": "r.jsonl"})
    assert [step.name for step in steps_in_folder(recipe)] == ["sft", "sample", "rank", "rm", "ppo"]
