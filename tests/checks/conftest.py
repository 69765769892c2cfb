import sys
from pathlib import Path

import pytest

from chatpipe.data.chat_template import add_chat_template
from chatpipe.models.new_model import train_tokenizer

for folder in ("exact", "ppo", "e2e"):  # for their tiny models, trainers and files
    sys.path.append(str(Path(__file__).parent.parent / folder))


@pytest.fixture
def tokenizer():
    """A chat tokenizer as chatpipe makes it; each test may spoil its own."""
    made = train_tokenizer(["Mara is a baker."], 300, 64)
    add_chat_template(made)
    return made
