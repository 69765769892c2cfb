import math

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from chatpipe.data.text_blocks import IGNORED, Masking, add_mask_token, masked_loss
from chatpipe.models.new_model import train_tokenizer

MASK, TOKENS = 2, 1000
MASKING = Masking(mask_id=MASK, special_ids=(0, 1, 2), tokens=TOKENS, probability=0.15)


@pytest.fixture(scope="module")
def ids():
    ids = torch.randint(3, TOKENS, (400, 500), generator=torch.Generator().manual_seed(0))
    ids[:, ::10] = 1  # ends of texts
    return ids


def test_15_percent_are_hidden_80_10_10(ids):
    inputs, labels = MASKING(ids, seed=0)
    hidden = labels != IGNORED
    text = ids > 2
    assert (hidden.sum() / text.sum()).item() == pytest.approx(0.15, abs=0.003)
    masked, kept = (inputs == MASK)[hidden], (inputs == ids)[hidden]
    assert masked.float().mean().item() == pytest.approx(0.80, abs=0.01)
    assert kept.float().mean().item() == pytest.approx(0.10, abs=0.01)
    random = inputs[hidden & (inputs != MASK) & (inputs != ids)]
    assert len(random) / hidden.sum().item() == pytest.approx(0.10, abs=0.01)
    assert random.float().mean().item() == pytest.approx(TOKENS / 2, rel=0.05)


def test_the_labels_are_the_hidden_tokens_and_no_special_one_is_hidden(ids):
    inputs, labels = MASKING(ids, seed=0)
    hidden = labels != IGNORED
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(inputs[~hidden], ids[~hidden])
    assert not hidden[ids <= 2].any()


def test_a_seed_hides_the_same_tokens_and_another_one_others(ids):
    torch.manual_seed(5)
    first = MASKING(ids, seed=3)
    torch.manual_seed(6)
    assert all(torch.equal(one, other) for one, other in zip(first, MASKING(ids, seed=3), strict=True))
    assert not torch.equal(first[1], MASKING(ids, seed=4)[1])


def test_the_loss_is_transformers_mean_over_hidden_tokens(ids):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=TOKENS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertForMaskedLM(config).eval()
    inputs, labels = MASKING(ids[:4], seed=0)
    outputs = model(input_ids=inputs, labels=labels)
    torch.testing.assert_close(masked_loss(outputs, labels), outputs.loss)
    # a share of a step in which twice as many tokens are hidden
    twice = 2 * (labels != IGNORED).sum()
    torch.testing.assert_close(masked_loss(outputs, labels, twice), outputs.loss / 2)


def test_a_batch_without_hidden_tokens_has_no_loss_and_no_nan():
    outputs = type("Outputs", (), {"logits": torch.randn(1, 4, 8, requires_grad=True)})
    loss = masked_loss(outputs, torch.full((1, 4), IGNORED))
    assert loss.item() == 0
    assert not math.isnan(loss.item())


def test_a_tokenizer_gets_one_mask_token():
    tokenizer = train_tokenizer([""], 300, 64)
    size = len(tokenizer)
    add_mask_token(tokenizer)
    add_mask_token(tokenizer)
    assert len(tokenizer) == size + 1
    assert tokenizer.mask_token_id == size
    assert tokenizer("a<|mask|>b", add_special_tokens=False)["input_ids"][1] == size
