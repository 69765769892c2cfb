"""One chatpipe at a time works in a folder, or writes to a file.

Not with the library filelock: it locks files only, so that each folder would get one, also folders of other people's
that are looked at and refused; and where a file system has no locks, it leaves a lock that outlives a kill.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatpipe.errors import UsageError


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Locks `folder`, which is made if missing, until the block ends. Raises `UsageError` if another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    refused = UsageError(
        f"Another chatpipe is at work in {folder}.", "Wait until it has ended, or choose another folder with out=."
    )
    with _locked(folder, os.O_RDONLY, refused):
        yield


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Locks one file for writing, as `folder_lock` locks a folder.

    The lock is an empty file that stays, `PATH.lock`; of a symbolic link, next to the file that it points to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    refused = UsageError(f"Another chatpipe writes to {path}.", "End that one first, or choose another file.")
    with _locked(Path(f"{os.path.realpath(path)}.lock"), os.O_RDWR | os.O_CREAT, refused):
        yield


@contextmanager
def _locked(path: Path, flags: int, refused: UsageError) -> Iterator[None]:
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
