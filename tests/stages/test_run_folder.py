"""What a run's folder may hold when a stage or a run is started in it."""

import json
from pathlib import Path

import pytest

from chatpipe.data.locking import alone_in
from chatpipe.errors import UsageError
from chatpipe.models.manifest import MANIFEST
from chatpipe.recipe import load_recipe
from chatpipe.run import chain as pipeline
from chatpipe.stages.rankings_of_run import ensure_rankings
from chatpipe.stages.step import STARTED, Step, rankings_file
from chatpipe.stages.step_checks import check_step
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
    return Step.of(recipe, "sft", out)


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
    assert made.standing() == "new"
    made.clear()
    assert not made.folder.exists()


def test_a_deletion_that_was_killed_leaves_a_folder_that_can_be_used(files):
    made = step("out")
    made.begin()
    made.folder.rename("out.old.partial")
    assert made.standing() == "new"
    made.begin()
    made.clear()
    assert not made.folder.exists()
    assert not Path("out.old.partial").exists()


def test_a_stage_of_a_run_keeps_the_other_stages_of_its_recipe(files):
    first = load_recipe(None, ["out=run", "pretrain.data=a.txt"]).recipe
    second = load_recipe(None, ["out=run", "rm.data=c.jsonl"]).recipe
    pipeline._note_in_run(first, "pretrain")
    pipeline._note_in_run(second, "rm")
    kept = load_recipe("run/recipe.yaml").recipe
    assert [block.source for block in kept.pretrain.data] == ["a.txt"]
    assert [block.source for block in kept.rm.data] == ["c.jsonl"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_stage_with_another_seed_does_not_belong_to_the_run_and_deletes_nothing_of_it(files, fresh):
    made = step(None, "out=run")
    made.begin()
    pipeline._note_in_run(made.recipe, "sft")
    rankings_file(made.recipe).parent.mkdir()
    rankings_file(made.recipe).write_text("ranked by hand")
    before = listing()
    other = step(None, "out=run", "seed=4").recipe
    for stage in ("sft", "rm"):
        with pytest.raises(UsageError, match="seed was 0, is 4 now"):
            pipeline.run_one(other, stage, pipeline.How(1, fresh=fresh), None)
    assert listing() == before


def test_fresh_looks_at_all_folders_before_it_deletes_the_first(files):
    recipe = load_recipe("pocket", ["out=run"]).recipe
    for stage in ("pretrain", "sft", "rm"):
        Step.of(recipe, stage).folder.mkdir(parents=True)
        (Step.of(recipe, stage).folder / MANIFEST).write_text("{}")
    pipeline.write_recipe(recipe, Path("run") / pipeline.RECIPE_FILE)
    (Path("run") / "ppo").mkdir()
    (Path("run") / "ppo" / "thesis.txt").write_text("years of work")
    before = listing()
    with pytest.raises(UsageError, match="run/ppo holds something that chatpipe did not make"):
        pipeline.run_recipe(recipe, pipeline.How(1, fresh=True), print)
    assert listing() == before


def test_the_rankings_file_of_a_run_is_not_what_it_can_rank_by(files):
    recipe = load_recipe("pocket", ["out=run"]).recipe
    rankings_file(recipe).parent.mkdir(parents=True)
    rows = [{"prompt": f"q {i}", "responses": ["a", "b"], "ranks": [1, 2]} for i in range(60)]
    rankings_file(recipe).write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe("pocket", ["out=run", f"rm.data={rankings_file(recipe)}"]).recipe
    for start in (
        lambda: pipeline.check_recipe(recipe),
        lambda: pipeline.check_stage(recipe, "rm", None),
    ):
        with pytest.raises(UsageError, match="into which this run writes its rankings"):
            start()


def test_a_run_and_a_stage_are_refused_where_another_is_at_work(files):
    made = step(None, "out=run")
    with alone_in(Path("run")):
        with pytest.raises(UsageError, match="Another chatpipe is at work in run"):
            pipeline.run_one(made.recipe, "sft", pipeline.How(1), None)
        with pytest.raises(UsageError, match="Another chatpipe is at work in run"):
            pipeline.run_recipe(load_recipe("pocket", ["out=run"]).recipe, pipeline.How(1), print)


def test_rankings_of_other_data_are_written_anew(files):
    def write(name: str, better: str) -> None:
        rows = [{"prompt": f"q {i}", "chosen": better, "rejected": "bad"} for i in range(60)]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    for name, better in (("one.jsonl", "first"), ("two.jsonl", "second"), ("two.jsonl", "second")):
        write(name, better)
        recipe = load_recipe(None, ["out=run", f"rm.data={name}"]).recipe
        ensure_rankings(recipe)
        assert better in rankings_file(recipe).read_text()


def test_prompts_that_nobody_can_rank_are_refused(files):
    Path("prompts.jsonl").write_text('{"prompt": "What is the capital of France?"}\n' * 60)
    recipe = load_recipe(None, ["out=run", "sample.data=prompts.jsonl"]).recipe
    with pytest.raises(UsageError, match="pocketworld cannot score answers to these prompts"):
        pipeline.check_stage(recipe, "rm", None)
