"""What a run's folder may hold when a stage or a run is started in it."""

import json
from pathlib import Path

import pytest

from chatpipe import pipeline
from chatpipe.errors import UsageError
from chatpipe.recipe import load_recipe
from chatpipe.stages.job import STARTED, Job, rankings_file


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a"}]} for i in range(60)
    ]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = Path("base")
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    (model / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def job(out: str | None, *overrides: str) -> Job:
    recipe = load_recipe(None, ["sft.data=chats.jsonl", "sft.model=base", *overrides]).recipe
    return Job.of(recipe, "sft", out)


def test_a_stage_cannot_be_made_in_the_folder_of_the_model_it_starts_from(files):
    # --fresh would delete the model
    with pytest.raises(UsageError, match="it holds base, which sft reads"):
        job("base").check()


def test_a_stage_cannot_be_made_in_a_folder_that_holds_its_data(files):
    with pytest.raises(UsageError, match="it holds chats.jsonl, which sft reads"):
        job(".", "sft.model=gpt2").check()


def test_a_folder_in_which_a_stage_was_killed_before_it_began_is_new(files):
    made = job("out")
    (made.folder / STARTED).parent.mkdir(parents=True)
    (made.folder / STARTED).with_suffix(".json.partial").write_text("{")
    assert made.standing() == "new"
    made.clear()
    assert not made.folder.exists()


def test_a_deletion_that_was_killed_leaves_a_folder_that_can_be_used(files):
    made = job("out")
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


def test_a_stage_with_another_seed_does_not_belong_to_the_run(files):
    pipeline._note_in_run(load_recipe(None, ["out=run"]).recipe, "pretrain")
    with pytest.raises(UsageError, match="seed was 0, is 4 now"):
        pipeline._note_in_run(load_recipe(None, ["out=run", "seed=4"]).recipe, "ppo")


def test_rankings_of_other_data_are_written_anew(files):
    def write(name: str, better: str) -> None:
        rows = [{"prompt": f"q {i}", "chosen": better, "rejected": "bad"} for i in range(60)]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    for name, better in (("one.jsonl", "first"), ("two.jsonl", "second"), ("two.jsonl", "second")):
        write(name, better)
        recipe = load_recipe(None, ["out=run", f"rm.data={name}"]).recipe
        pipeline._ensure_rankings(recipe)
        assert better in rankings_file(recipe).read_text()


def test_prompts_that_nobody_can_rank_are_refused(files):
    Path("prompts.jsonl").write_text('{"prompt": "What is the capital of France?"}\n' * 60)
    recipe = load_recipe(None, ["out=run", "sample.data=prompts.jsonl"]).recipe
    with pytest.raises(UsageError, match="nobody can rank"):
        pipeline.check_stage(recipe, "rm", None)
