"""A checkpoint: a Hugging Face model folder plus `chatpipe.json`, its manifest.

The manifest holds what made the folder, its metrics and verdict. It is written last and atomically: a folder without
one is not a finished stage.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

from chatpipe import __version__
from chatpipe.console import nan_to_none
from chatpipe.data.durable import fingerprint, replace_text, sha256_of
from chatpipe.errors import UsageError
from chatpipe.models.model_folder import looks_like_path

MANIFEST = "chatpipe.json"
NOT_RESULTS = {MANIFEST, "metrics.jsonl", "recipe.yaml"}
"""Files in a step's folder that are no result: how it was made, not what came out."""
GROWING = {".log", ".lock", ".db", ".db-wal", ".db-shm", ".key", ".partial"}
"""Endings of files in a step's folder that grow on after it is done."""
PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate", "tokenizers")


@dataclass
class Manifest:
    """The content of `chatpipe.json`: a checkpoint's inputs and settings, its files, metrics and verdict."""

    stage: str
    parents: dict[str, str]
    """Recipe key of each model it was made from -> that checkpoint's id."""
    data: dict[str, dict[str, str]]
    """Recipe key of each data source, and of each reward function -> its files' SHA-256, then how they are read."""
    settings: dict[str, Any]
    """Dotted recipe keys on which the result depends, with their values."""
    seed: int
    processes: int
    round: int = 1
    """Which of the run's rounds made it."""
    fingerprint: str = ""
    """Of everything above on which the result depends."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Dotted recipe keys on which only the measuring of the result depends, with their values."""
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fingerprint = self.fingerprint or fingerprint(self._made_by())

    def differences(self, other: "Manifest") -> list[str]:
        """What differs in how the two checkpoints were or would be made, a line each; empty if nothing does."""
        return _differences(self._made_by(), other._made_by())

    def measured_otherwise(self, evaluation: Mapping[str, Any]) -> list[str]:
        """Where `evaluation` differs from how the result was measured, a line each."""
        return _differences(self.evaluation, evaluation)

    def _made_by(self) -> dict[str, Any]:
        made_by: dict[str, Any] = {"stage": self.stage, **self.settings}
        for key, model_id in self.parents.items():
            made_by[f"the model given as {key}"] = model_id
        for key, sources in self.data.items():
            for source, content in sources.items():
                made_by[f"{key} ({source})"] = tuple(content.split(" ", 3))
        return made_by


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Hashes the folder's files and writes its manifest, whole or not at all."""
    manifest.files = {
        path.name: sha256_of(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in NOT_RESULTS and path.suffix not in GROWING
    }
    manifest.versions = versions()
    replace_text(folder / MANIFEST, json.dumps(nan_to_none(asdict(manifest)), indent=2, ensure_ascii=False))


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest | None:
    """The manifest in a folder's file `name`, by default that of a finished checkpoint; None where there is none.

    Raises `UsageError` for a damaged one.
    """
    path = folder / name
    if not path.exists():
        return None
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as problem:
        raise UsageError(
            f"{path} cannot be read ({problem}).", "Start over with --fresh, or choose another folder."
        ) from problem


def manifest_of_model(model: str) -> Manifest | None:
    """The manifest of a model that chatpipe made; None for any other folder, and for a hub id."""
    return read_manifest(Path(model).expanduser()) if looks_like_path(model) else None


def checkpoint_id(model: str) -> str:
    """What identifies a model: a hash over its files' hashes; for a hub id, the id itself."""
    if not looks_like_path(model):
        return model
    folder, manifest = Path(model).expanduser(), manifest_of_model(model)
    if manifest is not None:
        # A README may be edited; what makes a model another one are its weights, configuration and tokenizer.
        files = {name: sha for name, sha in manifest.files.items() if not name.endswith(".md")}
    else:
        files = {
            path.name: sha256_of(path)
            for pattern in ("*.json", "*.safetensors", "pytorch_model*.bin")
            for path in sorted(folder.glob(pattern))
        }
    return fingerprint(files)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"chatpipe": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, tuple) and isinstance(new, tuple) and old[0] == new[0]:
            was, is_now = _how_read(old, new)
        else:
            was, is_now = _shortened(_text(old), _text(new))
        lines.append(f"{key} was {was}, is {is_now} now")
    return lines


def _how_read(old: Sequence[str], new: Sequence[str]) -> tuple[str, str]:
    """In what two fingerprints of the same files differ (files, format, limit, further settings)."""
    parts = zip_longest(("format ", "limit ", ""), old[1:], new[1:], fillvalue="not set")
    differing = [part for part in parts if part[1] != part[2]]
    return ", ".join(f"{name}{was}" for name, was, _ in differing), ", ".join(
        f"{name}{now}" for name, _, now in differing
    )


def _text(value: Any) -> str:
    return "not set" if value is None else " ".join(value) if isinstance(value, tuple) else str(value)


def _shortened(old: str, new: str) -> tuple[str, str]:
    """Two settings or hashes, short; where both have the same beginning, from shortly before they differ."""
    if _short(old) == _short(new):
        same = len(os.path.commonprefix([old, new]))
        start = max(same - 8, old.rfind(" ", 0, same) + 1)
        old, new = f"... {old[start:]}", f"... {new[start:]}"
    return _short(old), _short(new)


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:21] + "..."
