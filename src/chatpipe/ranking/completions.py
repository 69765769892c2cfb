"""The completions file: for each prompt the answers that somebody is to rank, one JSON object a line.

While it is made it is `FILE.partial`, to which lines are added as they are sampled; a command that was killed goes on
behind the last whole one. Each line carries in `made` what it was made from, so lines of another command are not
mistaken for one's own.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatpipe.data.durable import PARTIAL, fsync, replace_text
from chatpipe.errors import UsageError


def fingerprint(made_from: dict[str, Any]) -> str:
    """16 hex digits by which everything that decides a file's lines is known again."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def made_of(path: Path) -> str | None:
    """The fingerprint of what a finished file was made from; None where it is no file of ours."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return _made(file.readline())


def is_ours(path: Path) -> bool:
    """Whether every line of a file is one that `write_completions` wrote."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return all(_made(line) is not None for line in file)


@dataclass(frozen=True)
class Written:
    """What became of a completions file: prompts with answers, prompts left out for too few, and those done before."""

    prompts: int
    left_out: int
    before: int


def write_completions(path: Path, made: str, sample: Callable[[int], Iterator[dict[str, Any]]], fewest: int) -> Written:
    """Makes the file, or what is missing of it.

    `sample(n)` gives the rows of all prompts but the first `n`, in order. Rows with fewer than `fewest` responses are
    left out of the finished file. Raises `UsageError` where that leaves nothing.
    """
    partial = path.with_name(path.name + PARTIAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _whole_lines(partial, made)
    rows = sample(before)
    with partial.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**row, "made": made}, ensure_ascii=False) + "\n")
            file.flush()
    with partial.open(encoding="utf-8") as file:
        lines = list(file)
    kept = [line for line in lines if len(json.loads(line)["responses"]) >= fewest]
    if not kept:
        raise UsageError(
            "sample: the model's answers are empty, all alike, or do not stop; there is nothing to rank.",
            "Look at the verdict of sft; train it longer, raise max_new_tokens or the temperature.",
        )
    replace_text(partial, "".join(kept))
    partial.replace(path)
    fsync(path.parent)
    return Written(len(kept), len(lines) - len(kept), before)


def _whole_lines(partial: Path, made: str) -> int:
    """How many lines stand there that were made from the same; what follows the last of them is cut off."""
    if not partial.exists():
        return 0
    whole, size = 0, 0
    with partial.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or _made(line.decode("utf-8", errors="replace")) != made:
                break
            whole, size = whole + 1, size + len(line)
    os.truncate(partial, size)
    return whole


def _made(line: str) -> str | None:
    """What a line says that it was made from; None where it is none of ours."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row["made"] if isinstance(row, dict) and row.keys() >= {"prompt", "responses", "made"} else None
