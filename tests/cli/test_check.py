"""`chatpipe check`: all that is wrong with a recipe, before it runs."""

import json

from chatpipe.recipe.schema import TRAINING_STAGES, checks_of


def by_name(checks, status):
    return {(one["stage"], one["what"]): one for one in checks if one["status"] == status}


def names(checks, stage):
    return {one["what"].removeprefix("checks.") for one in checks if one["stage"] == stage and "checks." in one["what"]}


def test_a_recipe_whose_models_are_yet_to_be_made(chatpipe, listing):
    said = chatpipe("check", "pocket", "checks.double_bos=false", "--json").object
    assert said["ok"] is True
    assert {one["status"] for one in said["checks"]} == {"ok", "off", "not yet"}
    for stage in TRAINING_STAGES:
        assert names(said["checks"], stage) == set(checks_of(stage))
    assert ("pretrain", "checks.validation_seen") in by_name(said["checks"], "ok")
    assert set(by_name(said["checks"], "off")) == {(stage, "checks.double_bos") for stage in ("sft", "rm", "ppo")}
    later = by_name(said["checks"], "not yet")
    assert later["sft", "checks.turns_lost"]["found"] == "there is no runs/pocket/pretrain yet; pretrain makes it"
    assert later["pretrain", "checks.unknown_tokens"]["found"] == "shows once the stage has made its data"
    assert listing() == {}


def test_the_checks_of_a_run_whose_models_are_there_are_those_of_its_stages(chatpipe, tiny_run):
    said = chatpipe("check", tiny_run.recipe, "--json").object
    assert said["ok"] is True
    for stage in TRAINING_STAGES:
        assert names(said["checks"], stage) == set(checks_of(stage))
    assert {stage for stage, _ in by_name(said["checks"], "not yet")} == {"pretrain"}
    assert by_name(said["checks"], "off").keys() == {("ppo", "checks.reward_at_chance")}
    assert by_name(said["checks"], "ok")["rm", "rm.model"]["found"].startswith(f"{tiny_run.folder}/sft")


def test_all_problems_are_reported_and_the_command_exits_with_2(chatpipe, chats, make_model):
    wrong = make_model("reward", "GPT2LMHeadModel")
    said = chatpipe(
        *("check", "pocket", f"ppo.reward_model={wrong}", "sft.data=none.jsonl", "pretrain.block_size=256"),
        *("rm.per_device_train_batch_size=3", f"rm.data={chats}", "--json"),
    )
    assert said.code == 2
    found = json.loads(said.out)
    assert found["ok"] is False
    failed = by_name(found["checks"], "failed")
    assert {what for _, what in failed} == {
        "pretrain.architecture",
        "sft.data",
        "rm.data",
        "rm.batch_size",
        "ppo.reward_model",
    }
    assert failed["sft", "sft.data"]["found"] == "sft.data: there is no file none.jsonl."
    assert all(one["remedy"] for one in failed.values())
    assert "there is no file none.jsonl." in said.err


def test_a_check_that_fails_has_the_message_of_the_stage(chatpipe, work, tiny_run):
    questions = [text for i in range(60) for text in (f"Who is number {i}?", f"WHO IS NUMBER {i}?")]
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": "Me."}] for text in questions]
    (work / "doubles.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    words = ("out=new", f"sft.model={tiny_run.folder / 'pretrain'}", "sft.data=doubles.jsonl")
    said = chatpipe("check", tiny_run.recipe, *words, "--json")
    assert said.code == 2
    found = by_name(json.loads(said.out)["checks"], "failed")
    assert list(found) == [("sft", "checks.validation_seen")], found
    [failed] = found.values()
    stage = chatpipe("sft", tiny_run.recipe, *words)
    assert f"checks.validation_seen: {failed['found']}\n  {failed['remedy']}\n" in stage.err


def test_checks_of_a_reward_model_where_there_is_none(chatpipe, work, tiny_run, monkeypatch):
    (work / "lengths.py").write_text(
        "def short(prompts, completions, **rest):\n    return [0.0 for _ in completions]\n"
    )
    monkeypatch.syspath_prepend(work)
    words = (f"ppo.model={tiny_run.folder}/sft", "ppo.reward=[{function: 'lengths:short'}]")
    said = chatpipe("check", tiny_run.recipe, "out=new", *words, "--json").object
    assert "ppo" not in {stage for stage, _ in by_name(said["checks"], "not yet")}
    fine = by_name(said["checks"], "ok")
    for name in ("score_not_on_eos", "batch_changes_score"):
        assert fine["ppo", f"checks.{name}"]["found"] == "there is no reward model"


def test_a_check_needs_a_recipe(refused):
    assert "Which recipe?" in refused("check")
