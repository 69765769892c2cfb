"""The completions file as items: what becomes of its rows, good and bad."""

import hashlib
import json
from pathlib import Path

import pytest

from chatpipe.errors import UsageError
from chatpipe.ranking.items import Item, read_items

QUESTION = [{"role": "user", "content": "Why?"}]


def write(folder: Path, *rows: object) -> Path:
    path = folder / "c.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def good(count: int) -> list[dict]:
    return [{"prompt": f"Question {i}?", "responses": ["yes", "no"]} for i in range(count)]


def test_an_item_is_prompt_and_responses_and_nothing_else_of_the_row(tmp_path):
    row = {"prompt": QUESTION, "responses": ["b", "a", "ü"], "round": 2, "models": ["x", "y", "z"], "scores": [1, 2, 3]}
    canonical = '[[{"content":"Why?","role":"user"}],["b","a","\\u00fc"]]'
    assert read_items(write(tmp_path, row)) == [
        Item(hashlib.sha256(canonical.encode()).hexdigest()[:16], QUESTION, ["b", "a", "ü"], 2)
    ]
    (named,) = read_items(write(tmp_path, {"id": "q-1", **row}))
    assert (named.own_id, named.id) == ("q-1", hashlib.sha256(canonical.encode()).hexdigest()[:16])


def test_a_prompt_may_be_text_and_the_round_is_optional(tmp_path):
    (item,) = read_items(write(tmp_path, {"prompt": "Why?", "responses": ["a", "b"]}))
    assert (item.prompt, item.round) == (QUESTION, None)


@pytest.mark.parametrize(
    "row, reason",
    [
        pytest.param({"prompt": "q", "responses": ["one"]}, "responses are not two or more texts", id="one"),
        pytest.param({"prompt": "q", "responses": list("abcdefghij")}, "there are more than 9 responses", id="ten"),
        pytest.param({"prompt": "q", "responses": ["a", " "]}, "a response is empty", id="empty"),
        pytest.param({"prompt": "q", "responses": []}, "responses are not two or more texts", id="none"),
        pytest.param({"prompt": "q"}, "responses are not two or more texts", id="no-responses"),
        pytest.param({"prompt": "q", "responses": ["a", 2]}, "responses are not two or more texts", id="number"),
        pytest.param({"responses": ["a", "b"]}, "there are no messages", id="no-prompt"),
        pytest.param({"prompt": "q", "responses": ["a", "b"], "round": "2"}, "round is not a whole number", id="round"),
        pytest.param({"prompt": "q", "responses": ["a", "\ud800"]}, "half a character", id="surrogate"),
        pytest.param({"prompt": "Question 0?", "responses": ["yes", "no"]}, "was there before", id="doubled"),
        pytest.param('{"prompt": "q", "resp', "this line is not JSON", id="broken"),
    ],
)
def test_a_row_that_nobody_can_rank_is_left_out_counted_and_named(tmp_path, capsys, row, reason):
    path = write(tmp_path, *good(150), row)
    assert len(read_items(path)) == 150
    said = capsys.readouterr().err
    assert "151 rows, 1 left out" in said
    assert reason in said
    assert f"{path}:151" in said


def test_more_than_one_in_a_hundred_is_refused(tmp_path):
    path = write(tmp_path, *good(90), *good(10))
    with pytest.raises(UsageError) as caught:
        read_items(path)
    assert f"rank: {path}: 10 of 100 rows cannot be used." in caught.value.message
    assert f"10 rows: this prompt with these responses was there before (first at {path}:91)" in caught.value.message
    assert "two to nine" in caught.value.hint


@pytest.mark.parametrize("text", ["", "\n"])
def test_a_file_without_rows_is_refused(tmp_path, text):
    path = tmp_path / "c.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_items(path)


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        read_items(tmp_path / "c.jsonl")
