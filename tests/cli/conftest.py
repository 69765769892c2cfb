import json
from collections.abc import Callable
from typing import Any

import pytest

from stub_models import write_stub_model


@pytest.fixture
def chatpipe(work, chatpipe) -> Callable[..., Any]:
    """Runs the command in this process, through the same `main` as the console script, in an empty folder."""
    return chatpipe


@pytest.fixture
def refused(chatpipe, listing) -> Callable[..., str]:
    """Runs a command that must be refused, and returns its message: short, with nothing written."""

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
    """Makes a folder that looks like a model of an architecture, as far as it shows without torch."""

    def make_model(name: str, architecture: str) -> str:
        write_stub_model(work / name, architecture)
        return name

    return make_model
