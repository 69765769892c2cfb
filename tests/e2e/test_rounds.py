"""Rounds: each samples from the newest policy, ranks, trains the reward model on all rankings so far, and goes on."""

import json
import shutil

import pytest

from chatpipe.checkpoints import checkpoint_id
from chatpipe.ranking.items import read_items
from chatpipe.ranking.session import Session
from chatpipe.ranking.store import Store


@pytest.fixture
def folder(tiny_run, work):
    shutil.copytree(tiny_run.folder, work / "run")
    return work / "run"


def rows_of(path):
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def manifest(folder):
    return json.loads((folder / "chatpipe.json").read_text())


def test_a_second_round_goes_on_from_the_first_and_from_wherever_it_broke_off(folder, chatpipe):
    command = ("run", folder / "recipe.yaml", f"out={folder}", "rounds=2", "--json")
    stages = chatpipe(*command).object["stages"]
    assert [(stage["stage"], stage.get("round", 1), stage["skipped"]) for stage in stages] == [
        *((stage, 1, True) for stage in ("pretrain", "sft", "rm", "ppo")),
        *((stage, 2, False) for stage in ("rm", "ppo")),
    ]
    rm, ppo = manifest(folder / "rm.2"), manifest(folder / "ppo.2")
    assert list(rm["data"]["rm.data"]) == ["rankings/round-1.jsonl", "rankings/round-2.jsonl"]
    assert rm["parents"] == {"rm.model": checkpoint_id(str(folder / "sft"))}
    assert ppo["parents"] == {
        "ppo.model": checkpoint_id(str(folder / "ppo")),
        "ppo.reward_model": checkpoint_id(str(folder / "rm.2")),
    }
    assert (rm["round"], ppo["round"]) == (2, 2)
    assert 0 < ppo["metrics"]["win_rate_over_first"] < 1
    first, second = (rows_of(folder / "rankings" / f"round-{number}.jsonl") for number in (1, 2))
    assert {row["round"] for row in second} == {2}
    assert rm["metrics"]["train_rankings"] > len(first)  # of both rounds, without those held out

    again = chatpipe(*command)
    assert all(stage["skipped"] for stage in again.object["stages"])

    # A run that was killed while it sampled.
    sampled = folder / "rankings" / "round-2.completions.jsonl"
    whole = sampled.read_bytes()
    sampled.with_name(sampled.name + ".partial").write_bytes(whole[: len(whole) // 2])
    sampled.unlink()
    for suffix in ("jsonl", "json", "db"):
        (folder / "rankings" / f"round-2.{suffix}").unlink()
    for stage in ("rm.2", "ppo.2"):
        shutil.rmtree(folder / stage)
    assert chatpipe(*command).code == 0
    assert rows_of(folder / "rankings" / "round-2.jsonl") == second
    for stage, before in (("rm.2", rm), ("ppo.2", ppo)):
        assert manifest(folder / stage)["files"] == before["files"]


def test_one_stage_of_a_later_round_and_an_answer_to_what_is_missing(folder, chatpipe):
    said = chatpipe("ppo", folder / "recipe.yaml", f"out={folder}", "round=2")
    assert said.code == 2
    assert "Run `chatpipe rm ... round=2` first, or give a model with --reward." in said.err
    said = chatpipe("rm", folder / "recipe.yaml", f"out={folder}", "round=3")
    assert said.code == 2
    assert f"Round 3 ranks answers of {folder}/ppo.2, which is not there yet." in said.err
    assert "Run `chatpipe ppo ... round=2` first." in said.err
    assert not (folder / "rm.3").exists()
    said = chatpipe("rm", folder / "recipe.yaml", f"out={folder}", "round=2", "rm.age_weight=0", "--json")
    assert said.object["out"] == f"{folder}/rm.2"
    assert list(manifest(folder / "rm.2")["data"]["rm.data"]) == ["rankings/round-2.jsonl"]
    recipe = (folder / "recipe.yaml").read_text()
    assert "\nround: 1\n" in recipe


def test_a_run_waits_for_people_and_goes_on_when_they_have_ranked(folder, chatpipe):
    for stage in ("rm", "ppo"):
        shutil.rmtree(folder / stage)
    shutil.rmtree(folder / "rankings")
    command = ("run", folder / "recipe.yaml", f"out={folder}", "rank.rater=people", "sample.prompts=40", "--json")
    waiting = chatpipe(*command)
    assert waiting.code == 3
    completions, store = (folder / "rankings" / f"round-1.{suffix}" for suffix in ("completions.jsonl", "db"))
    items = read_items(completions)
    told = f"Round 1 waits for people: 0 of {len(items)} prompts are ranked."
    assert told in waiting.err
    assert f"chatpipe rank {completions} --store {store}" in waiting.err
    said = json.loads(waiting.out)
    assert [stage["stage"] for stage in said["stages"]] == ["pretrain", "sft"]
    assert said["waiting"].startswith(told)

    with Store.create_or_open(store, items, seed=0, overlap=1, repeats=0.05) as opened:
        opened.add_annotator("ann", "person")
        session = Session(opened, "ann")
        view = session.view()
        answered = 0
        while view.task is not None:
            if answered == 7:
                assert f"{7} of {len(items)} prompts are ranked" in chatpipe(*command).err
            shortest_first = sorted(view.responses, key=lambda text: (len(text), text))
            ranks = [shortest_first.index(text) + 1 for text in view.responses]
            answer = {**view.answer, "ranks": ranks}
            if answered == 3:
                view = session.act(f"key {answered}", "skip", view.task, None, "both are nonsense")
            else:
                view = session.act(f"key {answered}", "submit", view.task, answer)
            answered += 1
    done = chatpipe(*command)
    assert [stage["stage"] for stage in done.object["stages"]] == ["pretrain", "sft", "rm", "ppo"]
    rankings = rows_of(folder / "rankings" / "round-1.jsonl")
    assert len(rankings) == len(items) - 1
    assert {row["annotator"] for row in rankings} == {"ann"}
    for row in rankings:
        lengths = [len(text) for text in row["responses"]]
        assert [lengths[i] for i in sorted(range(len(lengths)), key=row["ranks"].__getitem__)] == sorted(lengths)


def test_what_people_were_shown_is_not_sampled_anew(folder, chatpipe):
    for stage in ("rm", "ppo"):
        shutil.rmtree(folder / stage)
    shutil.rmtree(folder / "rankings")
    command = ("run", folder / "recipe.yaml", f"out={folder}", "rank.rater=people", "sample.prompts=20")
    assert chatpipe(*command).code == 3
    before = (folder / "rankings" / "round-1.completions.jsonl").read_bytes()
    said = chatpipe(*command, "sample.temperature=0.5")
    assert said.code == 2
    assert "was sampled in another way" in said.err
    assert (folder / "rankings" / "round-1.completions.jsonl").read_bytes() == before
