import io
import sys

import pytest
from ranked import item

from chatpipe.errors import UsageError
from chatpipe.ranking.history import History
from chatpipe.ranking.items import BadAnswer, Item, item_id
from chatpipe.ranking.session import Session
from chatpipe.ranking.store import Store
from chatpipe.ranking.terminal import rank_in_terminal, read_ranks


@pytest.fixture
def store(tmp_path):
    items = [item(f"Question {number}?", [f"{name} {number}" for name in "abc"]) for number in range(3)]
    with Store.create_or_open(tmp_path / "r.db", items, seed=0, overlap=1, repeats=0) as store:
        store.add_annotator("ann", "person")
        yield store


class Keyboard(io.StringIO):
    """Lines that somebody types."""

    def isatty(self):
        return True


@pytest.fixture
def type_lines(store, monkeypatch, capsys):
    """Types lines, and returns what was printed."""

    def type_lines(*lines):
        monkeypatch.setattr(sys, "stdin", Keyboard("".join(line + "\n" for line in lines)))
        rank_in_terminal(Session(store, "ann"))
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return type_lines


@pytest.fixture
def pipe_lines(store, monkeypatch):
    """Gives lines through a pipe."""

    def pipe_lines(*lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        rank_in_terminal(Session(store, "ann"))

    return pipe_lines


@pytest.mark.parametrize(
    "line, ranks",
    [
        ("2 1=3 4", [2, 1, 2, 3]),
        ("1 2 3 4", [1, 2, 3, 4]),
        ("4=3=2=1", [1] * 4),
        ("2 1 = 3  4", [2, 1, 2, 3]),
        ("2\t1=\u00a03 4", [2, 1, 2, 3]),
    ],
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
        ("1 > 2", "there is no command '1'"),
        ("best", "there is no command 'best'"),
    ],
)
def test_a_line_that_is_no_ranking_is_reported(line, says):
    with pytest.raises(BadAnswer, match=says):
        read_ranks(line, 4)


def test_a_session_through_a_pipe(store, pipe_lines, capsys):
    pipe_lines("2 1=3", "note odd", "bad", "", "skip too long", "quit", "1 2 3")
    said = capsys.readouterr().err
    rankings = store.rankings()
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
    [ranking] = store.rankings()
    assert [ranking.ranks[index] for index in ranking.order] == [3, 2, 1]
    assert "Not saved: there is nothing to redo." in said


def test_a_flag_and_a_note_are_kept_for_the_next_time(store, type_lines):
    type_lines("flag", "note see the 2nd")
    said = type_lines("show")
    assert said.count("So far: flagged; note: see the 2nd.") == 2
    type_lines("flag", "note", "1 2 3")
    [ranking] = store.rankings()
    assert (ranking.flag, ranking.note) == (False, "")


def test_what_is_wrong_changes_nothing(store, type_lines):
    said = type_lines("1 2", "skip", "undo", "bogus", "")
    assert said.count("Not saved: ") == 4
    assert History(store, "ann").steps() == []


@pytest.mark.parametrize(
    "wrong, why",
    [
        ("1 2", "not ranked: 3"),
        ("1 2 3 4", "the answers are 1 to 3"),
        ("skip", "a skip needs a reason"),
        ("bogus", "there is no command 'bogus'"),
        ("redo", "there is nothing to redo"),
    ],
)
def test_a_line_of_a_pipe_that_is_not_taken_ends_it(store, pipe_lines, wrong, why):
    """The next line was written for the next task, and would rank this one."""
    with pytest.raises(UsageError) as caught:
        pipe_lines("2 1=3", "", wrong, "1 2 3")
    assert caught.value.message == f"Line 3 of the input, {wrong!r}, cannot be used: {why}."
    [ranking] = store.rankings()
    assert [ranking.ranks[index] for index in ranking.order] == [2, 1, 2]


def test_a_line_of_a_pipe_for_more_tasks_than_there_are_is_reported(store, pipe_lines):
    with pytest.raises(UsageError, match="Line 4 of the input, '1 2 3', cannot be used: nothing is left to rank"):
        pipe_lines(*["1 2 3"] * 4)
    assert len(store.rankings()) == 3


def test_blanks_and_capitals_do_not_matter_to_a_command(store, type_lines):
    type_lines("NOTE\tas Written ", "FLAG", "Skip\u00a0 too long")
    [skipped] = store.rankings()
    assert (skipped.skipped, skipped.note, skipped.flag) == ("too long", "as Written", True)


def test_a_ranking_and_all_bad_go_together(store, type_lines):
    said = type_lines("bad 2 1=3", "Bad")
    assert said.count("left. All answers are bad.") == 2
    rankings = store.rankings()
    assert [ranking.all_bad for ranking in rankings] == [True, True]
    assert sorted([ranking.ranks[index] for index in ranking.order] for ranking in rankings) == [[1, 1, 1], [2, 1, 2]]


def test_a_ranking_keeps_that_all_are_bad_where_the_page_marked_it(store, type_lines):
    page = Session(store, "ann")
    page.act("page-key", "edit", page.view().task, {"ranks": [None] * 3, "all_bad": True})
    said = type_lines("2 1=3")
    assert "So far: all bad" in said
    assert "Saved: 1 done, 2 left. All answers are bad." in said
    [ranking] = store.rankings()
    assert ([ranking.ranks[index] for index in ranking.order], ranking.all_bad) == ([2, 1, 2], True)


@pytest.mark.parametrize("kind", [Keyboard, io.StringIO])
def test_what_was_answered_elsewhere_is_not_answered_again(store, monkeypatch, capsys, kind):
    class Elsewhere(kind):
        """Before the first line is typed here, the page answers."""

        def readline(self, *size):
            if not store.rankings():
                page = Session(store, "ann")
                page.act("page-key", "submit", page.view().task, {"ranks": [1, 2, 3]})
            return super().readline(*size)

    monkeypatch.setattr(sys, "stdin", Elsewhere("3 2 1\n"))
    if kind is Keyboard:
        rank_in_terminal(Session(store, "ann"))
        said = capsys.readouterr().err
        assert "This task was answered elsewhere. Here is the next one.\n\n== Task 2" in said
    else:
        with pytest.raises(UsageError, match="Line 1 of the input, '3 2 1', cannot be used"):
            rank_in_terminal(Session(store, "ann"))
    [ranking] = store.rankings()
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
