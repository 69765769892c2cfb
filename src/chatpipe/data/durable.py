"""Writing that survives a kill: files that are replaced whole, and folders that are complete or invisible.

A folder is written as `NAME.partial`; `publish` adds a manifest (the size and SHA-256 of each file) and renames it to
`NAME`. A write that is interrupted leaves nothing under that name, and `fault_of` finds later damage.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

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
        retire(folder)
    partial.rename(folder)
    fsync(folder.parent)
    return folder


def retire(folder: Path) -> None:
    """Deletes a folder; an interrupted deletion leaves nothing under its name."""
    retired = folder.with_name(f"{folder.name}.old{PARTIAL}")
    shutil.rmtree(retired, ignore_errors=True)  # of a deletion that was killed
    folder.rename(retired)
    shutil.rmtree(retired)


def fault_of(folder: Path) -> str | None:
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
