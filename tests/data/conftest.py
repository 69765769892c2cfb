import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from chatpipe.data.chat_template import add_chat_template
from chatpipe.models.new_model import train_tokenizer

TEXTS = ["Mara is a baker. She lives near the mill.", "Tomas has a dog called Rex.", "Who keeps a goat? Lina does."]


@pytest.fixture
def write(tmp_path) -> Callable[..., str]:
    """Writes rows as json or jsonl, by the name's ending, or text as it is; returns the path as text."""

    def write(name: str, content: object) -> str:
        path = Path(tmp_path, name)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def base_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as pretrain makes it, without chat template."""
    return train_tokenizer(TEXTS, vocab_size=300, model_max_length=64)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as sft makes it, with chat template."""
    made = train_tokenizer(TEXTS, vocab_size=300, model_max_length=64)
    add_chat_template(made)
    return made
