import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stub_models import write_stub_model


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """An empty folder to run commands in, outside of any launcher."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "CHATPIPE_DEBUG", "CHATPIPE_ERROR_FILE", "CHATPIPE_LAUNCHED"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def listing(work) -> Callable[[], dict[str, str]]:
    """Tells every file and folder in the folder that commands run in, the files with a hash of what they hold."""

    def listing() -> dict[str, str]:
        return {
            str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            for path in sorted(work.rglob("*"))
        }

    return listing


@pytest.fixture
def chatpipe(work, chatpipe) -> Callable[..., Any]:
    """Runs the command in this process, through the same `main` as the console script, in an empty folder."""
    return chatpipe


@pytest.fixture
def refused(chatpipe, listing) -> Callable[..., str]:
    """Runs a command that must be refused, and returns what it says: short, with nothing written."""

    def refused(*words: str) -> str:
        before = listing()
        result = chatpipe(*words)
        assert result.code == 2, result.err
        assert result.out == ""
        assert 1 < len(result.err.splitlines()) <= 8, result.err
        assert "Traceback" not in result.err
        assert listing() == before
        return result.err

    return refused


@pytest.fixture
def chats(work) -> str:
    """A file with conversations that can be used."""
    rows = (
        [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": "Yes."}] for i in range(60)
    )
    (work / "chats.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return "chats.jsonl"


@pytest.fixture
def make_model(work) -> Callable[..., str]:
    """Makes a folder that looks like a model of an architecture, as far as one can tell without torch."""

    def make_model(name: str, architecture: str) -> str:
        write_stub_model(work / name, architecture)
        return name

    return make_model
