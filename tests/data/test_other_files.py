"""Files as they come: under the other's name, packed, with another delimiter, in folders with files about them."""

import bz2
import json
import lzma

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from chatpipe.data.datasets import load_conversations
from chatpipe.data.row_files import BrokenRow, file_rows
from chatpipe.data.sources import source_files, source_rows
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock

ROWS = [{"question": f"Who is {i}?", "answer": f"A {i}, of course."} for i in range(40)]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def rows_of(path) -> list:
    return [row.values for row in file_rows(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", LINES),
        ("lines.json", f"\n\n{LINES.strip()}"),
        ("list.jsonl", json.dumps(ROWS)),
        ("list.jsonl", json.dumps(ROWS, indent=2)),
        ("objects.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("objects.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("A.JSONL", LINES),
        ("a.ndjson", LINES),
        ("A.Json", json.dumps(ROWS)),
    ],
)
def test_json_is_read_as_what_it_holds(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert rows_of(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_that_is_a_list_of_turns_is_a_conversation(tmp_path, name):
    for lines in (1, 3):
        (tmp_path / name).write_text(f"{json.dumps(TURNS)}\n" * lines)
        assert rows_of(tmp_path / name) == [{"messages": TURNS}] * lines
    (tmp_path / name).write_text(json.dumps([TURNS, TURNS], indent=1))
    assert rows_of(tmp_path / name) == [{"messages": TURNS}] * 2


@pytest.mark.parametrize("twice", ['{"a": 1, "a": 2}', '{"b": [{"a": 1, "a": 2}]}'])
def test_a_row_with_a_field_twice_cannot_be_used(tmp_path, twice):
    lines, rows = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text(f'{{"a": 1}}\n{twice}\n{{"a": 3}}\n')
    rows.write_text(f'[{{"a": 1}}, {twice},\n {{"a": 3}}]')
    for path in (lines, rows):
        found = list(file_rows(path))
        assert [row.values["a"] for row in (found[0], found[2])] == [1, 3]
        assert isinstance(found[1], BrokenRow)
        assert (found[1].reason, found[1].detail) == ("a field is there twice", "a")


def test_a_table_with_a_column_twice_is_refused_at_its_first_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("question,answer,answer\na,b,c\n")
    with pytest.raises(UsageError, match=f"{path}:1: the column answer is there twice"):
        rows_of(path)


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path):
    table = pyarrow.table([[1], [2]], names=["answer", "answer"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(UsageError, match=f"{name}: the column answer is there twice"):
            rows_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ";"), ("a.csv", "|"), ("a.csv", "\t"), ("a.tsv", "\t"), ("A.CSV", ",")]
)
def test_the_delimiter_of_a_table_is_found_in_its_first_line(tmp_path, name, delimiter):
    text = "".join(f'{row["question"]}{delimiter}"{row["answer"]}"\n' for row in ROWS)
    (tmp_path / name).write_text(f"question{delimiter}answer\n{text}", encoding="utf-8-sig")
    assert rows_of(tmp_path / name) == ROWS


@pytest.mark.parametrize("ending", ["zst", "bz2", "xz", "XZ"])
def test_packed_files_of_every_kind_are_read(tmp_path, ending):
    path = tmp_path / f"a.jsonl.{ending}"
    if ending == "zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(LINES.encode())
    else:
        path.write_bytes((bz2 if ending == "bz2" else lzma).compress(LINES.encode()))
    assert rows_of(path) == ROWS
    path.write_bytes(b"not packed at all")
    with pytest.raises(UsageError, match=f"{path} is not a whole {ending.lower()} file"):
        rows_of(path)


def test_a_data_set_saved_to_disk_is_read_without_the_files_about_it(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=2)
    assert [row.values for row in source_rows(DataBlock(source=str(tmp_path / "saved")), "k")] == ROWS
    with pytest.raises(UsageError) as caught:
        list(source_rows(DataBlock(source=f"hub:{tmp_path / 'saved'}"), "k"))
    assert "leave out hub:" in caught.value.hint


def test_files_about_a_data_set_are_no_data(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(LINES)
    for name in ("dataset_infos.json", "dataset_info.json", "state.json", "README.txt", "LICENSE.txt"):
        (tmp_path / name).write_text("{}")
    assert source_files(str(tmp_path), "k") == [tmp_path / "data" / "train.jsonl"]


def test_the_splits_of_a_data_set_saved_to_disk_are_kept_apart(tmp_path):
    splits = {"train": Dataset.from_list(ROWS[:30]), "test": Dataset.from_list(ROWS[30:])}
    DatasetDict(splits).save_to_disk(tmp_path / "both")
    loaded = load_conversations([DataBlock(source=str(tmp_path / "both"))], {}, "sft.data")
    assert (len(loaded.train), len(loaded.validation)) == (30, 10)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "train.parquet").write_text(pointer)
    with pytest.raises(UsageError, match="is a pointer of Git LFS, not the data"):
        source_files(str(tmp_path), "k")


def test_an_arrow_file_that_is_damaged_is_named(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "both")
    path = next((tmp_path / "both").rglob("*.arrow"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UsageError, match="is not a whole Arrow file"):
        rows_of(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path, name, encoding):
    rows = [{"question": f"Wer ist Bäcker {i}?", "answer": "Niemand —\n😀."} for i in range(3)]
    if name == "a.jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    else:
        cut = "," if name == "a.csv" else "\t"
        text = f"question{cut}answer\r\n" + "".join(f'{row["question"]}{cut}"{row["answer"]}"\r\n' for row in rows)
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    (tmp_path / name).write_bytes((mark + text).encode(encoding))
    assert [row.values for row in file_rows(tmp_path / name)] == rows


def test_spaces_around_the_names_of_a_table_do_not_count(tmp_path):
    (tmp_path / "a.csv").write_text("question , answer\nWho?,Mara.\n")
    assert [row.values for row in file_rows(tmp_path / "a.csv")] == [{"question": "Who?", "answer": "Mara."}]
