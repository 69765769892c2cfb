"""A real chat model, SmolLM2-135M-Instruct: `make real` writes it and runs these tests."""

import io
import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def model():
    """The folder that scripts/smollm2.py has written."""
    return Path(os.environ["SMOLLM2"])


def test_it_knows_the_capital_of_france(model, chatpipe, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    said = chatpipe("chat", model, "--temperature", "0", "--max-new-tokens", "24")
    assert said.code == 0, said.err
    assert "Paris" in said.out
