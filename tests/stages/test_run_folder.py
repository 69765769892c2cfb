"""What a run's folder may hold when a stage or a run is started in it."""

import json
from pathlib import Path

import pytest

from chatpipe.data.durable import folder_lock
from chatpipe.errors import UsageError
from chatpipe.models.manifest import MANIFEST
from chatpipe.recipe import load_recipe
from chatpipe.run.chain import LaunchOptions, check_run, check_stage, run_here, run_recipe, run_stage
from chatpipe.run.folder import RECIPE_FILE, STARTED, clear, note_in_run, write_recipe
from chatpipe.run.status import begin, status
from chatpipe.run.step_checks import check_step
from chatpipe.run.steps import step_of, steps_of
from chatpipe.stages.step import Step
from stub_models import write_stub_model


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a"}]} for i in range(60)
    ]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_stub_model("base")
    return tmp_path


def listing() -> dict[str, str]:
    return {
        str(path): path.read_text() for path in Path().rglob("*") if path.is_file() and path.suffix != ".safetensors"
    }


def step(out: str | None, *overrides: str) -> Step:
    recipe = load_recipe(None, ["sft.data=chats.jsonl", "sft.model=base", *overrides]).recipe
    return step_of(recipe, "sft", out=out)


def test_a_stage_cannot_be_made_in_the_folder_of_the_model_it_starts_from(files):
    # --fresh would delete the model
    with pytest.raises(UsageError, match="it holds base, which sft reads"):
        check_step(step("base"))


def test_a_stage_cannot_be_made_in_a_folder_that_holds_its_data(files):
    with pytest.raises(UsageError, match="it holds chats.jsonl, which sft reads"):
        check_step(step(".", "sft.model=gpt2"))


def test_a_stage_cannot_be_made_inside_a_folder_that_it_reads_whole(files):
    # it would read its own files
    Path("chats").mkdir()
    Path("chats.jsonl").rename("chats/a.jsonl")
    with pytest.raises(UsageError, match="chats/out cannot be the folder of sft: it lies in chats, all of which sft"):
        check_step(step("chats/out", "sft.data=chats", "sft.model=gpt2"))
    check_step(step("chats/.out", "sft.data=chats", "sft.model=gpt2"))  # hidden, so not read


def test_a_folder_that_is_called_as_the_built_in_world_is_not_the_world(files):
    Path("pocketworld").mkdir()
    check_step(step("pocketworld/sft", "sft.data=pocketworld", "sft.model=gpt2"))
    check_step(step("pocketworld", "sft.data=pocketworld", "sft.model=gpt2"))


def test_a_folder_in_which_a_stage_was_killed_before_it_began_is_new(files):
    made = step("out")
    (made.folder / STARTED).parent.mkdir(parents=True)
    (made.folder / STARTED).with_suffix(".json.partial").write_text("{")
    assert status(made) == "new"
    clear([made])
    assert not made.folder.exists()


def test_a_deletion_that_was_killed_leaves_a_folder_that_can_be_used(files):
    made = step("out")
    begin(made)
    made.folder.rename("out.old.partial")
    assert status(made) == "new"
    begin(made)
    clear([made])
    assert not made.folder.exists()
    assert not Path("out.old.partial").exists()


def test_a_stage_of_a_run_keeps_the_other_stages_of_its_recipe(files):
    first = load_recipe(None, ["out=run", "pretrain.data=a.txt"]).recipe
    second = load_recipe(None, ["out=run", "rm.data=c.jsonl"]).recipe
    note_in_run(step_of(first, "pretrain"))
    note_in_run(step_of(second, "rm"))
    kept = load_recipe("run/recipe.yaml").recipe
    assert [block.source for block in kept.pretrain.data] == ["a.txt"]
    assert [block.source for block in kept.rm.data] == ["c.jsonl"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_stage_with_another_seed_does_not_belong_to_the_run_and_deletes_nothing_of_it(files, fresh):
    made = step(None, "out=run")
    begin(made)
    note_in_run(made)
    Path("run/rank").mkdir()
    Path("run/rank/rankings.jsonl").write_text("ranked by hand")
    before = listing()
    other = step(None, "out=run", "seed=4").recipe
    for stage in ("sft", "rm"):
        with pytest.raises(UsageError, match="seed was 0, is 4 now"):
            check_stage(other, stage, fresh=fresh)
    assert listing() == before


def test_fresh_looks_at_all_folders_before_it_deletes_the_first(files):
    recipe = load_recipe("pocket", ["out=run"]).recipe
    for step in steps_of(recipe)[:-1]:
        step.folder.mkdir(parents=True)
        (step.folder / MANIFEST).write_text("{}")
    write_recipe(recipe, Path("run") / RECIPE_FILE)
    (Path("run") / "ppo").mkdir()
    (Path("run") / "ppo" / "thesis.txt").write_text("years of work")
    before = listing()
    with pytest.raises(UsageError, match="run/ppo holds something that chatpipe did not make"):
        check_run(recipe, fresh=True)
    assert listing() == before


def test_the_rankings_file_of_a_run_is_not_what_it_can_rank_by(files):
    file = Path("run/rank/rankings.jsonl")
    file.parent.mkdir(parents=True)
    rows = [{"prompt": f"q {i}", "responses": ["a", "b"], "ranks": [1, 2]} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe("pocket", ["out=run", f"rm.data={file}"]).recipe
    for start in (lambda: check_run(recipe), lambda: check_stage(recipe, "rm")):
        with pytest.raises(UsageError, match="rank/rankings.jsonl"):
            start()


def test_a_run_and_a_stage_are_refused_where_another_is_at_work(files):
    made = step(None, "out=run")
    with folder_lock(Path("run")):
        with pytest.raises(UsageError, match="Another chatpipe is at work in run"):
            run_stage([made], LaunchOptions(1), None, print)
        with pytest.raises(UsageError, match="Another chatpipe is at work in run"):
            run_recipe(load_recipe("pocket", ["out=run"]).recipe, LaunchOptions(1), print)


def test_given_rankings_are_written_down_and_others_are_refused_until_fresh(files):
    def write(name: str, better: str) -> None:
        rows = [{"prompt": f"q {i}", "chosen": better, "rejected": "bad"} for i in range(60)]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def rank_step(name: str) -> Step:
        return step_of(load_recipe(None, ["out=run", f"rm.data={name}"]).recipe, "rank")

    for name, better in (("one.jsonl", "first"), ("two.jsonl", "second")):
        write(name, better)
    run_here(rank_step("one.jsonl"))
    assert "first" in Path("run/rank/rankings.jsonl").read_text()
    assert status(rank_step("one.jsonl")) == "done"
    with pytest.raises(UsageError, match=r"rm.data \(one.jsonl\) was"):
        status(rank_step("two.jsonl"))
    clear([rank_step("two.jsonl")])
    run_here(rank_step("two.jsonl"))
    assert "second" in Path("run/rank/rankings.jsonl").read_text()


def test_prompts_that_nobody_can_rank_are_refused(files):
    Path("prompts.jsonl").write_text('{"prompt": "What is the capital of France?"}\n' * 60)
    recipe = load_recipe(None, ["out=run", "sample.data=prompts.jsonl"]).recipe
    with pytest.raises(UsageError, match=r"rank\.rater is not given: who ranks"):
        check_stage(recipe, "rm")
    recipe = load_recipe(None, ["out=run", "sample.data=prompts.jsonl", "rank.rater=pocketworld"]).recipe
    with pytest.raises(UsageError, match="sample.data = prompts.jsonl: pocketworld cannot score"):
        check_stage(recipe, "rm")


@pytest.mark.parametrize("start", [check_run, lambda recipe: check_stage(recipe, "sft")])
def test_a_run_of_the_earlier_layout_is_refused(files, start):
    Path("run/rankings").mkdir(parents=True)
    Path("run/rankings/round-1.jsonl").write_text("{}\n")
    Path("run/recipe.yaml").write_text("round: 1\n")
    recipe = load_recipe("pocket", ["out=run", "sft.model=base"]).recipe
    with pytest.raises(UsageError, match="out = run was made by an earlier chatpipe"):
        start(recipe)
