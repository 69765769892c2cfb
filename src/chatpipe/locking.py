"""One chatpipe at a time works in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatpipe.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds `folder` (made where it is missing) until the block ends; raises `UsageError` where another process does.

    What is locked is the folder itself, so no file is left behind, also after a kill.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        raise UsageError(
            f"Another chatpipe is at work in {folder}.", "Wait until it has ended, or choose another folder with out=."
        ) from problem
    except OSError:
        return  # a file system without locks
