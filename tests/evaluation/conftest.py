import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from chatpipe.data.chat_template import add_chat_template
from chatpipe.models.new_model import new_model, train_tokenizer
from chatpipe.recipe.architectures import Architecture

TEXTS = ["Mara is a baker. She lives near the mill.", "Tomas has a dog called Rex.", "Who keeps a goat? Lina does."]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    made = train_tokenizer(TEXTS, vocab_size=300, model_max_length=64)
    add_chat_template(made)
    return made


@pytest.fixture
def model(tokenizer) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return new_model(Architecture(n_layer=1, n_head=2, n_embd=16, n_positions=64, dropout=0.1), tokenizer)
