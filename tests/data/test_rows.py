import gzip
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from chatpipe.data.row_files import BrokenRow, Row, file_rows
from chatpipe.data.sources import Skipped
from chatpipe.errors import UsageError


def read_rows(path: str) -> list[Row | BrokenRow]:
    return list(file_rows(Path(path)))


def problem_of(path: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_rows(path)
    return f"{caught.value.message}\n{caught.value.hint}"


def test_rows_of_jsonl_know_their_lines_blank_ones_counted(write):
    path = write("a.jsonl", '{"text": "one"}\n\n  \n{"text": "two"}')
    assert read_rows(path) == [Row({"text": "one"}, f"{path}:1"), Row({"text": "two"}, f"{path}:4")]


def test_line_separators_inside_a_string_end_no_row(write):
    text = "a\u2028b\u0085c\u000bd"
    path = write("a.jsonl", f'{{"text": "{text[:3]}"}}\n{{"text": "two\u2029"}}\n')
    assert [row.values["text"] for row in read_rows(path)] == ["a\u2028b", "two\u2029"]


def test_windows_files_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    assert [row.values["text"] for row in read_rows(str(path))] == ["one", "two"]


def test_rows_of_json_know_their_numbers(write):
    path = write("a.json", [{"text": "one"}, {"text": "two"}])
    assert [row.where for row in read_rows(path)] == [f"{path} row 1", f"{path} row 2"]


def test_rows_of_csv_know_the_line_on_which_they_begin(write):
    path = write("a.csv", 'id,text\n1,"one\nand more"\n2,"two, ""quoted"""\n3,three,4\n')
    assert read_rows(path) == [
        Row({"id": "1", "text": "one\nand more"}, f"{path}:2"),
        Row({"id": "2", "text": 'two, "quoted"'}, f"{path}:4"),
        BrokenRow("there are more fields than the first line names", "", f"{path}:5"),
    ]


def test_a_field_of_csv_may_be_longer_than_python_reads_by_default(write):
    assert read_rows(write("a.csv", f"text\n{'word ' * 50_000}\n"))[0].values["text"] == "word " * 50_000


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz"])
def test_rows_of_parquet_know_their_numbers(tmp_path, name):
    rows = [{"text": f"text {i}", "id": i} for i in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "plain", row_group_size=1000)
    data = (tmp_path / "plain").read_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_rows(str(path)) == [Row(row, f"{path} row {number}") for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_packed_files_are_read_as_the_plain_ones(write, name):
    rows = [{"text": f"Größe {i}"} for i in range(50)]
    text = "text\n" + "".join(f"{row['text']}\n" for row in rows)
    plain = write(name, text if name == "a.csv" else rows)
    packed = Path(f"{plain}.gz")
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    assert [row.values for row in read_rows(str(packed))] == rows
    assert read_rows(str(packed))[1].where.startswith(f"{packed}")


def test_a_file_is_read_as_far_as_its_rows_are_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' * 200_000 + b"\xff")
    assert next(file_rows(path)) == Row({"text": "one"}, f"{path}:1")
    assert f"{path} is not UTF-8 text: byte 3200000 cannot be read." in problem_of(str(path))


def test_a_broken_line_is_a_broken_row_and_the_others_are_read(write):
    path = write("a.jsonl", '{"text": "one"}\n{"text": oops}\n[1, 2]\n{"text": "two"}\n')
    first, second, third, fourth = read_rows(path)
    assert (first.where, fourth.where) == (f"{path}:1", f"{path}:4")
    assert second == BrokenRow("this line is not JSON", "Expecting value at column 10", f"{path}:2")
    assert third == BrokenRow("a row is an object with named fields, not a list", "", f"{path}:3")


def test_a_file_that_is_not_json_is_named_with_the_line(write):
    path = write("a.json", '[\n{"text": "one"},\n]')
    told = problem_of(path)
    assert f"{path}:" in told
    assert "this is not JSON" in told
    twice = write("b.json", '[\n{"text": "one"}]\n[{"text": "two"}]\n')
    assert f"{twice}:2: this is not JSON: Extra data" in problem_of(twice)
    assert "a list of rows is expected, not one object" in problem_of(write("c.json", '{"text": "one"}'))
    assert read_rows(write("d.json", '[{"text": "one"}, 3]'))[1].reason.startswith("a row is an object")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl", "naïve".encode("latin-1"), "is not UTF-8 text: byte 2 cannot be read."),
        ("a.csv", b"text\nab\0c\n", "is not text: it holds zero bytes."),
        ("a.csv", b'text\n"open\n', "is not CSV: unexpected end of data"),
        ("a.parquet", b"PAR1 not really", "is not a whole parquet file"),
        ("a.jsonl.gz", b"plain text", "is not a whole gzip file: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], "is not a whole gzip file"),
    ],
)
def test_what_is_damaged_is_refused_with_its_name(tmp_path, name, content, part):
    path = tmp_path / name
    path.write_bytes(content)
    told = problem_of(str(path))
    assert str(path) in told
    assert part in told


def _skipped(count: int) -> Skipped:
    skipped = Skipped()
    for i in range(count):
        row = Row({}, f"a.jsonl:{i + 1}")
        skipped.add("an answer is empty" if i else "the prompt does not end with the user", row)
    return skipped


def test_a_share_of_unusable_rows_is_allowed_and_counted():
    _skipped(0).check("a.jsonl", 1, 0.0)
    _skipped(2).check("a.jsonl", 200, 0.01)
    _skipped(3).check("a.jsonl", 4, 0.75)
    assert _skipped(3).reasons == {"an answer is empty": 2, "the prompt does not end with the user": 1}


def test_a_source_of_which_nothing_can_be_used_is_refused_whatever_is_allowed():
    with pytest.raises(UsageError, match="3 of 3 rows cannot be used"):
        _skipped(3).check("a.jsonl", 3, 1.0)


def test_a_larger_share_is_refused_with_the_first_of_each_kind():
    with pytest.raises(UsageError) as caught:
        _skipped(3).check("rm.data: a.jsonl", 299, 0.01)
    assert caught.value.message.splitlines() == [
        "rm.data: a.jsonl: 3 of 299 rows cannot be used.",
        "2 rows: an answer is empty (first at a.jsonl:2)",
        "1 row: the prompt does not end with the user (first at a.jsonl:1)",
    ]
