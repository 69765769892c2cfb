import math

import numpy as np
import pytest
import torch

from chatpipe.data.token_store import build_token_store
from chatpipe.evaluation.masked import masked_score, unigram_nats
from chatpipe.models.architecture import new_model
from chatpipe.pretraining.masking import Masking, add_mask_token
from chatpipe.recipe.architecture import Architecture


@pytest.fixture
def masking(tokenizer):
    add_mask_token(tokenizer)
    return Masking.of(tokenizer, 0.4)


@pytest.fixture
def store(tmp_path, texts, tokenizer):
    return build_token_store(tmp_path / "held_out.bin", texts, tokenizer, block_size=8)


def test_a_uniform_encoder_needs_log_vocabulary_nats_whatever_the_batch(store, tokenizer, masking):
    model = new_model(Architecture(family="modernbert", n_layer=1, n_head=2, n_embd=16), tokenizer)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    for batch_size in (1, 4):
        score = masked_score(model, store, masking, batch_size)
        assert score.nats_per_token == pytest.approx(math.log(len(tokenizer)), rel=1e-5)
        assert score == masked_score(model, store, masking, batch_size)


def test_guessing_by_frequency_takes_the_cross_entropy_of_the_frequencies(store, masking, tokenizer):
    tokens = np.asarray(store.tokens)
    text = [token for token in tokens if token not in masking.special_ids]
    counts = {token: 1 + text.count(token) for token in range(len(tokenizer)) if token not in masking.special_ids}
    total = sum(counts.values())
    expected = -sum(math.log(counts[token] / total) for token in text) / len(text)
    assert unigram_nats(store, store, masking.special_ids, len(tokenizer)) == pytest.approx(expected)
