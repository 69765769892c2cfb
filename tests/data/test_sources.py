import json

import pyarrow
import pytest
from pyarrow import parquet

from chatpipe.data.datasets import load_conversations
from chatpipe.data.row_files import BrokenRow
from chatpipe.data.sources import block_fingerprint, check_sources, data_fingerprints, source_files, source_rows
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock


def problem_of(call, *arguments: object) -> str:
    with pytest.raises(UsageError) as caught:
        call(*arguments)
    return f"{caught.value.message}\n{caught.value.hint}"


def texts_of(block: DataBlock) -> list[str]:
    return [row.values["text"] for row in source_rows(block, "k")]


@pytest.fixture
def folder(tmp_path, write):
    """A folder with data of several kinds on several levels, and with other files."""
    (tmp_path / "all" / "deep").mkdir(parents=True)
    (tmp_path / "all" / ".cache").mkdir()
    write("all/b.jsonl", [{"text": "b"}])
    write("all/a.csv", "text\na\n")
    write("all/deep/c.json", [{"text": "c"}])
    write("all/.cache/d.jsonl", [{"text": "d"}])
    write("all/README.md", "# Data")
    return tmp_path / "all"


def test_a_folder_means_the_data_in_it_in_the_order_of_names(folder):
    assert texts_of(DataBlock(source=str(folder))) == ["a", "b", "c"]


def test_a_pattern_means_the_files_that_match(folder):
    assert texts_of(DataBlock(source=f"{folder}/*.jsonl")) == ["b"]
    assert texts_of(DataBlock(source=f"{folder}/**/*.json*")) == ["b", "c"]
    assert texts_of(DataBlock(source=f"{folder}/*")) == ["a", "b"]


def test_links_to_folders_add_no_file_twice_and_links_to_files_are_files(folder):
    (folder / "deep" / "up").symlink_to(folder)
    assert texts_of(DataBlock(source=str(folder))) == ["a", "b", "c"]
    (folder / "z.csv").symlink_to(folder / "a.csv")
    assert texts_of(DataBlock(source=str(folder))) == ["a", "b", "c", "a"]


def test_a_source_without_data_is_refused_with_its_key(folder, write, tmp_path):
    assert f"k: there is no file {folder}/no.jsonl." in problem_of(source_files, f"{folder}/no.jsonl", "k")
    for source in (f"{folder}/*.md", f"{folder}/no*.jsonl", str(tmp_path / "all" / ".cache" / "..." / "*")):
        assert f"k: {source} holds no file of a kind that can be read: .txt, .arrow, .csv" in problem_of(
            source_files, source, "k"
        )
    assert "README.md is not one of the files that can be read" in problem_of(source_files, f"{folder}/README.md", "k")
    write("all/e.txt", "")
    assert f"k: {folder}/e.txt is empty." in problem_of(check_sources, [DataBlock(source=str(folder))], "k")


def test_a_name_with_signs_of_a_pattern_may_be_a_file(write):
    path = write("part[1].jsonl", [{"text": "one"}])
    assert texts_of(DataBlock(source=path)) == ["one"]


def test_columns_give_fields_our_names_and_join_several(write):
    path = write("a.jsonl", [{"q": "Who?", "a": "Mara.", "n": 3}, {"q": "What?"}])
    rows = list(source_rows(DataBlock(source=path, columns={"text": ["q", "a"]}), "k"))
    assert rows[0].values == {"n": 3, "text": "Who?\nMara."}
    assert rows[1] == BrokenRow("there is no field a", "its fields are q", f"{path}:2")
    assert list(source_rows(DataBlock(source=path, columns={"text": "q"}), "k"))[1].values["text"] == "What?"


def test_other_stages_read_the_same_kinds_of_files(write, tmp_path):
    rows = [{"instruction": f"Do {i}.", "input": "", "output": "Done."} for i in range(120)]
    parquet.write_table(pyarrow.Table.from_pylist(rows[:60]), tmp_path / "a.parquet")
    write("b.jsonl", rows[60:])
    loaded = load_conversations([DataBlock(source=f"{tmp_path}/*")], {}, "sft.data")
    asked = {conversation[0]["content"] for conversation in loaded.train + loaded.validation}
    assert asked == {row["instruction"] for row in rows}
    lines = [DataBlock(source=f"{tmp_path}/*", document="line")]
    told = problem_of(load_conversations, lines, {}, "sft.data")
    assert "sft.data: document is a setting of raw text" in told


def test_a_fingerprint_follows_the_files_and_the_settings(folder, write):
    block = DataBlock(source=str(folder))
    before = block_fingerprint(block, "k")
    assert block_fingerprint(block, "k") == before
    for more in ({"limit": 3}, {"columns": {"text": "t"}}, {"document": "line"}, {"weight": 2.0}, {"name": "x"}):
        assert block_fingerprint(block.model_copy(update=more), "k") != before
    assert block_fingerprint(block.model_copy(update={"max_skipped": 0.5}), "k") == before  # it decides no row
    write("all/new.jsonl", [{"text": "e"}])
    after = block_fingerprint(block, "k")
    assert after != before
    (folder / "new.jsonl").write_text(json.dumps({"text": "f"}) + "\n")
    assert block_fingerprint(block, "k") not in (before, after)


def test_a_source_that_is_named_twice_is_known_with_both(folder):
    one, other = DataBlock(source="hub:a/b", name="x"), DataBlock(source="hub:a/b", name="y")
    assert data_fingerprints([one, other], "k") != data_fingerprints([one, one], "k") != data_fingerprints([one], "k")


# ---- the hub ----


@pytest.fixture
def hub_folder(tmp_path):
    """A data set as the hub has them, in a local folder: two splits of parquet files."""
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", 7), ("test", 2)):
        rows = [{"text": f"{split} {i}"} for i in range(count)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_data_set_of_the_hub_is_streamed_split_by_split(hub_folder):
    assert texts_of(DataBlock(source=f"hub:{hub_folder}")) == [f"train {i}" for i in range(7)]
    rows = list(source_rows(DataBlock(source=f"hub:{hub_folder}", split="test"), "k"))
    assert [(row.values["text"], row.where) for row in rows] == [
        ("test 0", f"hub:{hub_folder} row 1"),
        ("test 1", f"hub:{hub_folder} row 2"),
    ]


def test_a_data_set_that_cannot_be_read_is_named_with_the_reason(hub_folder):
    told = problem_of(texts_of, DataBlock(source=f"hub:{hub_folder}", split="dev"))
    assert f"k: hub:{hub_folder} (split dev) cannot be read at row 1: " in told
    told = problem_of(texts_of, DataBlock(source="hub:nobody/nothing-here"))
    assert "hub:nobody/nothing-here (split train) cannot be read at row 1" in told
    assert "HF_HUB_OFFLINE is set" in told
