"""What can go wrong for a user, and the exit code each kind of trouble has.

Every error a user can cause is a `ChatpipeError`. Its message names what is wrong, where, and what to do, in at most
eight lines; `chatpipe.cli` prints it and exits with `exit_code`. Anything else that is raised is a bug of ours.
"""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

MAX_REASON = 300
"""Characters of a library's message that an error repeats."""


class ExitCode(IntEnum):
    """Exit codes of the `chatpipe` command, as promised in the contract."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    WAITING_FOR_RANKINGS = 3
    INTERRUPTED = 130


class ChatpipeError(Exception):
    """Base of all errors that are shown to a user: `message` names what is wrong and where, `hint` what to do."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ChatpipeError):
    """The command, the recipe, the data or the model folder is wrong (exit 2). The stage has written nothing."""

    exit_code = ExitCode.USAGE


class TrainingError(ChatpipeError):
    """A stage could not continue: non-finite losses, no disk space, a failed rank (exit 1)."""


class WaitingForRankings(ChatpipeError):
    """The run continues once people have ranked its samples (exit 3)."""

    exit_code = ExitCode.WAITING_FOR_RANKINGS


class Interrupted(ChatpipeError):
    """The user interrupted a stage; its resume point is saved (exit 130)."""

    exit_code = ExitCode.INTERRUPTED


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""Words of torch's errors for a CPU, a GPU and its libraries."""


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that main memory, or that of a GPU, is used up. torch need not be imported."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in _OUT_OF_MEMORY)


@contextmanager
def less_memory(remedy: str) -> Iterator[None]:
    """Raises `TrainingError` with this remedy where the work inside needs more memory than there is."""
    try:
        yield
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        raise TrainingError(f"This needs more memory than there is: {reason_of(problem)}", remedy) from problem


def reason_of(problem: BaseException) -> str:
    """What a library or a user's code raised, in one line: its class and the beginning of its message."""
    return textwrap.shorten(f"{type(problem).__name__}: {problem}", MAX_REASON, placeholder=" ...")
