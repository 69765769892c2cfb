import json
from pathlib import Path

import pytest

from chatpipe.errors import UsageError
from chatpipe.models.manifest import write_manifest
from chatpipe.recipe import Recipe
from chatpipe.run.folder import clear
from chatpipe.run.status import begin, check_whole, manifest_of, status
from chatpipe.run.step_checks import check_step
from chatpipe.run.steps import STAGES, stage_module, step_of, steps_for, steps_of
from chatpipe.stages.step import Step
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
    begin(step)
    write_manifest(step.folder, manifest_of(step))


def begin_and_save(step: Step) -> None:
    """Leaves what a stage leaves that broke off after its first resume point."""
    begin(step)
    Path(step.folder, "checkpoints", "step-3").mkdir()


def ranked(text: str, run: str = "run", name: str = "rank") -> None:
    """Leaves a rankings file in a run."""
    Path(run, name).mkdir(parents=True, exist_ok=True)
    Path(run, name, "rankings.jsonl").write_text(text)


def answered(text: str) -> None:
    """Leaves a completions file in the run."""
    Path("run/sample").mkdir(parents=True, exist_ok=True)
    Path("run/sample/completions.jsonl").write_text(text)


def problem_of(check, *arguments: object) -> str:
    with pytest.raises(UsageError) as caught:
        check(*arguments)
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert len(text.splitlines()) <= 8
    return text


def test_each_stage_starts_from_what_the_one_before_it_made(recipe):
    assert step_of(recipe, "pretrain").models == {}
    assert step_of(recipe, "sft").models == {"model": "run/pretrain"}
    assert step_of(recipe, "rm").models == {"model": "run/sft"}
    assert step_of(recipe, "ppo").models == {"model": "run/sft", "reward_model": "run/rm"}


def test_a_model_of_the_recipe_comes_before_the_run_s_own(recipe):
    assert step_of(changed(recipe, "sft", model="gpt2"), "sft").models == {"model": "gpt2"}
    assert step_of(changed(recipe, "pretrain", model="gpt2"), "pretrain").models == {"model": "gpt2"}
    assert step_of(changed(recipe, "ppo", reward_model="r"), "ppo").models == {"model": "run/sft", "reward_model": "r"}


def test_a_stage_writes_into_the_run_or_into_a_folder_of_its_own(recipe):
    assert step_of(recipe, "sft").folder == Path("run/sft")
    assert step_of(recipe, "sft", out="elsewhere").folder == Path("elsewhere")


def sources(step: Step) -> dict[str, list[str]]:
    return {key: [block.source for block in blocks] for key, blocks in step.data.items()}


def test_what_a_step_reads():
    given = Recipe(
        out="run",
        pretrain={"data": "t.txt"},
        sft={"data": "c.jsonl", "pretrain_mix": 0.2},
        sample={"data": "p.jsonl"},
    )
    assert {step.stage: sources(step) for step in steps_of(given)} == {
        "pretrain": {"pretrain.data": ["t.txt"]},
        "sft": {"sft.data": ["c.jsonl"], "pretrain.data": ["t.txt"]},
        "sample": {"sample.data": ["p.jsonl"], "sft.data": ["c.jsonl"]},  # whose answers say how long one may be
        "rank": {"completions": ["run/sample/completions.jsonl"]},
        "rm": {"rm.data": ["run/rank/rankings.jsonl"], "sft.data": ["c.jsonl"]},
        "ppo": {"ppo.data": ["p.jsonl"], "sft.data": ["c.jsonl"]},
    }
    of_known_length = Recipe(
        sft={"data": "c.jsonl"},
        sample={"data": "p.jsonl", "max_new_tokens": 9},
        ppo={"response_length": 9},
        evaluation={"max_new_tokens": 9},
    )
    for stage in ("sample", "ppo"):
        assert sources(step_of(of_known_length, stage)) == {f"{stage}.data": ["p.jsonl"]}
    with_pairs = given.model_copy(update={"rm": Recipe(rm={"data": "pairs.jsonl"}).rm})
    assert [step.stage for step in steps_of(with_pairs)] == ["pretrain", "sft", "rank", "rm", "ppo"]
    for stage, key in (("rank", "rm.data"), ("rm", "rm.data"), ("ppo", "ppo.data")):
        assert sources(step_of(with_pairs, stage))[key] == ["pairs.jsonl"]


def test_later_rounds_start_from_the_newest_policy_and_keep_what_was_ranked():
    given = Recipe(out="run", rounds=3, sample={"data": "pocketworld"}, ppo={"model": "mine"}, rm={"age_weight": 0.5})
    steps = {step.name: step for step in steps_of(given)}
    assert list(steps) == [
        *("pretrain", "sft", "sample", "rank", "rm", "ppo"),
        *("sample.2", "rank.2", "rm.2", "ppo.2"),
        *("sample.3", "rank.3", "rm.3", "ppo.3"),
    ]
    assert all(str(step.folder) == f"run/{name}" for name, step in steps.items())
    assert steps["ppo"].models == {"model": "mine", "reward_model": "run/rm"}
    assert steps["ppo.2"].models == {"model": "run/ppo", "reward_model": "run/rm.2"}
    assert steps["ppo.3"].models == {"model": "run/ppo.2", "reward_model": "run/rm.3"}
    assert steps["ppo.3"].makers == {"model": ("ppo.2",), "reward_model": ("rm.3",)}
    assert steps["ppo.3"].first_policy == "mine"
    assert steps["rm.3"].models == {"model": "run/sft"}
    assert steps["sample"].models == {"model": "run/sft"}
    assert steps["sample.3"].models == {"model": "run/ppo.2"}
    read = {block.source: block.weight for block in steps["rm.3"].data["rm.data"]}
    assert read == {"run/rank/rankings.jsonl": 0.25, "run/rank.2/rankings.jsonl": 0.5, "run/rank.3/rankings.jsonl": 1}
    assert steps["rm.3"].makers == {"model": ("sft",), "rm.data": ("rank", "rank.2", "rank.3")}


def test_the_first_round_may_read_rankings_of_others():
    given = Recipe(out="run", rm={"data": [{"source": "pairs.jsonl", "weight": 2}], "age_weight": 0.5})
    read = {block.source: block.weight for block in step_of(given, "rm", 2).data["rm.data"]}
    assert read == {"pairs.jsonl": 1.0, "run/rank.2/rankings.jsonl": 1.0}
    newest = given.model_copy(update={"rm": Recipe(rm={"data": "pairs.jsonl", "age_weight": 0}).rm})
    assert sources(step_of(newest, "rm", 2))["rm.data"] == ["run/rank.2/rankings.jsonl"]


def test_rm_comes_with_the_rankings_of_its_round_and_other_stages_alone():
    ranked = Recipe(out="run", sample={"data": "pocketworld"})
    given = Recipe(out="run", rm={"data": "pairs.jsonl"})
    names = [
        [step.name for step in steps_for(recipe, stage, number, out)]
        for recipe, stage, number, out in (
            (ranked, "rm", 1, None),
            (ranked, "rm", 2, "elsewhere"),
            (given, "rm", 1, None),
            (given, "rm", 1, "elsewhere"),
            (ranked, "ppo", 2, None),
        )
    ]
    assert names == [["sample", "rank", "rm"], ["sample.2", "rank.2", "rm.2"], ["rank", "rm"], ["rm"], ["ppo.2"]]


def test_everything_a_run_needs_is_checked_before_it_starts(recipe):
    made: set[str] = set()
    for step in steps_of(recipe):
        check_step(step, made)
        made.add(step.name)
    assert not Path("run").exists()


def test_a_missing_parent_is_named_with_who_makes_it(recipe):
    told = problem_of(check_step, step_of(recipe, "sft"))
    assert "sft starts from what pretrain makes, but there is no run/pretrain yet." in told
    assert "chatpipe pretrain" in told
    assert "--model" in told
    finish(step_of(recipe, "pretrain"))
    finish(step_of(recipe, "sft"))
    told = problem_of(check_step, step_of(recipe, "ppo"))
    assert "ppo starts from what rm makes, but there is no run/rm yet." in told
    assert "--reward" in told


def test_a_model_of_the_wrong_kind_is_refused_by_key(recipe):
    write_stub_model("reward", "GPT2ForSequenceClassification")
    write_stub_model("chat")
    told = problem_of(check_step, step_of(changed(recipe, "ppo", model="reward", reward_model="reward"), "ppo"))
    assert "ppo.model = reward is a reward model" in told
    told = problem_of(check_step, step_of(changed(recipe, "ppo", model="chat", reward_model="chat"), "ppo"))
    assert "ppo.reward_model = chat is a causal language model" in told
    check_step(step_of(changed(recipe, "ppo", model="chat", reward_model="reward"), "ppo"))


def test_data_that_cannot_be_used_is_found_by_the_check(recipe):
    Path("chats.jsonl").write_text('{"messages": []}\n{oops}\n')
    told = problem_of(check_step, step_of(recipe, "sft"), {"pretrain"})
    assert "this line is not JSON (first at chats.jsonl:2" in told
    told = problem_of(check_step, step_of(changed(recipe, "rm", data=recipe.pretrain.data), "rm"))
    assert told.startswith("rm.data: ")
    assert "is running text" in told
    assert "sft.data is not given" in problem_of(check_step, step_of(changed(recipe, "sft", data=None), "sft"))


def test_a_world_that_cannot_be_built_is_found_by_the_check():
    world = Recipe(pretrain={"data": "pocketworld"}, pocketworld={"people": 100_000})
    assert "100000 people" in problem_of(check_step, step_of(world, "pretrain"))


def test_a_file_where_the_folder_should_be_is_refused(recipe):
    assert "book.txt is a file." in problem_of(check_step, step_of(recipe, "pretrain", out="book.txt"))


def test_a_stage_is_new_then_started_then_done(recipe):
    step = step_of(recipe, "pretrain")
    assert status(step) == "new"
    step.folder.mkdir(parents=True)
    assert status(step) == "new"
    begin(step)
    assert status(step) == "new"
    Path(step.folder, "checkpoints", "step-3.partial").mkdir()
    assert status(step) == "new"
    Path(step.folder, "checkpoints", "step-3").mkdir()
    assert status(step) == "started"
    finish(step)
    assert status(step) == "done"


def test_a_finished_stage_whose_weights_are_gone_or_cut_off_is_not_whole(recipe):
    for number, again in ((1, "chatpipe rm ... --fresh"), (2, "chatpipe rm ... round=2 --fresh")):
        step = step_of(recipe, "rm", number)
        write_stub_model(str(step.folder), "GPT2ForSequenceClassification")
        check_whole(step)
        weights = step.folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        told = problem_of(check_whole, step)
        assert f"{step.folder}/model.safetensors is not a complete safetensors file." in told
        assert f"`{again}` makes it again." in told
        weights.unlink()
        assert "its weights are missing." in problem_of(check_whole, step)


def test_what_broke_off_before_its_first_resume_point_may_be_changed(recipe):
    begin(step_of(recipe, "pretrain"))
    assert status(step_of(changed(recipe, "pretrain", learning_rate=0.5), "pretrain")) == "new"


def test_a_run_that_was_moved_is_the_same_run(recipe):
    """The rankings that it made itself moved with it."""
    made = changed(recipe, "rm", data=None)
    made = changed(made, "sample", data=recipe.sft.data)
    ranked('{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}\n')
    write_stub_model("run/sft")
    finish(step_of(made, "rm"))
    Path("run").rename("moved")
    moved = made.model_copy(update={"out": "moved"})
    assert status(step_of(moved, "rm")) == "done"
    ranked('{"prompt": "a", "responses": ["b", "c"], "ranks": [2, 1]}\n', "moved")
    assert "rm.data (rank/rankings.jsonl) was" in problem_of(status, step_of(moved, "rm"))


def test_where_and_how_it_runs_makes_no_other_stage(recipe, monkeypatch):
    finish(step_of(recipe, "pretrain"))
    other = changed(recipe, "pretrain", logging_steps=3, save_steps=7)
    other = other.model_copy(update={"processes": 2, "report_to": "tensorboard"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert status(step_of(other, "pretrain")) == "done"
    assert status(step_of(changed(recipe, "sft", learning_rate=1.0), "pretrain")) == "done"


def test_when_sft_is_evaluated_counts_where_the_best_is_kept(recipe):
    write_stub_model("base")
    recipe = changed(recipe, "sft", model="base", eval_steps=5)
    begin_and_save(step_of(recipe, "sft"))
    assert status(step_of(changed(recipe, "sft", eval_steps=7), "sft")) == "started"
    best = changed(recipe, "sft", load_best_model_at_end=True).model_copy(update={"out": "best"})
    begin_and_save(step_of(best, "sft"))
    told = problem_of(status, step_of(changed(best, "sft", eval_steps=7), "sft"))
    assert "sft.eval_steps was 5, is 7 now" in told


def test_a_changed_recipe_is_refused_with_what_changed(recipe):
    for leave in (begin_and_save, finish):
        leave(step_of(recipe, "pretrain"))
        other = changed(recipe, "pretrain", learning_rate=0.5).model_copy(update={"seed": 4})
        told = problem_of(status, step_of(other, "pretrain"))
        assert "run/pretrain holds another pretrain:" in told
        assert "seed was 0, is 4 now" in told
        assert "pretrain.learning_rate was 0.0006, is 0.5 now" in told
        assert "--fresh" in told


def test_what_makes_a_step_of_a_later_round_again_names_the_round(recipe):
    write_stub_model("run/ppo")
    recipe = changed(changed(recipe, "rm", data=None), "sample", data=[])
    for number, again in ((1, "`chatpipe rm ... --fresh`"), (2, "`chatpipe rm ... round=2 --fresh`")):
        ranked("{}\n", name=f"rank.{number}" if number > 1 else "rank")
        finish(step_of(recipe, "rm", number))
        assert again in problem_of(status, step_of(changed(recipe, "rm", learning_rate=0.5), "rm", number))
        sample = step_of(recipe, "sample", number)
        write_stub_model("run/sft")
        begin(sample)
        (sample.folder / "completions.jsonl.0-of-1.partial").touch()
        told = problem_of(status, step_of(changed(recipe, "sample", k=3), "sample", number))
        assert "sample.k was 4, is 3 now" in told
        assert again in told


def test_changed_data_is_refused_with_its_name(recipe):
    finish(step_of(recipe, "pretrain"))
    Path("book.txt").write_text("Another line.\n" * 50)
    assert "pretrain.data (book.txt) was" in problem_of(status, step_of(recipe, "pretrain"))


def test_another_parent_is_refused(recipe):
    write_stub_model("run/pretrain")
    finish(step_of(recipe, "sft"))
    assert status(step_of(recipe, "sft")) == "done"
    write_stub_model("run/pretrain", weights="others")
    assert "the model given as sft.model was" in problem_of(status, step_of(recipe, "sft"))


def test_many_changes_are_summed_up(recipe):
    finish(step_of(recipe, "pretrain"))
    values = {"learning_rate": 1.0, "warmup_steps": 9, "weight_decay": 0.3, "adam_beta1": 0.1, "adam_beta2": 0.2}
    told = problem_of(status, step_of(changed(recipe, "pretrain", **values, max_steps=1), "pretrain"))
    assert "... and 2 more" in told


def test_the_built_in_world_decides_what_comes_out_where_it_is_read_or_ranks():
    Path("book.txt").write_text("A line.\n")
    world = Recipe(
        out="run",
        sample={"data": "pocketworld"},
        rank={"rater": "pocketworld"},
        ppo={"data": "pocketworld"},
        pretrain={"data": "book.txt"},
    )
    answered("{}\n")
    for stage, is_read in (("pretrain", False), ("sample", True), ("rank", True), ("ppo", True)):
        assert ("pocketworld.people" in manifest_of(step_of(world, stage)).settings) == is_read


def test_a_rank_step_depends_on_who_ranks_and_on_what(recipe):
    Path("liking.py").write_text("def score(prompts, completions):\n    return [0.0] * len(prompts)\n")
    write_stub_model("ranker", "GPT2ForSequenceClassification")
    answered("{}\n")
    ranks = changed(recipe, "rm", data=None)

    def depends_on(rater: str) -> tuple[set[str], set[str], set[str]]:
        made = manifest_of(step_of(changed(ranks, "rank", rater=rater), "rank"))
        return set(made.settings) - {"seed"}, set(made.parents), set(made.data)

    assert depends_on("people") == ({"rank.rater", "rank.overlap"}, set(), {"completions"})
    function = ({"rank.rater", "rank.temperature"}, set(), {"completions", "rank.rater"})
    assert depends_on("liking:score") == function
    assert depends_on("ranker") == ({"rank.temperature"}, {"rank.rater"}, {"completions"})
    given = manifest_of(step_of(recipe, "rank"))
    assert (set(given.settings), set(given.data)) == ({"seed"}, {"rm.data"})


def test_what_a_step_will_make_is_not_compared(recipe):
    """A deleted stage is made again, and what follows it stays where it comes out the same."""
    write_stub_model("run/pretrain")
    finish(step_of(recipe, "sft"))
    write_stub_model("run/pretrain", weights="others")
    assert status(step_of(recipe, "sft"), {"pretrain"}) == "done"
    told = problem_of(status, step_of(changed(recipe, "sft", learning_rate=1.0), "sft"), {"pretrain"})
    assert "sft.learning_rate was" in told
    assert "sft.model" not in told


@pytest.mark.parametrize("name", ["thesis.md", "model.safetensors"])
def test_what_chatpipe_did_not_make_is_neither_used_nor_deleted(recipe, name):
    step = step_of(recipe, "pretrain")
    step.folder.mkdir(parents=True)
    (step.folder / name).write_text("years of work")
    assert "run/pretrain holds something that chatpipe did not make" in problem_of(status, step)
    assert "it is not deleted" in problem_of(clear, [step])
    assert (step.folder / name).read_text() == "years of work"


def test_what_chatpipe_made_is_cleared_whole(recipe):
    step = step_of(recipe, "pretrain")
    clear([step])
    for leave in (begin, finish):
        leave(step)
        clear([step])
        assert not step.folder.exists()


def test_a_link_and_the_working_folder_are_not_deleted(recipe, tmp_path, monkeypatch):
    """Also files that chatpipe did not make would go, and a link to another disk."""
    Path("disk").mkdir()
    Path("link").symlink_to(Path("disk").resolve())
    step = step_of(recipe, "pretrain", out="link")
    finish(step)
    assert "link is a link, a mount or the working folder" in problem_of(clear, [step])
    monkeypatch.chdir("disk")
    Path("thesis.tex").write_text("mine")
    step = step_of(Recipe(pretrain={"data": str(tmp_path / "book.txt")}), "pretrain", out=".")
    assert ". is a link, a mount or the working folder" in problem_of(clear, [step])
    assert {path.name for path in Path().iterdir()} >= {"thesis.tex", "chatpipe.json"}


def test_ranks_of_a_launcher_know_their_number(recipe, monkeypatch):
    step = step_of(recipe, "pretrain")
    assert (step.process_index, step.processes, step.is_main) == (0, 1, True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (step.process_index, step.processes, step.is_main) == (1, 4, False)
    assert manifest_of(step).processes == 4


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_file_that_runs_it_and_checks_what_it_trains(stage, recipe):
    module = stage_module(stage)
    assert callable(module.run)
    assert hasattr(module, "checks") == step_of(recipe, stage).trains
