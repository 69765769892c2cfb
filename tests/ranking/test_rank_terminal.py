import io
import sys

import pytest
from ranked import item

from chatpipe.errors import UsageError
from chatpipe.ranking.answers import BadAnswer
from chatpipe.ranking.items import Item, item_id
from chatpipe.ranking.session import Session
from chatpipe.ranking.standing import standing_rankings
from chatpipe.ranking.store import Store
from chatpipe.ranking.terminal import rank_in_terminal, read_ranks


@pytest.fixture
def store(tmp_path):
    items = [item(f"Question {number}?", [f"{name} {number}" for name in "abc"]) for number in range(3)]
    with Store.create_or_open(tmp_path / "r.db", items, seed=0, overlap=1, repeats=0) as store:
        store.add_annotator("ann", "person")
        yield store


@pytest.fixture
def type_lines(store, monkeypatch, capsys):
    """Types lines, and gives what was said to them."""

    def type_lines(*lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        rank_in_terminal(Session(store, "ann"))
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return type_lines


@pytest.mark.parametrize(
    "line, ranks",
    [("2 1=3 4", [2, 1, 2, 3]), ("1 2 3 4", [1, 2, 3, 4]), ("4=3=2=1", [1] * 4), ("2 1 = 3  4", [2, 1, 2, 3])],
)
def test_a_line_is_a_ranking(line, ranks):
    assert read_ranks(line, 4) == ranks


@pytest.mark.parametrize(
    "line, says",
    [
        ("1 2 3", "not ranked: 4"),
        ("1 2 3 4 4", "answer 4 is named twice"),
        ("1 2 3 5", "the answers are 1 to 4"),
        ("0 1 2 3", "the answers are 1 to 4"),
        ("1= 2 3 4 =", "the answers are 1 to 4"),
        ("1 > 2", "'1' is not known"),
        ("best", "'best' is not known"),
    ],
)
def test_a_line_that_is_no_ranking_is_told(line, says):
    with pytest.raises(BadAnswer, match=says):
        read_ranks(line, 4)


def test_a_session_through_a_pipe(store, type_lines):
    said = type_lines("2 1=3", "note odd", "bad", "skip too long", "quit", "1 2 3")
    rankings = standing_rankings(store)
    assert [ranking.ranks for ranking in rankings if ranking.all_bad] == [[1, 1, 1]]
    assert [ranking.note for ranking in rankings if ranking.all_bad] == ["odd"]
    assert [ranking.skipped for ranking in rankings if ranking.skipped] == ["too long"]
    [first] = [ranking for ranking in rankings if not ranking.all_bad and not ranking.skipped]
    assert [first.ranks[index] for index in first.order] == [2, 1, 2]  # typed for the shown order, stored in the file's
    assert "Saved: 3 done, 0 left." in said
    assert said.rstrip().endswith("Nothing is left to rank; 3 done. undo leads back, quit ends.")


def test_every_text_is_printed_whole(store, type_lines):
    said = type_lines()
    shown = Session(store, "ann").view()
    for text in [shown.prompt[0]["content"], *shown.responses]:
        assert text in said


def test_undo_goes_back_over_what_was_submitted_and_redo_forward(store, type_lines):
    said = type_lines("1 2 3", "undo", "3 2 1", "undo", "redo", "redo")
    [ranking] = standing_rankings(store)
    assert [ranking.ranks[index] for index in ranking.order] == [3, 2, 1]
    assert "Not taken: there is nothing to redo." in said


def test_a_flag_and_a_note_are_kept_for_the_next_time(store, type_lines):
    type_lines("flag", "note see the 2nd")
    said = type_lines("show")
    assert said.count("So far: flagged; note: see the 2nd.") == 2
    type_lines("flag", "note", "1 2 3")
    [ranking] = standing_rankings(store)
    assert (ranking.flag, ranking.note) == (False, "")


def test_what_is_wrong_changes_nothing(store, type_lines):
    said = type_lines("1 2", "skip", "undo", "bogus", "")
    assert said.count("Not taken: ") == 4
    assert {event.action for event in store.events()} == {"show"}


def test_what_was_answered_elsewhere_is_not_answered_again(store, monkeypatch):
    class Elsewhere(io.StringIO):
        """Before the first line is typed here, the page answers."""

        def readline(self, *size):
            if not standing_rankings(store):
                page = Session(store, "ann")
                page.act("page-key", "submit", page.view().task, {"ranks": [1, 2, 3]})
            return super().readline(*size)

    monkeypatch.setattr(sys, "stdin", Elsewhere("3 2 1\n"))
    rank_in_terminal(Session(store, "ann"))
    [ranking] = standing_rankings(store)
    assert [ranking.ranks[index] for index in ranking.order] == [1, 2, 3]


def test_no_control_sequence_of_a_model_reaches_the_terminal(tmp_path, monkeypatch, capsys):
    hostile = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\x9b1mC1\u202eback [bold]plain[/bold] :smile:\r\x08"
    asked = [{"role": "user\x1b[1m", "content": hostile}], [hostile, "other"]
    items = [Item(item_id(*asked), *asked)]
    with Store.create_or_open(tmp_path / "h.db", items, seed=0, overlap=1, repeats=0) as store:
        store.add_annotator("ann", "person")
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"note {hostile}\nshow\n"))
        rank_in_terminal(Session(store, "ann"))
    said = capsys.readouterr().err
    assert not set(said) & set("\x1b\x9b\x07\x08\r\u202e")
    assert said.count("red1mC1back [bold]plain[/bold] :smile:") >= 4


def test_input_that_is_not_utf8_is_refused(store, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"note caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(UsageError, match="UTF-8"):
        rank_in_terminal(Session(store, "ann"))
