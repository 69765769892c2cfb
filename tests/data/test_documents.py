import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from chatpipe.data import text_files
from chatpipe.data.documents import RawText, check_documents, sample_texts
from chatpipe.data.row_files import split_of
from chatpipe.data.text_files import cut
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock, Pocketworld, Recipe

WORLD = Recipe(pocketworld=Pocketworld(people=40, documents=200, conversations=100)).worlds


def raw(source: str, **more: object) -> RawText:
    return RawText(DataBlock(source=source, **more), WORLD, "pretrain.data")


def sides(text: RawText) -> tuple[list[str], list[str]]:
    """The documents of the train and the validation split, joined from their pieces."""
    found: tuple[list[str], list[str]] = ([], [])
    parts: list[str] = []
    for piece in text.pieces():
        parts.append(piece.text)
        if piece.ends:
            found[piece.split == "validation"].append("".join(parts))
            parts = []
    assert not parts
    return found


def problem_of(call, *arguments: object) -> str:
    with pytest.raises(UsageError) as caught:
        call(*arguments)
    return f"{caught.value.message}\n{caught.value.hint}"


def check(source: str, **more: object) -> None:
    check_documents([DataBlock(source=source, **more)], "pretrain.data")


# ---- which side a document is on ----


def test_documents_are_split_by_content_and_none_is_lost(write):
    texts = [f"Document {i}." for i in range(200)]
    train, validation = sides(raw(write("a.jsonl", [{"text": text} for text in texts])))
    assert sorted(train + validation) == sorted(texts)
    assert validation == [text for text in texts if split_of(text) == "validation"]


def test_the_last_tenth_of_one_text_is_for_validation_from_a_line_start_on(write):
    text = "".join(f"Line {i:03}.\n" for i in range(100))
    [train], [validation] = sides(raw(write("a.txt", text)))
    assert train + validation == text
    assert validation.startswith("Line 09")
    assert train.endswith("\n")
    assert sides(raw(write("a.jsonl", [{"text": text}]))) == ([train], [validation])


@pytest.mark.parametrize("text", ["word " * 200, "word " * 200 + "\n", "first\n" + "word " * 200 + "\n\n"])
def test_a_text_of_one_long_line_has_two_sides_too(write, text):
    [train], [validation] = sides(raw(write("a.txt", text)))
    assert train + validation == text
    assert len(train) == pytest.approx(0.9 * len(text), abs=10)


def test_of_a_few_files_each_gives_its_last_tenth_and_many_are_split_whole(tmp_path):
    texts = [f"{i} " + "words and more words\n" * 20 for i in range(120)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:03}.txt").write_text(text)
    train, validation = sides(raw(f"{tmp_path}/00*.txt"))
    assert [a + b for a, b in zip(train, validation, strict=True)] == texts[:10]
    train, validation = sides(raw(str(tmp_path)))
    assert validation == [text for text in texts if split_of(text) == "validation"]
    assert train == [text for text in texts if split_of(text) == "train"]


def test_a_document_of_a_text_file_may_be_a_line_or_the_text_between_blank_lines(write):
    paragraphs = [f"Line one of {i}.\nLine two of {i}." for i in range(50)]
    source = write("a.txt", "\n" + "\n \n\n".join(paragraphs) + "\n")
    train, validation = sides(raw(source, document="blank_line"))
    assert sorted(train + validation) == sorted(paragraphs)
    train, validation = sides(raw(source, document="line"))
    assert sorted(train + validation) == sorted(line for text in paragraphs for line in text.split("\n"))
    assert validation == [line for text in paragraphs for line in text.split("\n") if split_of(line) == "validation"]


def test_a_limit_is_of_all_documents_and_ends_the_reading(write):
    texts = [f"Document {i}." for i in range(2000)]
    source = write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts) + "{oops\n" * 999)
    train, validation = sides(raw(source, limit=100))
    assert train == [text for text in texts if split_of(text) == "train"][:90]
    assert validation == [text for text in texts if split_of(text) == "validation"][:10]
    bad = write("b.jsonl", "{oops\n" * 9 + "".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert "9 of 115" in problem_of(sides, raw(bad, limit=100))


def test_the_built_in_world_comes_the_same_each_time():
    text = raw("pocketworld")
    train, validation = sides(text)
    assert len(train) + len(validation) == 200
    assert sides(raw("pocketworld")) == sides(text) == (train, validation)


# ---- long documents ----


@given(st.text("ab \n中é", max_size=300), st.integers(1, 40))
def test_parts_of_a_text_are_the_text(text, size):
    parts = list(cut(text, size, 2 * size))
    assert "".join(parts) == text
    assert all(0 < len(part) <= 2 * size for part in parts)


def test_a_long_text_is_cut_where_words_end_anyway():
    assert list(cut("one two three\nfour", 4, 99)) == ["one two", " three\n", "four"]
    assert list(cut("a\n\nb  c\n d", 1, 99)) == ["a\n\nb  c\n d"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_long_file_comes_in_pieces_and_is_whole(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 1000)
    monkeypatch.setattr("chatpipe.data.text_files.CHUNK_BYTES", 777)
    text = "".join(f"Zeile {i}, größer als zuvor.\r\n" for i in range(900))
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    data = text.encode("utf-8-sig")
    path.write_bytes(gzip.compress(data) if packed else data)
    pieces = list(raw(str(path)).pieces())
    assert all(len(piece.text) <= 2000 for piece in pieces)
    assert sum(piece.ends for piece in pieces) == 2
    [train], [validation] = sides(raw(str(path)))
    assert train + validation == text.replace("\r\n", "\n")
    assert 0 <= len(train) - 0.9 * len(train + validation) < 40


def test_where_a_file_is_cut_does_not_depend_on_how_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 100)
    path = tmp_path / "a.txt"
    path.write_text("".join(f"some {'long ' * (i % 9)}line\n" for i in range(400)) + "中" * 700)
    found = []
    for size in (64, 1000, 10**6):
        monkeypatch.setattr("chatpipe.data.text_files.CHUNK_BYTES", size)
        found.append(list(raw(str(path)).pieces()))
    assert found[0] == found[1] == found[2]


# ---- samples ----


def test_a_sample_takes_the_beginning_of_every_source(write):
    long = write("a.jsonl", [{"text": f"{i} " + "x" * 98} for i in range(500)])
    short = write("b.jsonl", [{"text": f"{i} " + "y" * 98} for i in range(60)])
    texts = list(sample_texts([raw(long), raw(short)], "train", max_bytes=4000))
    assert [text.count("x") > 0 for text in texts] == [True] * 20 + [False] * 20
    validation = list(sample_texts([raw(long), raw(short)], "validation", max_bytes=10**6))
    assert validation == sides(raw(long))[1] + sides(raw(short))[1]


# ---- what cannot be used ----


def test_rows_without_text_are_counted_and_more_than_one_percent_are_refused(write):
    good = [json.dumps({"text": f"Document {i}."}) for i in range(500)]
    bad = ["{oops", '{"text": 3}', '{"text": " "}', '{"other": "x"}', '{"text": "\\ud800"}']
    text = raw(write("a.jsonl", "\n".join([*good, *bad])))
    train, validation = sides(text)
    assert len(train) + len(validation) == 500
    assert text.skipped.reasons == {
        "this line is not JSON": 1,
        "text is not text": 1,
        "text is empty": 1,
        "there is no field text": 1,
        "a text holds half a character, a lone surrogate": 1,
    }
    source = write("b.jsonl", "\n".join([*good[:300], *bad]))
    told = problem_of(sides, raw(source))
    assert f"pretrain.data: {source}: 5 of 305 rows cannot be used." in told
    assert f"1 row: this line is not JSON (first at {source}:301, Expecting" in told
    assert len(told.splitlines()) <= 8


def test_a_source_of_text_may_allow_more_unusable_rows(write):
    source = write("a.jsonl", [*({"text": f"Document {i}."} for i in range(80)), *({"text": ""} for _ in range(20))])
    assert "20 of 100 rows" in problem_of(sides, raw(source, max_skipped=0.19))
    train, validation = sides(raw(source, max_skipped=0.2))
    assert len(train) + len(validation) == 80


def test_a_few_bad_rows_at_the_beginning_are_a_few(write):
    rows = ["oops"] * 90 + [json.dumps({"text": f"Text {i}."}) for i in range(11_000)]
    text = raw(write("a.jsonl", "\n".join(rows)))
    assert sum(map(len, sides(text))) == 11_000
    assert text.skipped.reasons.total() == 90


def test_a_sample_has_whole_documents(write, monkeypatch):
    """Else the end of a piece would be taken for the end of its document."""
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 50)
    long = "word " * 60
    text = raw(write("a.jsonl", "".join(json.dumps({"text": f"{i} {long}"}) + "\n" for i in range(40))))
    validation = list(sample_texts([text], "validation", max_bytes=10**6))
    assert validation == sides(text)[1]
    assert len(validation) > 1


def test_a_carriage_return_at_the_end_of_a_file_ends_its_last_line(write):
    path = write("a.txt", "")
    with open(path, "wb") as file:
        file.write(b"a\r\nb\rc\r")
    assert "".join(piece.text for piece in raw(str(path), document="file").pieces()) == "a\nb\nc\n"


def test_a_long_source_of_bad_rows_is_not_read_to_its_end(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "fine"}\n' + b"oops\n" * 300_000 + b"\xff")
    assert "9999 of 10000 rows cannot be used." in problem_of(sides, raw(str(source)))


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.txt", "naïve".encode("latin-1"), "a.txt is not UTF-8 text: byte 2 cannot be read."),
        ("a.txt", b"\x7fELF\x01\x00\x00", "a.txt is not text: it holds zero bytes."),
        ("a.txt", b"", "a.txt is empty."),
        ("a.bin", b"x", "a.bin is not one of the files that can be read"),
        ("a.jsonl", b"\n\n", "a.jsonl holds no rows."),
        ("a.jsonl", b'{"body": "x", "id": 1}', "a.jsonl:1: pretrain.data finds no text in it; its fields are body, id"),
        ("a.csv", b"a,b\n1,2\n", "finds no text in it; its fields are a, b."),
    ],
)
def test_what_holds_no_text_is_found_before_anything_starts(tmp_path, name, content, part):
    path = tmp_path / name
    path.write_bytes(content)
    assert part in problem_of(check, str(path))


def test_a_missing_column_is_found_before_anything_starts(write):
    source = write("a.jsonl", [{"body": "x"}])
    check(source, columns={"text": "body"})
    assert ":1: there is no field boby; its fields are body." in problem_of(check_columns, source, "boby")
    assert "columns: {text: FIELD}" in problem_of(check, source)
    chats = write("b.jsonl", [{"question": "Who?", "answer": "Mara."}])
    assert "As question_answer it is for sft.data or ppo.data." in problem_of(check, chats)
    told = problem_of(lambda: check(source, columns={"txt": "body"}))
    assert "raw text has no field txt" in told
    assert "is messages, not text" in problem_of(lambda: check(source, format="messages"))


def test_a_setting_that_would_change_nothing_is_refused(write):
    rows, text = write("a.jsonl", [{"text": "x"}]), write("a.txt", "x")
    assert "has a document in each row" in problem_of(lambda: check(rows, document="line"))
    assert "is running text, which has no columns" in problem_of(lambda: check(text, columns={"text": "body"}))
    with pytest.raises(ValidationError, match="split is for data sets of the hub; a.jsonl is none"):
        DataBlock(source="a.jsonl", split="test")


def check_columns(source: str, name: str) -> None:
    check(source, columns={"text": name})


def test_a_file_that_is_blank_or_breaks_off_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" \n\n")
    assert f"pretrain.data: {path} is empty." in problem_of(sides, raw(str(path)))
    path.write_bytes(b"fine text\n" * 300_000 + b"\xc3")
    check(str(path))
    assert f"{path} is not UTF-8 text: byte 3000000 cannot be read." in problem_of(sides, raw(str(path)))
