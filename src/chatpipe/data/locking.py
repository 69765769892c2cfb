"""One chatpipe at a time works in a folder, or writes to a file.

Not with the library filelock: it locks files only, so that each folder would get one, also folders of other people's
that are looked at and refused; and where a file system has no locks, it leaves a lock that outlives a kill.
"""

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
    refused = UsageError(
        f"Another chatpipe is at work in {folder}.", "Wait until it has ended, or choose another folder with out=."
    )
    with _locked(folder, os.O_RDONLY, refused):
        yield


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """As `alone_in`, for writing to one file, whichever of its names `path` is.

    What is locked is an empty file that stays: `PATH.lock`, beside the file that a symbolic link leads to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    refused = UsageError(f"Another chatpipe writes to {path}.", "End that one first, or choose another file.")
    with _locked(Path(f"{os.path.realpath(path)}.lock"), os.O_RDWR | os.O_CREAT, refused):
        yield


@contextmanager
def _locked(path: Path, flags: int, refused: UsageError) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, flags, 0o666)
    try:
        _lock(descriptor, refused)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, refused: UsageError) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as problem:  # the second on some network file systems
        raise refused from problem
    except OSError:
        return  # a file system without locks
