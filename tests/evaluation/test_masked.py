import json
import math

import pytest
import torch

from chatpipe.data.documents import RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.text_blocks import Masking, ValidationText, add_mask_token
from chatpipe.data.token_store import build_token_store
from chatpipe.evaluation import baselines as ngram
from chatpipe.evaluation.baselines import unigram_nats
from chatpipe.evaluation.text import masked_loss
from chatpipe.models.new_model import new_model
from chatpipe.recipe.architectures import Architecture
from chatpipe.recipe.schema import DataBlock


@pytest.fixture
def masking(tokenizer):
    add_mask_token(tokenizer)
    return Masking.of(tokenizer, 0.4)


@pytest.fixture
def validation(texts, tokenizer):
    return ValidationText.of(texts, Encoder.of(tokenizer), block_size=8)


def test_a_uniform_encoder_needs_log_vocabulary_nats_whatever_the_batch(validation, tokenizer, masking, monkeypatch):
    model = new_model(Architecture(family="modernbert", n_layer=1, n_head=2, n_embd=16), tokenizer)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    for rows in (1, 4):
        monkeypatch.setattr("chatpipe.evaluation.text.rows_at_once", lambda *_, rows=rows: rows)
        loss = masked_loss(model, validation, masking)
        assert loss.nats_per_token == pytest.approx(math.log(model.config.vocab_size), rel=1e-5)
        assert loss == masked_loss(model, validation, masking)


def test_guessing_by_frequency_takes_the_cross_entropy_of_the_frequencies(
    tmp_path, monkeypatch, texts, validation, masking, tokenizer
):
    monkeypatch.setattr(ngram, "COUNTED_AT_ONCE", 50)
    source = tmp_path / "text.jsonl"
    source.write_text("".join(json.dumps({"text": f"{text} {i}"}) + "\n" for i, text in enumerate(texts * 10)))
    read = RawText(DataBlock(source=str(source)), {}, "pretrain.data")
    store = build_token_store(tmp_path / "store", read, Encoder.of(tokenizer), workers=1)
    assert len(store) > 100
    tokens = store.read(0, len(store)).tolist()
    counts = {token: 1 + tokens.count(token) for token in range(len(tokenizer)) if token not in masking.special_ids}
    total = sum(counts.values())
    asked = [token for token in validation.tokens.tolist() if token not in masking.special_ids]
    expected = -sum(math.log(counts[token] / total) for token in asked) / len(asked)
    assert unigram_nats([store], validation, masking.special_ids, len(tokenizer)) == pytest.approx(expected)
