import json

import pytest

from chatpipe import console
from chatpipe.errors import TrainingError, UsageError


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.delenv("CHATPIPE_DEBUG", raising=False)


def test_data_goes_to_stdout_and_words_for_people_to_stderr(capsys):
    console.data("a row")
    console.note("a note")
    console.warn("careful")
    console.error(UsageError("wrong", "do this"))
    console.table("Title", ("a", "b"), [("1", "2")])
    with console.progress("sft", 10) as bar:
        bar.update(5, "loss 1.0")
    out, err = capsys.readouterr()
    assert out == "a row\n"
    assert err.startswith("a note\nwarning: careful\nerror: wrong\ndo this\n")


def test_a_log_file_gets_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("chatpipe.console.LINE_SECONDS", 0)
    with console.progress("scoring", 2000) as bar:
        bar.update(1000, "rows")
    with console.progress("sft", 10, lines=False) as bar:
        bar.update(5, "loss 1.0")
    assert capsys.readouterr().err == "scoring: 1,000 of 2,000 rows\n"


def test_a_json_object_is_one_line_that_every_reader_takes(capsys):
    console.json_object({"a": float("nan"), "b": [1.5, float("inf"), ("x", -float("inf"))], "c": {"d": "größer\n"}})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None, ["x", None]],
        "c": {"d": "größer\n"},
    }


def test_an_error_is_at_most_eight_lines(capsys):
    console.error(TrainingError("\n".join(f"line {i}" for i in range(20)), "the hint"))
    err = capsys.readouterr().err
    assert err.splitlines() == ["error: line 0", *(f"line {i}" for i in range(1, 8))]


def test_a_long_line_is_not_broken_so_that_paths_can_be_copied(capsys):
    path = "/".join(["folder"] * 60)
    console.error(UsageError(f"{path} is missing", path))
    console.note(path)
    assert capsys.readouterr().err == f"error: {path} is missing\n{path}\n{path}\n"


def test_text_in_brackets_is_no_markup(capsys):
    console.note("[red] [/] [1, 2]")
    console.error(UsageError("data: [{source: x}] [/bold]", "[link]"))
    console.table("Asked: [who]?", ("stage",), [("[b]answer[/b]",)])
    err = capsys.readouterr().err
    for text in ("[red] [/] [1, 2]", "data: [{source: x}] [/bold]", "\n[link]\n", "[b]answer[/b]", "Asked: [who]?"):
        assert text in err


def test_text_of_a_model_or_a_file_commands_no_terminal(capsys):
    spoilt = "a\x1b[31mb\x1b]0;title\x07c\x9bd\x0ee\u202ef\rg"
    console.note(spoilt)
    console.warn(spoilt)
    console.error(UsageError(spoilt.replace("\r", ""), spoilt.replace("\r", "")))
    console.table(spoilt, ("column",), [(spoilt,)])
    console.marked([(spoilt, True)])
    err = capsys.readouterr().err
    assert err.startswith("abcdefg\nwarning: abcdefg\nerror: abcdefg\nabcdefg\nabcdefg\n")
    assert err.endswith("⟦abcdefg⟧\n")
    assert "│ abcdefg │" in err
    assert all(character.isprintable() or character == "\n" for character in err)


def test_debug_adds_the_traceback(capsys, monkeypatch):
    def fail():
        raise UsageError("wrong")

    with pytest.raises(UsageError) as caught:
        fail()
    console.error(caught.value)
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("CHATPIPE_DEBUG", "1")
    console.error(caught.value)
    err = capsys.readouterr().err
    assert err.startswith("error: wrong\n")
    assert "in fail" in err


def test_a_table_shows_every_cell_on_its_row(capsys):
    rows = [("pretrain", "bits per byte", "8.00"), ("sft", "answers that stop", "97 %")]
    console.table("What each stage gained", ("stage", "measured", "after"), rows, ["green", "red"])
    lines = capsys.readouterr().err.splitlines()
    for row in rows:
        assert any(all(cell in line for cell in row) for line in lines)


def test_progress_is_silent_where_nobody_watches(capsys):
    with console.progress("sft", 100) as bar:
        for step in range(100):
            bar.update(step, "loss")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name, shown", [("FORCE_COLOR", "Who? \x1b[1;32mA cook.\x1b[0m\n"), ("NO_COLOR", "Who? ⟦A cook.⟧\n")]
)
def test_parts_of_a_text_are_marked_with_colour_or_without(capsys, monkeypatch, name, shown):
    for other in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "_console", None)
    console.marked([("Who? ", False), ("A cook.", True)])
    assert capsys.readouterr().err == shown


def test_silence_lasts_as_long_as_it_is_asked_for(capsys):
    with console.silence():
        console.note("not heard")
    console.note("heard")
    assert capsys.readouterr().err == "heard\n"
