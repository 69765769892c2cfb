"""Ranking in the terminal: each task is printed whole, and one line is typed for it.

Nothing is drawn over, so a screen reader and a pipe read it as it comes.
"""

import contextlib
import itertools
import re
import secrets
import sys

from chatpipe import console
from chatpipe.errors import UsageError
from chatpipe.ranking.items import BadAnswer
from chatpipe.ranking.session import Session, StaleTask, View

HELP = """\
2 1=3 4        answer 2 is the best, 1 and 3 are equal, 4 is the worst; this submits the ranking
bad            all answers are bad; this submits too; a ranking may follow: bad 2 1=3 4
skip REASON    skip this task
flag           flag it for others to look at; again takes the flag off
note TEXT      write a note
undo, redo     without limit, also over submitted rankings
show           print the task again
quit           end; everything is saved"""

PROMPT = "rank> "


def check_input() -> None:
    """Raises `UsageError` if the command was started without an input."""
    if sys.stdin is None:
        raise UsageError(
            "There is no input to read rankings from (it is closed).", "Start it in a terminal, or give a pipe."
        )


def rank_in_terminal(session: Session) -> None:
    """Asks for one ranking after another until `quit` or the end of the input.

    A line that cannot be used is reported. From a file or pipe it ends the command with `UsageError`, since the lines
    after it were written for other tasks than those that would come. So does input that is not UTF-8.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (importing it gives `input` line editing and a history)
    console.note(f"{HELP}\nhelp           print this again\n")
    view = session.view()
    _show(view)
    for number in itertools.count(1):
        line = _read()
        command, rest = _command(line or "")
        if line is None or command == "quit":
            return
        try:
            view = _do(session, view, command, rest)
        except (BadAnswer, StaleTask) as problem:
            if not sys.stdin.isatty():
                raise UsageError(
                    f"Line {number} of the input, {line!r}, cannot be used: {problem}.",
                    "The lines before it are saved. Correct it, and give it with the lines that follow.",
                ) from problem
            view = _report(session, view, problem)


def _command(line: str) -> tuple[str, str]:
    """The first word of a line, in lower case, and the rest."""
    word, *rest = line.split(maxsplit=1) or [""]
    return word.lower(), "".join(rest).strip()


def _do(session: Session, view: View, command: str, rest: str) -> View:
    """Carries out a line. Raises `BadAnswer` and `StaleTask`."""
    if command == "help":
        console.note(HELP)
    elif command == "show":
        _show(view)
    elif command:
        before, view = view, _carry_out(session, view, command, rest)
        if view.task != before.task:
            _show(view)
    return view


def _report(session: Session, view: View, problem: Exception) -> View:
    """Prints what is wrong with a line, which changed nothing; returns what there is to rank."""
    if isinstance(problem, BadAnswer):
        console.note(f"Not saved: {problem}. Type help for what can be typed.")
        return view
    console.note("This task was answered elsewhere. Here is the next one.")
    view = session.view()
    _show(view)
    return view


def _carry_out(session: Session, view: View, command: str, rest: str) -> View:
    """Carries out a line that changes something, and prints that it is saved."""
    if command in ("undo", "redo"):
        return _move(session, view, command)
    if view.task is None:
        raise BadAnswer("nothing is left to rank; undo leads back")
    answer = dict(view.answer)
    if command in ("flag", "note"):
        answer |= {"flag": not answer["flag"]} if command == "flag" else {"note": rest}
        view = _act(session, view, "edit", answer)
        console.note("Flagged." if view.answer["flag"] and command == "flag" else "Saved.")
        return view
    if command == "skip":
        view = _act(session, view, "skip", answer, rest)
    else:
        # An edit made on the page before is kept: also `all_bad` when a ranking is typed.
        answer["all_bad"] |= command == "bad"
        line = rest if command == "bad" else f"{command} {rest}"
        if line:
            answer["ranks"] = read_ranks(line, len(view.responses))
        view = _act(session, view, "submit", answer)
    bad = " All answers are bad." if command != "skip" and answer["all_bad"] else ""
    console.note(f"Saved: {view.done} done, {view.left} left.{bad}")
    return view


def _act(session: Session, view: View, action: str, answer: dict | None, reason: str | None = None) -> View:
    return session.act(secrets.token_hex(16), action, view.task, answer, reason)


def _move(session: Session, view: View, word: str) -> View:
    if not (view.can_undo if word == "undo" else view.can_redo):
        raise BadAnswer(f"there is nothing to {word}")
    moved = _act(session, view, word, None)
    console.note("Undone." if word == "undo" else "Done again.")
    if moved.task == view.task and moved.task is not None:
        console.note(_so_far(moved))
    return moved


def read_ranks(line: str, k: int) -> list[int]:
    """The ranks of `k` answers in a line such as `2 1=3 4`. Raises `BadAnswer`."""
    if not re.fullmatch(r"[0-9=\s]+", line):
        raise BadAnswer(f"there is no command {line.split()[0]!r}")
    ranks: dict[int, int] = {}
    for rank, group in enumerate(re.sub(r"\s*=\s*", "=", line).split(), start=1):
        for number in group.split("="):
            if number not in {str(i) for i in range(1, k + 1)}:
                raise BadAnswer(f"the answers are 1 to {k}")
            if int(number) in ranks:
                raise BadAnswer(f"answer {number} is named twice")
            ranks[int(number)] = rank
    if missing := [str(i) for i in range(1, k + 1) if i not in ranks]:
        raise BadAnswer(f"not ranked: {', '.join(missing)}")
    return [ranks[i] for i in range(1, k + 1)]


def _show(view: View) -> None:
    """Prints the whole task: what is asked, and every answer in full."""
    if view.task is None:
        console.note(f"\nNothing is left to rank; {view.done} done. undo leads back, quit ends.")
        return
    pace = "" if view.seconds_per_task is None else f", about {view.seconds_per_task:.0f} s each"
    lines = [f"\n== Task {view.done + 1} ({view.left} left{pace}) =="]
    for message in view.prompt:
        lines += [f"\n-- Prompt, {message['role']} --", message["content"]]
    for number, response in enumerate(view.responses, start=1):
        lines += [f"\n-- Answer {number} --", response]
    console.note("\n".join(lines) + "\n")
    if so_far := _so_far(view):
        console.note(so_far)


def _so_far(view: View) -> str:
    """The answer to the task so far, in words."""
    ranks = view.answer["ranks"]
    groups = [
        "=".join(str(i) for i, rank in enumerate(ranks, start=1) if rank == place)
        for place in sorted({rank for rank in ranks if rank is not None})
    ]
    parts = [f"ranked {' '.join(groups)}"] if groups else []
    parts += ["all bad"] if view.answer["all_bad"] else []
    parts += ["flagged"] if view.answer["flag"] else []
    parts += [f"note: {view.answer['note']}"] if view.answer["note"] else []
    return f"So far: {'; '.join(parts)}." if parts else ""


def _read() -> str | None:
    """The next line, None at the end of the input."""
    try:
        # `input` writes its prompt to stdout, which is for data unless a person looks at it.
        return input(PROMPT if sys.stdin.isatty() and sys.stdout.isatty() else "").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as problem:
        raise UsageError(
            f"the input is not UTF-8 ({problem}).", "Convert it first, for example with iconv."
        ) from problem
