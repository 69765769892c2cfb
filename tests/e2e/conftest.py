"""The stages on files of a user's own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from own_files import FEW_PROMPTS, LEARN, as_messages, asked, write_rows


@dataclass(frozen=True)
class Own:
    """The folders and results of the four stages, each run without a recipe on files of a user's own."""

    folder: Path
    results: dict[str, dict[str, Any]]

    def file(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="session")
def own(tmp_path_factory, tiny_run, chatpipe) -> Own:
    """sft, rm and ppo, one after the other, on jsonl files; the base is the tiny run's."""
    folder = tmp_path_factory.mktemp("own")
    every = asked()
    chats = write_rows(folder / "chats.jsonl", [as_messages(one.question, one.right) for one in every])
    pairs = write_rows(
        folder / "pairs.jsonl", [{"prompt": one.question, "chosen": one.right, "rejected": one.wrong} for one in every]
    )
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": one.question} for one in every])
    sft, rm, ppo = (folder / name for name in ("sft", "rm", "ppo"))
    commands = (
        ("sft", "--model", tiny_run.folder / "pretrain", "--data", chats, "--out", sft, *LEARN["sft"], *FEW_PROMPTS),
        ("rm", "--model", sft, "--data", pairs, "--out", rm, *LEARN["rm"]),
        ("ppo", "--model", sft, "--reward", rm, "--data", prompts, "--out", ppo, *LEARN["ppo"], *FEW_PROMPTS),
    )
    results = {command[0]: chatpipe(*command, "--json").object for command in commands}
    return Own(folder, results)


@pytest.fixture
def listing() -> Callable[[Path], dict[str, tuple[int, int]]]:
    """Lists each file below a folder with its size and the time of its last change."""

    def listing(folder: Path) -> dict[str, tuple[int, int]]:
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}

    return listing
