"""The only place that prints: for people on stderr, data on stdout.

Nothing here decides the content. What people read may quote a model or a file: what could command
their terminal is left out. Progress bars appear on a terminal alone; a log file or a CI run
gets a line a minute instead.
"""

import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from chatpipe.errors import ChatpipeError

if TYPE_CHECKING:
    from rich.console import Console

MAX_ERROR_LINES = 8
LINE_SECONDS = 60.0
"""Seconds between the lines that a log file gets of a running task."""

# What could command a terminal instead of being read: escape sequences, all other C0 and C1 controls but newline and
# tab, and the marks that turn the direction of text round.
_CONTROLS = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|"
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)

_console: "Console | None" = None


def stderr_console() -> "Console":
    """The rich console on stderr, made on first use since importing rich takes time that `--help` does not have."""
    global _console
    if _console is None:
        from rich.console import Console

        # A log file has no width of its own: wide enough that a table's rows stay on one line.
        width = None if sys.stderr.isatty() else 160
        _console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True, width=width)
    return _console


def data(text: str) -> None:
    """Writes data for programs and pipes to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def json_object(value: dict[str, Any]) -> None:
    """Writes one JSON object to stdout; NaN and infinity, which JSON lacks, become null."""
    data(json.dumps(nan_to_none(value), ensure_ascii=False))


def note(text: str) -> None:
    """Prints a line for the person at the terminal."""
    stderr_console().print(printable(text), markup=False)


def log_line(text: str) -> None:
    """Prints a line into a log file; on a terminal, where a progress bar shows the same, nothing."""
    if not stderr_console().is_terminal:
        note(text)


def warn(text: str) -> None:
    """Prints a line that the person should not overlook."""
    stderr_console().print(f"warning: {printable(text)}", style="yellow", markup=False)


def printable(text: str) -> str:
    """A text of a model or a file without what could command a terminal."""
    return _CONTROLS.sub("", text)


def error(problem: ChatpipeError) -> None:
    """Shows what went wrong and what to do, in at most eight lines; `CHATPIPE_DEBUG=1` adds the traceback."""
    lines = [*f"error: {problem.message}".splitlines(), *problem.hint.splitlines()]
    for i, line in enumerate(lines[:MAX_ERROR_LINES]):
        stderr_console().print(printable(line), style="bold red" if i == 0 else None, markup=False)
    if os.environ.get("CHATPIPE_DEBUG"):
        trace(problem)


def trace(problem: BaseException) -> None:
    """Writes the traceback of an error, and of what it came from, to stderr."""
    traceback.print_exception(problem, file=sys.stderr)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> None:
    """Shows a table on stderr; `styles` gives a rich style for each row, by default none."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(printable(title)), title_justify="left", title_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for i, row in enumerate(rows):
        shown.add_row(*(Text(printable(cell)) for cell in row), style=styles[i] if styles else None)
    stderr_console().print(shown)


def marked(parts: Sequence[tuple[str, bool]]) -> None:
    """Shows a text some parts of which are marked (True): in colour, or between ⟦ and ⟧ where there is no colour."""
    from rich.text import Text

    shown = stderr_console()
    has_colour = shown.color_system is not None and not shown.no_color
    text = Text()
    for part, is_marked in parts:
        part = printable(part)
        text.append(f"⟦{part}⟧" if is_marked and not has_colour else part, "bold green" if is_marked else "")
    shown.print(text)


@contextmanager
def silence() -> Iterator[None]:
    """Inside this context nothing is printed for the person at the terminal."""
    shown = stderr_console()
    before, shown.quiet = shown.quiet, True
    try:
        yield
    finally:
        shown.quiet = before


class ProgressBar(Protocol):
    """What a running task reports to: how far it is, a few words such as the loss, and how much there is in all.

    `total` stays what it was where it is not given.
    """

    def update(self, completed: float, words: str = "", total: float | None = None) -> None: ...


class _Quiet:
    """A progress bar for when nobody watches."""

    def update(self, completed: float, words: str = "", total: float | None = None) -> None:
        pass


class _Lines:
    """A line now and then, for a log file."""

    def __init__(self, title: str, total: float | None) -> None:
        self._title, self._total, self._printed = title, total, time.monotonic()

    def update(self, completed: float, words: str = "", total: float | None = None) -> None:
        self._total = total or self._total
        if time.monotonic() - self._printed >= LINE_SECONDS:
            of = "" if self._total is None else f" of {self._total:,.0f}"
            note(f"{self._title}: {completed:,.0f}{of} {words}".rstrip())
            self._printed = time.monotonic()


class _Bar:
    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    def update(self, completed: float, words: str = "", total: float | None = None) -> None:
        self._progress.update(self._task, completed=completed, words=words, total=total)


@contextmanager
def progress(title: str, total: float | None, lines: bool = True) -> Iterator[ProgressBar]:
    """A progress bar on stderr with step, words and time left; a line a minute where stderr is not a terminal.

    Without `lines` there is none: whoever updates the bar writes lines of its own. `total` is None while it is not
    known how much there is to do.
    """
    if not stderr_console().is_terminal:
        yield _Lines(title, total) if lines else _Quiet()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=stderr_console(), transient=True) as shown:
        yield _Bar(shown, shown.add_task(title, total=total, words=""))


def nan_to_none(value: Any) -> Any:
    """`value` with null for NaN and infinity, which JSON lacks, in all lists and objects inside."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
