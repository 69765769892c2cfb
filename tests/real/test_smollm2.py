"""A real chat model, SmolLM2-135M-Instruct: `make real` writes it and runs these tests."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.real

QUESTION = "What is the capital of France?"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def model():
    """The folder that scripts/smollm2.py has written."""
    return Path(os.environ["SMOLLM2"])


def test_it_knows_the_capital_of_france(model, chatpipe, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    said = chatpipe("chat", model, "--temperature", "0", "--max-new-tokens", "24")
    assert said.code == 0, said.err
    assert "Paris" in said.out


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory, chatpipe):
    """The folder of two steps of sft on a handful of conversations."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = [{"prompt": f"What is {n} plus {n}?", "completion": f"{n} plus {n} is {n + n}."} for n in range(40)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ("sft.max_steps=2", "sft.batch_size=4", "evaluation.prompts=10", "evaluation.max_new_tokens=12")
    said = chatpipe("sft", "--model", model, "--data", folder / "sums.jsonl", "--out", folder / "sft", *small)
    assert said.code == 0, said.err
    return folder / "sft"


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_fine_tuning_leaves_the_tokenizer_byte_for_byte(model, tuned, name):
    assert (tuned / name).read_bytes() == (model / name).read_bytes()


def test_fine_tuning_leaves_the_vocabulary(tuned):
    assert json.loads((tuned / "config.json").read_text())["vocab_size"] == 49_152
    with safe_open(tuned / "model.safetensors", "pt") as weights:
        assert weights.get_slice("model.embed_tokens.weight").get_shape()[0] == 49_152
