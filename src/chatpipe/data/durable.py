"""Writing that survives a kill and a second chatpipe: whole files, folders complete or invisible, and locks.

A folder is written as `NAME.partial`; `publish` adds a manifest (the size and SHA-256 of each file) and renames it to
`NAME`. A write that is interrupted leaves nothing under that name, and `find_damage` finds later damage.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chatpipe.errors import UsageError

MANIFEST = "manifest.json"
PARTIAL = ".partial"


def replace_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    fsync(partial)
    partial.replace(path)
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON and returns when it is on the disk. Raises `TypeError` for what JSON does not know."""
    path.write_text(json.dumps(value), encoding="utf-8")
    fsync(path)


def share(path: Path) -> None:
    """Gives a file the permissions of one that is created now: safetensors writes files for their owner alone."""
    new = path.with_name(f"{path.name}.new")
    new.touch()
    path.chmod(new.stat().st_mode)
    new.unlink()


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def fsync(path: Path) -> None:
    """Returns when the bytes of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: Any) -> str:
    """SHA-256 in hex of `parts` as JSON with sorted keys: the one fingerprint of what something was made from.

    Two results with the same fingerprint were made from the same data, settings and models.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def publish(partial: Path) -> Path:
    """Adds a manifest to `NAME.partial`, whose files are already on the disk, and renames it to `NAME`.

    An existing folder of that name is replaced.
    """
    entries = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(partial.iterdir())
    }
    write_json(partial / MANIFEST, {"files": entries})
    fsync(partial)
    folder = partial.with_name(partial.name.removesuffix(PARTIAL))
    if folder.exists():
        delete_folder(folder)
    partial.rename(folder)
    fsync(folder.parent)
    return folder


def delete_folder(folder: Path) -> None:
    """Deletes a folder; an interrupted deletion leaves nothing under its name."""
    retired = folder.with_name(f"{folder.name}.old{PARTIAL}")
    shutil.rmtree(retired, ignore_errors=True)  # of a deletion that was killed
    folder.rename(retired)
    shutil.rmtree(retired)


def find_damage(folder: Path) -> str | None:
    """The first damage of a published folder in words; None when each file has the size and SHA-256 of the manifest."""
    try:
        entries = read_json(folder / MANIFEST)["files"]
        for name, entry in entries.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
            if sha256_of(path) != entry["sha256"]:
                return f"{name} is damaged (its SHA-256 is not the one in {MANIFEST})"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error})"
    return None


# ---- locks ----
#
# Not with the library filelock: it locks files only, so that each folder would get one, also folders of other people's
# that are looked at and refused; and where a file system has no locks, it leaves a lock that outlives a kill.


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
