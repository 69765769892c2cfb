"""A folder whose files are named train, validation and test, and evaluation data of the user's own."""

import json

import pytest

from chatpipe.data.datasets import load_conversations, stream_rows
from chatpipe.data.documents import RawText
from chatpipe.data.sources import Report
from chatpipe.errors import UsageError
from chatpipe.recipe import load_recipe
from chatpipe.recipe.schema import DataBlock
from chatpipe.run.step_checks import step_checks
from chatpipe.run.steps import step_of


def write_splits(folder, **rows_of_file: int):
    for name, count in rows_of_file.items():
        path = folder / f"{name.replace('__', '/')}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question": f"{path.stem} {i}?", "answer": "Yes.", "text": f"{path.stem} {i}"} for i in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def splits(*blocks: DataBlock) -> dict[str, set[str]]:
    """Split -> the files whose rows are in it."""
    found: dict[str, set[str]] = {}
    for item, split in stream_rows("conversations", blocks, {}, "sft.data", Report()):
        found.setdefault(split, set()).add(item[0]["content"].split()[0])
    return found


@pytest.mark.parametrize("name", ["validation", "valid", "dev", "val_sft-00000-of-00001", "dev__part"])
def test_the_files_of_a_folder_are_what_their_names_say(tmp_path, name):
    write_splits(tmp_path, train=60, **{name: 20}, test=20)
    block = DataBlock(source=str(tmp_path))
    assert splits(block) == {"train": {"train"}, "validation": {name.split("__")[-1]}}
    report = Report()
    loaded = load_conversations([block], {}, "sft.data")
    assert (len(loaded.train), len(loaded.validation)) == (60, 20)
    report = loaded.report
    assert "80 rows, 0 left out; fields not read: text; files not read: test.jsonl" in report.sources[0].line()


def test_without_a_validation_file_the_test_file_is_for_validation(tmp_path):
    write_splits(tmp_path, base__train=60, base__test=20)
    assert splits(DataBlock(source=f"{tmp_path}/**/*.jsonl")) == {"train": {"train"}, "validation": {"test"}}


def test_other_names_are_split_by_their_rows_as_a_single_file_is(tmp_path):
    write_splits(tmp_path, train__a=60, train__b=60)
    assert splits(DataBlock(source=str(tmp_path))) == {"train": {"a", "b"}, "validation": {"a", "b"}}
    write_splits(tmp_path, test=60)
    assert splits(DataBlock(source=str(tmp_path / "test.jsonl"))) == {"train": {"test"}, "validation": {"test"}}


def test_raw_text_has_the_same_splits(tmp_path):
    (tmp_path / "x-train.txt").write_text("train\n" * 50)
    (tmp_path / "x-valid.txt").write_text("valid\n" * 50)
    for document in ("file", "line"):
        pieces = RawText(DataBlock(source=str(tmp_path), document=document), {}, "k").pieces()
        found = {(piece.split, piece.text.split()[0]) for piece in pieces}
        assert found == {("train", "train"), ("validation", "valid")}


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_evaluation_data_of_ones_own_replaces_the_tenth(tmp_path, stage):
    write_splits(tmp_path, mine=60, held=20)
    given = [f"{stage}.data={tmp_path}/mine.jsonl", f"{stage}.eval_data={tmp_path}/held.jsonl"]
    step = step_of(load_recipe(None, given).recipe, stage)
    assert splits(*step.data[f"{stage}.data"]) == {"train": {"mine"}, "validation": {"held"}}


@pytest.mark.parametrize("stage", ["sample", "ppo"])
def test_answers_are_as_long_as_those_that_sft_validates_on(tmp_path, stage):
    write_splits(tmp_path, mine=60, held=20)
    given = [f"sft.data={tmp_path}/mine.jsonl", f"sft.eval_data={tmp_path}/held.jsonl"]
    step = step_of(load_recipe(None, given).recipe, stage)
    assert splits(*step.data["sft.data"]) == {"train": {"mine"}, "validation": {"held"}}


def test_evaluation_data_that_is_missing_is_named_by_its_key(tmp_path):
    write_splits(tmp_path, mine=60)
    given = [f"sft.data={tmp_path}/mine.jsonl", f"sft.eval_data={tmp_path}/no.jsonl"]
    check = step_checks(step_of(load_recipe(None, given).recipe, "sft"))["sft.data"]
    with pytest.raises(UsageError, match=r"sft.eval_data: there is no file"):
        check()


def test_with_a_limit_a_file_is_read_as_far_as_its_rows_are_wanted(tmp_path):
    write_splits(tmp_path, train=300, validation=300)
    block = DataBlock(source=str(tmp_path), limit=20)
    loaded = load_conversations([block], {}, "sft.data")
    assert (len(loaded.train), len(loaded.validation)) == (18, 2)
    assert loaded.report.sources[0].rows == 18 + 1 + 2 + 1
    text = RawText(block, {}, "pretrain.data")
    assert [piece.split for piece in text.pieces()] == ["train"] * 18 + ["validation"] * 2
    assert text.rows <= 18 + 2 + 1


def test_a_block_may_say_what_it_is_for(tmp_path):
    write_splits(tmp_path, a=60, b=20)
    blocks = [DataBlock(source=f"{tmp_path}/a.jsonl", use="train"), DataBlock(source=f"{tmp_path}/b.jsonl")]
    found = splits(*blocks)
    assert found["train"] == {"a", "b"}
    assert found["validation"] == {"b"}
    with pytest.raises(ValueError, match="use is for files"):
        DataBlock(source="pocketworld", use="train")


def test_rows_of_eval_data_that_cannot_be_used_name_their_key(tmp_path):
    write_splits(tmp_path, mine=60)
    (tmp_path / "held.jsonl").write_text('{"prompt": "Who?"}\n' * 5)
    given = [f"sft.data={tmp_path}/mine.jsonl", f"sft.eval_data={tmp_path}/held.jsonl"]
    check = step_checks(step_of(load_recipe(None, given).recipe, "sft"))["sft.data"]
    with pytest.raises(UsageError, match=r"^sft.eval_data: .*held.jsonl is prompts"):
        check()
