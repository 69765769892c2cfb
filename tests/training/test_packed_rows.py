"""Sequences to train on: nothing is dropped, packed rows do not see each other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from chatpipe.data.packing import PackCollator, best_fit_decreasing, training_sequences
from chatpipe.data.text_blocks import IGNORED
from chatpipe.training.sft_trainer import isolates_packed_rows
from tiny_chats import CONTEXT

SHAPE = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "initializer_range": 0.3, "head_dim": 8,
    "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0,
}  # fmt: skip


def tiny(kind: str, attention: str = "sdpa"):
    """With large weights, so that attention matters."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@given(st.lists(st.integers(1, 32), max_size=60))
def test_every_row_is_in_one_pack_and_no_pack_is_too_long(lengths):
    packs = best_fit_decreasing(np.array(lengths, np.int64), 32)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in pack) for pack in packs]
    assert all(0 < total <= 32 for total in sums)
    assert sum(total <= 16 for total in sums) <= 1  # two of these would be one


@pytest.mark.parametrize(
    "lengths, packs",
    [
        ([5, 10, 3, 7], [[1], [3, 2], [0]]),
        ([6, 4, 3, 3, 4], [[0, 1], [4, 2, 3]]),
        ([7, 8, 2, 3], [[1, 2], [0, 3]]),  # 3 goes where it leaves nothing, not to the first that has room
        ([10, 10], [[0], [1]]),
        ([], []),
    ],
)
def test_the_longest_goes_first_to_where_it_fits_best(lengths, packs):
    assert best_fit_decreasing(np.array(lengths, np.int64), 10) == packs


class Blocks:
    """Raw text as `TrainingText` gives it."""

    block_size = 20

    def __len__(self):
        return 7

    def __getitem__(self, number):
        return {"input_ids": torch.arange(20) + number}


@pytest.mark.parametrize("pack_to", [None, CONTEXT])
def test_nothing_is_dropped_and_first_tokens_are_not_predicted(written, pack_to):
    train = written[0]
    sequences = training_sequences(train, Blocks(), pack_to)
    found = []
    for sequence in sequences:
        assert len(sequence["input_ids"]) == len(sequence["labels"]) == sum(sequence["seq_lengths"])
        assert len(sequence["input_ids"]) <= CONTEXT
        start = 0
        for length in sequence["seq_lengths"]:
            cells = slice(start, start + length)
            found.append((sequence["input_ids"][cells].tolist(), sequence["labels"][cells].tolist()))
            start += length
    expected = [
        (ids, [token if learn else IGNORED for token, learn in zip(ids, mask, strict=True)])
        for ids, mask in train.first(len(train))
    ]
    expected += [(list(range(n, n + 20)), [IGNORED, *range(n + 1, n + 20)]) for n in range(7)]
    assert sorted(found) == sorted(expected)
    assert all(labels[0] == IGNORED for _, labels in found)
    if pack_to is None:
        assert found == expected
    else:
        assert len(sequences) < 0.6 * len(expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
@torch.no_grad()
def test_packed_logits_are_those_of_separate_rows(written, kind, attention):
    model = tiny(kind, attention)
    sequences = training_sequences(written[0], None, CONTEXT)
    packs = [sequences[number] for number in range(4)]
    batch = PackCollator(0)(packs)
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    together = model(input_ids=batch["input_ids"], use_cache=False).logits
    for place, pack in enumerate(packs):
        assert len(pack["seq_lengths"]) > 1
        rows = torch.from_numpy(pack["input_ids"]).split(pack["seq_lengths"])
        alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
        torch.testing.assert_close(packed[place, : len(alone)], alone, atol=1e-5, rtol=0)
        assert (together[place, : len(alone)] - alone).abs().max() > 1e-2  # they do see each other otherwise


def test_the_loss_of_packs_is_that_of_their_rows(make_sft_trainer, tmp_path):
    apart, packed = (
        make_sft_trainer(tmp_path / "apart", "qwen3"),
        make_sft_trainer(tmp_path / "packed", "qwen3", packed=True),
    )
    sums = []
    for trainer in (apart, packed):
        batch = trainer.data_collator(list(trainer.train_dataset))
        trainer.model.train()
        learned = (batch["labels"] != IGNORED).sum()
        sums.append((trainer.compute_loss(trainer.model, batch, num_items_in_batch=learned), learned))
    assert sums[0][1] == sums[1][1]
    torch.testing.assert_close(sums[0][0], sums[1][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_models_with_positions_isolate_packed_rows(kind):
    assert isolates_packed_rows(tiny(kind))


class ReadsAcross(nn.Module):
    """A model without positions, whose attention is a running mean."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(300, 8)
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, **_):
        hidden = self.embedding(input_ids).cumsum(1)
        return type("Output", (), {"logits": hidden @ self.embedding.weight.T})


def test_a_model_that_reads_across_is_found_out():
    assert not isolates_packed_rows(ReadsAcross())
