import json
from pathlib import Path

import pytest

from chatpipe.errors import UsageError
from chatpipe.models.manifest import write_manifest
from chatpipe.recipe import Recipe
from chatpipe.stages.step import Step, answering_model, in_round, rankings_blocks, rankings_file, stage_data
from chatpipe.stages.step_checks import check_step
from stub_models import write_stub_model


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """In an empty folder, and not as a rank of a launcher."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def recipe() -> Recipe:
    """A recipe over files, all of which are there."""
    chats = [[("user", f"Question {i}?"), ("assistant", "Yes.")] for i in range(60)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"Question {i}?", "chosen": "a", "rejected": "b"} for i in range(60)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    Path("book.txt").write_text("A line.\n" * 50)
    return Recipe(out="run", pretrain={"data": "book.txt"}, sft={"data": "chats.jsonl"}, rm={"data": "pairs.jsonl"})


def changed(recipe: Recipe, section: str, **values: object) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def finish(step: Step) -> None:
    """Leaves what a finished stage leaves."""
    kind = "GPT2ForSequenceClassification" if step.stage == "rm" else "GPT2LMHeadModel"
    write_stub_model(str(step.folder), kind)
    step.begin()
    write_manifest(step.folder, step.manifest())


def begin_and_save(step: Step) -> None:
    """Leaves what a stage leaves that broke off after its first resume point."""
    step.begin()
    Path(step.folder, "checkpoints", "step-3").mkdir()


def problem_of(check, *arguments: object) -> str:
    with pytest.raises(UsageError) as caught:
        check(*arguments)
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert len(text.splitlines()) <= 8
    return text


def test_each_stage_starts_from_what_the_one_before_it_made(recipe):
    assert Step.of(recipe, "pretrain").models == {}
    assert Step.of(recipe, "sft").models == {"model": "run/pretrain"}
    assert Step.of(recipe, "rm").models == {"model": "run/sft"}
    assert Step.of(recipe, "ppo").models == {"model": "run/sft", "reward_model": "run/rm"}


def test_a_model_of_the_recipe_comes_before_the_run_s_own(recipe):
    assert Step.of(changed(recipe, "sft", model="gpt2"), "sft").models == {"model": "gpt2"}
    assert Step.of(changed(recipe, "pretrain", model="gpt2"), "pretrain").models == {"model": "gpt2"}
    assert Step.of(changed(recipe, "ppo", reward_model="r"), "ppo").models == {"model": "run/sft", "reward_model": "r"}


def test_a_stage_writes_into_the_run_or_into_a_folder_of_its_own(recipe):
    assert Step.of(recipe, "sft").folder == Path("run/sft")
    assert Step.of(recipe, "sft", "elsewhere").folder == Path("elsewhere")


def test_what_a_stage_reads():
    given = Recipe(
        out="run",
        pretrain={"data": "t.txt"},
        sft={"data": "c.jsonl", "pretrain_mix": 0.2},
        sample={"data": "p.jsonl"},
    )
    sources = {
        stage: {key: [block.source for block in blocks] for key, blocks in stage_data(given, stage).items()}
        for stage in ("pretrain", "sft", "rm", "ppo")
    }
    assert sources == {
        "pretrain": {"pretrain.data": ["t.txt"]},
        "sft": {"sft.data": ["c.jsonl"], "pretrain.data": ["t.txt"]},
        "rm": {"rm.data": ["run/rankings/round-1.jsonl"], "sft.data": ["c.jsonl"]},
        "ppo": {"ppo.data": ["p.jsonl"]},
    }
    assert rankings_file(given) == Path("run/rankings/round-1.jsonl")
    with_pairs = given.model_copy(update={"rm": Recipe(rm={"data": "pairs.jsonl"}).rm})
    assert [block.source for block in rankings_blocks(with_pairs)] == ["pairs.jsonl"]
    assert [block.source for block in stage_data(with_pairs, "ppo")["ppo.data"]] == ["pairs.jsonl"]


def test_later_rounds_go_on_from_the_newest_policy_and_keep_what_was_ranked():
    given = Recipe(out="run", rounds=3, sample={"data": "pocketworld"}, ppo={"model": "mine"}, rm={"age_weight": 0.5})
    assert [(step.stage, str(step.folder)) for step in Step.all_of(given)] == [
        ("pretrain", "run/pretrain"),
        ("sft", "run/sft"),
        ("rm", "run/rm"),
        ("ppo", "run/ppo"),
        ("rm", "run/rm.2"),
        ("ppo", "run/ppo.2"),
        ("rm", "run/rm.3"),
        ("ppo", "run/ppo.3"),
    ]
    *_, first, _, second, rm, third = Step.all_of(given)
    assert first.models == {"model": "mine", "reward_model": "run/rm"}
    assert second.models == {"model": "run/ppo", "reward_model": "run/rm.2"}
    assert third.models == {"model": "run/ppo.2", "reward_model": "run/rm.3"}
    assert third.first_policy() == "mine"
    assert rm.models == {"model": "run/sft"}
    assert answering_model(rm.recipe) == "run/ppo.2"
    read = {block.source: block.weight for block in rm.data()["rm.data"]}
    assert read == {f"run/rankings/round-{number}.jsonl": weight for number, weight in ((1, 0.25), (2, 0.5), (3, 1))}


def test_the_first_round_may_read_rankings_of_others():
    given = Recipe(out="run", round=2, rm={"data": [{"source": "pairs.jsonl", "weight": 2}], "age_weight": 0.5})
    read = {block.source: block.weight for block in rankings_blocks(given)}
    assert read == {"pairs.jsonl": 1.0, "run/rankings/round-2.jsonl": 1.0}
    newest = given.model_copy(update={"rm": Recipe(rm={"data": "pairs.jsonl", "age_weight": 0}).rm})
    assert [block.source for block in rankings_blocks(newest)] == ["run/rankings/round-2.jsonl"]


def test_everything_a_run_needs_is_checked_before_it_starts(recipe):
    made: frozenset[str] = frozenset()
    for stage in ("pretrain", "sft", "rm", "ppo"):
        check_step(Step.of(recipe, stage), made_by_this_run=made)
        made |= {stage}
    assert not Path("run").exists()


def test_a_missing_parent_is_named_with_who_makes_it(recipe):
    told = problem_of(check_step, Step.of(recipe, "sft"))
    assert "sft starts from what pretrain makes, but there is no run/pretrain yet." in told
    assert "chatpipe pretrain" in told
    assert "--model" in told
    finish(Step.of(recipe, "pretrain"))
    finish(Step.of(recipe, "sft"))
    told = problem_of(check_step, Step.of(recipe, "ppo"))
    assert "ppo starts from what rm makes, but there is no run/rm yet." in told
    assert "--reward" in told


def test_a_model_of_the_wrong_kind_is_refused_by_key(recipe):
    write_stub_model("reward", "GPT2ForSequenceClassification")
    write_stub_model("chat")
    told = problem_of(check_step, Step.of(changed(recipe, "ppo", model="reward", reward_model="reward"), "ppo"))
    assert "ppo.model = reward is a reward model" in told
    told = problem_of(check_step, Step.of(changed(recipe, "ppo", model="chat", reward_model="chat"), "ppo"))
    assert "ppo.reward_model = chat is a causal language model" in told
    check_step(Step.of(changed(recipe, "ppo", model="chat", reward_model="reward"), "ppo"))


def test_data_that_cannot_be_used_is_found_by_the_check(recipe):
    Path("chats.jsonl").write_text('{"messages": []}\n{oops}\n')
    told = problem_of(check_step, Step.of(recipe, "sft"), frozenset({"pretrain"}))
    assert "this line is not JSON (first at chats.jsonl:2" in told
    told = problem_of(check_step, Step.of(changed(recipe, "rm", data=recipe.pretrain.data), "rm"))
    assert told.startswith("rm.data: ")
    assert "is running text" in told
    assert "sft.data is not given" in problem_of(check_step, Step.of(changed(recipe, "sft", data=None), "sft"))


def test_a_world_that_cannot_be_built_is_found_by_the_check():
    world = Recipe(pretrain={"data": "pocketworld"}, pocketworld={"people": 100_000})
    assert "100000 people" in problem_of(check_step, Step.of(world, "pretrain"))


def test_a_file_where_the_folder_should_be_is_refused(recipe):
    assert "book.txt is a file." in problem_of(check_step, Step.of(recipe, "pretrain", "book.txt"))


def test_a_stage_is_new_then_started_then_done(recipe):
    step = Step.of(recipe, "pretrain")
    assert step.standing() == "new"
    step.folder.mkdir(parents=True)
    assert step.standing() == "new"
    step.begin()
    assert step.standing() == "new"
    Path(step.folder, "checkpoints", "step-3.partial").mkdir()
    assert step.standing() == "new"
    Path(step.folder, "checkpoints", "step-3").mkdir()
    assert step.standing() == "started"
    finish(step)
    assert step.standing() == "done"


def test_a_finished_stage_whose_weights_are_gone_or_cut_off_is_not_whole(recipe):
    for number, again in ((1, "chatpipe rm ... --fresh"), (2, "chatpipe rm ... round=2 --fresh")):
        step = Step.of(in_round(recipe, number), "rm")
        write_stub_model(str(step.folder), "GPT2ForSequenceClassification")
        step.check_whole()
        weights = step.folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        told = problem_of(step.check_whole)
        assert f"{step.folder}/model.safetensors is not a complete safetensors file." in told
        assert f"`{again}` makes it anew." in told
        weights.unlink()
        assert f"{step.folder} is not a complete model folder: it has no weights." in problem_of(step.check_whole)


def test_what_broke_off_before_its_first_resume_point_may_be_changed(recipe):
    Step.of(recipe, "pretrain").begin()
    assert Step.of(changed(recipe, "pretrain", learning_rate=0.5), "pretrain").standing() == "new"


def test_a_run_that_was_moved_is_the_same_run(recipe):
    """The rankings that it made itself moved with it."""
    made = changed(recipe, "rm", data=None)
    made = changed(made, "sample", data=recipe.sft.data)
    rankings_file(made).parent.mkdir(parents=True)
    rankings_file(made).write_text('{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}\n')
    write_stub_model("run/sft")
    finish(Step.of(made, "rm"))
    Path("run").rename("moved")
    moved = made.model_copy(update={"out": "moved"})
    assert Step.of(moved, "rm").standing() == "done"
    rankings_file(moved).write_text('{"prompt": "a", "responses": ["b", "c"], "ranks": [2, 1]}\n')
    assert "rm.data (rankings/round-1.jsonl) was" in problem_of(Step.of(moved, "rm").standing)


def test_where_and_how_it_runs_makes_no_other_stage(recipe, monkeypatch):
    finish(Step.of(recipe, "pretrain"))
    other = changed(recipe, "pretrain", logging_steps=3, save_steps=7)
    other = other.model_copy(update={"processes": 2, "report_to": "tensorboard"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Step.of(other, "pretrain").standing() == "done"
    assert Step.of(changed(recipe, "sft", learning_rate=1.0), "pretrain").standing() == "done"


def test_when_sft_is_evaluated_counts_where_the_best_is_kept(recipe):
    write_stub_model("base")
    recipe = changed(recipe, "sft", model="base", eval_steps=5)
    begin_and_save(Step.of(recipe, "sft"))
    assert Step.of(changed(recipe, "sft", eval_steps=7), "sft").standing() == "started"
    best = changed(recipe, "sft", load_best_model_at_end=True).model_copy(update={"out": "best"})
    begin_and_save(Step.of(best, "sft"))
    told = problem_of(Step.of(changed(best, "sft", eval_steps=7), "sft").standing)
    assert "sft.eval_steps was 5, is 7 now" in told


def test_keys_that_came_later_count_only_where_they_are_used(recipe):
    step = Step.of(recipe, "pretrain")
    finish(step)
    manifest = Path("run/pretrain/chatpipe.json")
    stored = json.loads(manifest.read_text())
    del stored["settings"]["pretrain.optimizer"]
    manifest.write_text(json.dumps(stored))
    assert step.standing() == "done"
    told = problem_of(Step.of(changed(recipe, "pretrain", optimizer="muon"), "pretrain").standing)
    assert "pretrain.optimizer was not set, is muon now" in told


def test_keys_of_rankings_that_came_later_count_only_where_they_are_used(recipe):
    made = changed(changed(recipe, "rm", data=None), "sample", data=recipe.sft.data)
    rankings_file(made).parent.mkdir(parents=True)
    rankings_file(made).write_text('{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}\n')
    step = Step.of(made, "rm")
    finish(step)
    manifest = Path("run/rm/chatpipe.json")
    stored = json.loads(manifest.read_text())
    del stored["settings"]["rank.overlap"], stored["data"]["sample.data"]
    manifest.write_text(json.dumps(stored))
    assert step.standing() == "done"
    told = problem_of(Step.of(changed(made, "rank", overlap=2), "rm").standing)
    assert "rank.overlap was not set, is 2 now" in told


def test_a_changed_recipe_is_refused_with_what_changed(recipe):
    for leave in (begin_and_save, finish):
        leave(Step.of(recipe, "pretrain"))
        other = changed(recipe, "pretrain", learning_rate=0.5).model_copy(update={"seed": 4})
        told = problem_of(Step.of(other, "pretrain").standing)
        assert "run/pretrain holds another pretrain:" in told
        assert "seed was 0, is 4 now" in told
        assert "pretrain.learning_rate was 0.0006, is 0.5 now" in told
        assert "--fresh" in told


def test_what_makes_a_stage_of_a_later_round_anew_names_the_round(recipe):
    write_stub_model("run/ppo")
    for number, again in ((1, "`chatpipe rm ... --fresh`"), (2, "`chatpipe rm ... round=2 --fresh`")):
        in_round = recipe.model_copy(update={"round": number, "sample": recipe.sample.model_copy(update={"data": []})})
        Path(rankings_file(in_round)).parent.mkdir(parents=True, exist_ok=True)
        rankings_file(in_round).write_text("{}\n")
        finish(Step.of(in_round, "rm"))
        assert again in problem_of(Step.of(changed(in_round, "rm", learning_rate=0.5), "rm").standing)


def test_changed_data_is_refused_with_its_name(recipe):
    finish(Step.of(recipe, "pretrain"))
    Path("book.txt").write_text("Another line.\n" * 50)
    assert "pretrain.data (book.txt) was" in problem_of(Step.of(recipe, "pretrain").standing)


def test_another_parent_is_refused(recipe):
    write_stub_model("run/pretrain")
    finish(Step.of(recipe, "sft"))
    assert Step.of(recipe, "sft").standing() == "done"
    write_stub_model("run/pretrain", weights="others")
    assert "the model given as sft.model was" in problem_of(Step.of(recipe, "sft").standing)


def test_many_changes_are_summed_up(recipe):
    finish(Step.of(recipe, "pretrain"))
    values = {"learning_rate": 1.0, "warmup_steps": 9, "weight_decay": 0.3, "adam_beta1": 0.1, "adam_beta2": 0.2}
    told = problem_of(Step.of(changed(recipe, "pretrain", **values, max_steps=1), "pretrain").standing)
    assert "... and 2 more" in told


def test_the_built_in_world_and_how_rankings_are_made_decide_what_comes_out():
    Path("book.txt").write_text("A line.\n")
    world = Recipe(sample={"data": "pocketworld"}, ppo={"data": "pocketworld"}, pretrain={"data": "book.txt"})
    assert Step.of(world, "ppo").manifest().settings["pocketworld.people"] == 100
    assert "pocketworld.people" not in Step.of(world, "pretrain").manifest().settings
    Path("runs/chatpipe/rankings").mkdir(parents=True)
    Path("runs/chatpipe/rankings/round-1.jsonl").write_text("{}\n")
    made = Step.of(world, "rm").manifest().settings
    assert (made["sample.k"], made["rank.temperature"]) == (4, 0.5)


@pytest.mark.parametrize("name", ["thesis.md", "model.safetensors"])
def test_what_chatpipe_did_not_make_is_neither_used_nor_deleted(recipe, name):
    step = Step.of(recipe, "pretrain")
    step.folder.mkdir(parents=True)
    (step.folder / name).write_text("years of work")
    assert "run/pretrain holds something that chatpipe did not make" in problem_of(step.standing)
    assert "it is not deleted" in problem_of(step.clear)
    assert (step.folder / name).read_text() == "years of work"


def test_what_chatpipe_made_is_cleared_whole(recipe):
    step = Step.of(recipe, "pretrain")
    step.clear()
    for leave in (Step.begin, finish):
        leave(step)
        step.clear()
        assert not step.folder.exists()


def test_a_link_and_the_working_folder_are_not_deleted(recipe, tmp_path, monkeypatch):
    """Also files that chatpipe did not make would go, and a link to another disk."""
    Path("disk").mkdir()
    Path("link").symlink_to(Path("disk").resolve())
    step = Step.of(recipe, "pretrain", "link")
    finish(step)
    assert "link is a link, a mount or the working folder" in problem_of(step.clear)
    monkeypatch.chdir("disk")
    Path("thesis.tex").write_text("mine")
    step = Step.of(Recipe(pretrain={"data": str(tmp_path / "book.txt")}), "pretrain", ".")
    assert ". is a link, a mount or the working folder" in problem_of(step.clear)
    assert {path.name for path in Path().iterdir()} >= {"thesis.tex", "chatpipe.json"}


def test_ranks_of_a_launcher_know_their_number(recipe, monkeypatch):
    step = Step.of(recipe, "pretrain")
    assert (step.rank, step.processes, step.is_main) == (0, 1, True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (step.rank, step.processes, step.is_main) == (1, 4, False)
    assert step.manifest().processes == 4
