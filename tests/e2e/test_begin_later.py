"""Runs that begin with a model that somebody has: at sft, at rm and at ppo."""

import shutil
import sys

import pytest
import yaml
from own_files import FEW_PROMPTS, LEARN, as_messages, asked, write_rows

SMALL_STEPS = (*LEARN["sft"], *LEARN["rm"], *LEARN["ppo"], *FEW_PROMPTS, "sft.num_train_epochs=1")
NO_DOUBT = ("checks.reward_at_chance=false",)  # so little training makes no reward model


@pytest.fixture
def chat_model(tiny_run, work):
    """A chat model as somebody gets it: without a manifest, resume points or a run around it."""
    ours = {"chatpipe.json", "metrics.jsonl", "checkpoints", "README.md", "recipe.yaml"}
    return shutil.copytree(tiny_run.folder / "sft", work / "models" / "tiny", ignore=lambda _, names: ours & {*names})


@pytest.fixture
def liking(work, monkeypatch):
    """A module of the user's own whose `score` likes short answers."""
    monkeypatch.syspath_prepend(work)
    monkeypatch.delitem(sys.modules, "liking", raising=False)
    (work / "liking.py").write_text(
        "def score(prompts, completions):\n    return [-len(text) for text in completions]\n"
    )
    return "liking:score"


@pytest.fixture
def recipe(work):
    """Writes a recipe with the given sections; returns its path."""

    def write(**sections):
        path = work / "mine.yaml"
        path.write_text(yaml.safe_dump({"out": str(work / "run"), **sections}))
        return path

    return write


def stages(said):
    return [stage["stage"] for stage in said.object["stages"]]


def test_a_run_from_a_chat_model_through_every_stage_after_pretraining(work, chat_model, liking, recipe, chatpipe):
    every = asked()[:160]
    chats = write_rows(work / "chats.jsonl", [as_messages(one.question, one.right) for one in every])
    prompts = write_rows(work / "prompts.jsonl", [{"prompt": one.question} for one in every])
    mine = recipe(
        sft={"model": str(chat_model), "data": str(chats)},
        sample={"data": str(prompts), "prompts": 48, "k": 3, "max_new_tokens": 16},
        rank={"rater": liking},
    )
    command = ("run", mine, *SMALL_STEPS, *NO_DOUBT, "--json")

    checked = chatpipe("check", mine, *SMALL_STEPS, "--json")
    assert {one["stage"] for one in checked.object["checks"]} == {"", "sft", "sample", "rank", "rm", "ppo"}
    planned = chatpipe(*command, "--dry-run")
    assert stages(planned) == ["sft", "sample", "rank", "rm", "ppo"]
    shown = chatpipe("data", "show", mine, "sft", "--json")
    assert shown.object["tokenizer"] == str(chat_model)
    assert not (work / "run").exists()

    ran = chatpipe(*command)
    assert stages(ran) == ["sft", "sample", "rank", "rm", "ppo"]
    assert {path.name for path in (work / "run").iterdir()} == {"recipe.yaml", "sft", "sample", "rank", "rm", "ppo"}
    again = chatpipe("run", work / "run" / "recipe.yaml", "--json")
    assert stages(again) == stages(ran)
    assert all(stage["skipped"] for stage in again.object["stages"])


def test_a_run_that_begins_with_rankings(work, chat_model, recipe, chatpipe):
    pairs = [{"prompt": one.question, "chosen": one.right, "rejected": one.wrong} for one in asked()[:160]]
    mine = recipe(rm={"model": str(chat_model), "data": str(write_rows(work / "pairs.jsonl", pairs))})
    ran = chatpipe("run", mine, *SMALL_STEPS, *NO_DOUBT, "--json")
    assert stages(ran) == ["rank", "rm", "ppo"]

    # ppo alone, from its parts.
    reward = f"ppo.reward_model={work / 'run' / 'rm'}"
    prompts = f"ppo.data={work / 'pairs.jsonl'}"
    only = recipe(out=str(work / "only"), ppo={"model": str(chat_model)})
    ran = chatpipe("run", only, reward, prompts, *LEARN["ppo"], *FEW_PROMPTS, *NO_DOUBT, "--json")
    assert stages(ran) == ["ppo"]
    assert {path.name for path in (work / "only").iterdir()} == {"recipe.yaml", "ppo"}


def test_a_run_with_start_takes_what_is_in_its_folder_and_keeps_it(tiny_run, work, chatpipe):
    folder = shutil.copytree(tiny_run.folder, work / "run")
    command = ("run", folder / "recipe.yaml", f"out={folder}", "start=rm")
    planned = chatpipe(*command, "--dry-run", "--json")
    assert stages(planned) == ["sample", "rank", "rm", "ppo"]
    assert planned.object["stages"][0]["models"] == str(folder / "sft")
    refused = chatpipe(*command, f"out={work / 'other'}")
    assert refused.code == 2
    assert "rm.model=FOLDER" in refused.err
