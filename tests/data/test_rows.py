import pytest

from chatpipe.data.rows import Row, Skipped, data_file, read_rows, read_text
from chatpipe.errors import UsageError


def problem_of(read, source: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(source, "sft.data")
    return f"{caught.value.message}\n{caught.value.hint}"


def test_rows_of_jsonl_know_their_lines_blank_ones_counted(write):
    path = write("a.jsonl", '{"text": "one"}\n\n  \n{"text": "two"}')
    assert read_rows(path, "k") == [Row({"text": "one"}, f"{path}:1"), Row({"text": "two"}, f"{path}:4")]


def test_line_separators_inside_a_string_end_no_row(write):
    text = "a\u2028b\u0085c\u000bd"
    path = write("a.jsonl", f'{{"text": "{text[:3]}"}}\n{{"text": "two\u2029"}}\n')
    assert [row.values["text"] for row in read_rows(path, "k")] == ["a\u2028b", "two\u2029"]


def test_windows_files_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    assert [row.values["text"] for row in read_rows(str(path), "k")] == ["one", "two"]


def test_rows_of_json_know_their_numbers(write):
    path = write("a.json", [{"text": "one"}, {"text": "two"}])
    assert [row.where for row in read_rows(path, "k")] == [f"{path} row 1", f"{path} row 2"]


def test_a_line_that_is_not_json_is_named(write):
    path = write("a.jsonl", '{"text": "one"}\n{"text": oops}\n')
    assert f"{path}:2: this line is not JSON: Expecting value at column 10." in problem_of(read_rows, path)


def test_a_file_that_is_not_json_is_named_with_the_line(write):
    path = write("a.json", '[\n{"text": "one"},\n]')
    told = problem_of(read_rows, path)
    assert f"{path}:" in told
    assert "this is not JSON" in told
    lines = write("b.json", '{"text": "one"}\n{"text": "two"}\n')
    assert f"{lines}:2: this is not JSON: Extra data" in problem_of(read_rows, lines)
    assert "name it .jsonl" in problem_of(read_rows, lines)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl", '{"text": "one"}\n[1, 2]\n', ":2: a row is an object with named fields, not a list"),
        ("a.json", '[{"text": "one"}, 3]', "row 2: a row is an object with named fields, not a int"),
        ("a.json", '{"text": "one"}', "a list of rows is expected, not one dict"),
        ("a.json", "[]", "holds no rows"),
        ("a.jsonl", "\n \n", "holds no rows"),
        ("a.jsonl", "", "sft.data: {path} is empty"),
        ("a.csv", "a,b\n", "sft.data: {path} is not one of the files that can be read: .txt, .json, .jsonl"),
    ],
)
def test_what_is_no_file_of_rows_is_refused(write, name, content, part):
    path = write(name, content)
    assert part.format(path=path) in problem_of(read_rows, path)


def test_a_missing_file_and_a_folder_are_refused_with_the_key(tmp_path):
    missing = str(tmp_path / "no.jsonl")
    assert f"sft.data: there is no file {missing}." in problem_of(data_file, missing)
    assert f"sft.data: {tmp_path} is not one of the files" in problem_of(data_file, str(tmp_path))


def test_text_that_is_not_utf8_is_refused_with_the_byte(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("naïve".encode("latin-1"))
    assert f"{path} is not UTF-8 text: byte 2 cannot be read." in problem_of(read_text, str(path))


def test_text_without_content_is_refused(write):
    assert "is empty" in problem_of(read_text, write("a.txt", " \n\n"))
    assert read_text(write("b.txt", "One.\nTwo.\n"), "k") == "One.\nTwo.\n"


def _skipped(count: int) -> Skipped:
    skipped = Skipped()
    for i in range(count):
        skipped.add("an answer is empty" if i else "the prompt does not end with the user", f"a.jsonl:{i + 1}")
    return skipped


def test_one_percent_of_unusable_rows_is_allowed_and_counted():
    _skipped(0).check("a.jsonl", 1)
    _skipped(2).check("a.jsonl", 200)
    assert _skipped(3).reasons == {"an answer is empty": 2, "the prompt does not end with the user": 1}


def test_more_than_one_percent_is_refused_with_the_first_of_each_kind():
    with pytest.raises(UsageError) as caught:
        _skipped(3).check("rm.data: a.jsonl", 299)
    assert caught.value.message.splitlines() == [
        "rm.data: a.jsonl: 3 of 299 rows cannot be used.",
        "2 rows: an answer is empty (first at a.jsonl:2)",
        "1 rows: the prompt does not end with the user (first at a.jsonl:1)",
    ]
