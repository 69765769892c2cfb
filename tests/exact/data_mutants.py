"""Bugs that packing and token stores have had elsewhere, each in the place of one of our functions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chatpipe.data import packing, text_blocks
from chatpipe.data.documents import RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.packing import PackCollator
from chatpipe.data.text_blocks import SampleOrder, TrainingText
from chatpipe.data.token_store import TokenStore, _ShardWriter

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """`make(true)` takes the place of `owner.attribute`, a function or method; `killed_by` must catch it."""

    name: str
    owner: Any
    attribute: str
    make: Callable[[Function], Function]
    killed_by: str


# ---- packing ----


def collated_with(**changed: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> Callable[[Function], Function]:
    """The batch with some of its tensors made anew from the true one."""

    def make(true):
        def mutant(self, rows):
            batch = true(self, rows)
            return {**batch, **{name: of(batch) for name, of in changed.items()}}

        return mutant

    return make


def positions_run_on(batch):
    return torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])


def all_ones(batch):
    return torch.ones_like(batch["input_ids"])


def boundaries_one_later(true):
    """Each row but the last takes the first token of the next one."""

    def mutant(self, packs):
        moved = []
        for pack in packs:
            lengths = list(pack["seq_lengths"])
            if len(lengths) > 1:
                lengths[0], lengths[-1] = lengths[0] + 1, lengths[-1] - 1
            moved.append({**pack, "seq_lengths": lengths})
        return true(self, moved)

    return mutant


def a_row_twice(true):
    def mutant(lengths, max_length):
        packs = true(lengths, max_length)
        return [*packs[:-1], [*packs[-1][:-1], packs[0][0]]]

    return mutant


def packs_too_long(true):
    return lambda lengths, max_length: true(lengths, max_length + 8)


def first_tokens_learned(true):
    """What a row begins with is predicted from the row before it."""

    def mutant(self, packs):
        return true(self, [{**pack, "labels": pack["input_ids"]} for pack in packs])

    return mutant


def end_belongs_to_the_document_before(true):
    def mutant(ids, eos_token_id):
        before = torch.cat([ids.new_zeros(len(ids), 1), ids[:, :-1]], 1)
        return true(before, eos_token_id)

    return mutant


def documents_run_on(_):
    return lambda ids, eos_token_id: torch.arange(ids.shape[1]).expand_as(ids)


PACKING = [
    Mutant(
        "position ids run on", PackCollator, "__call__", collated_with(position_ids=positions_run_on), "packed loss"
    ),
    Mutant("a mask is passed", PackCollator, "__call__", collated_with(attention_mask=all_ones), "packed loss"),
    Mutant("boundaries one token later", PackCollator, "__call__", boundaries_one_later, "packed loss"),
    Mutant("first tokens are learned", PackCollator, "__call__", first_tokens_learned, "packed loss"),
    Mutant("a row is in two packs, another in none", packing, "best_fit_decreasing", a_row_twice, "packs"),
    Mutant("packs are too long", packing, "best_fit_decreasing", packs_too_long, "packs"),
    Mutant("documents run on", text_blocks, "document_positions", documents_run_on, "isolated documents"),
    Mutant(
        "end-of-text belongs to the document before it",
        text_blocks,
        "document_positions",
        end_belongs_to_the_document_before,
        "isolated documents",
    ),
]

# ---- the token store ----


def loses_the_last_token_of_a_shard(true):
    def mutant(self, start, count):
        ids = true(self, start, count)
        edges = {end - 1 - start for end in self._ends if start < end - 1 < start + count - 1}
        return np.delete(ids, sorted(edges))

    return mutant


def in_two_bytes(true):
    def mutant(self, pieces):
        encoded = true(self, pieces)
        return replace(encoded, ids=encoded.ids & 0xFFFF)

    return mutant


def without_ends(true):
    return lambda self, pieces: true(self, [replace(piece, ends=False) for piece in pieces])


def all_for_training(true):
    def mutant(self):
        yield from (replace(piece, split="train") for piece in true(self))

    return mutant


def even_blocks_only(true):
    def mutant(self, sample):
        source, block = true(self, sample)
        return source, block // 2 * 2

    return mutant


def same_order_each_epoch(true):
    return lambda self, sample: true(self, sample % self.samples_per_epoch)


def blocks_more(extra: int):
    """The last, incomplete block is left out (-1), or a block is read twice (+1)."""

    def make(true):
        def mutant(self, stores, weights, block_size, seed, samples=None):
            true(self, stores, weights, block_size, seed, samples)
            self.order = text_blocks.SampleOrder([count + extra for count in self.order.blocks], weights, seed)

        return mutant

    return make


def one_piece_too_many(true):
    """The manifest counts a piece that the shard has not, so a resumed build skips it."""

    def mutant(self, manifest):
        self._pieces += 1
        true(self, manifest)

    return mutant


TOKEN_STORE = [
    Mutant(
        "the last token of a shard is lost", TokenStore, "read", loses_the_last_token_of_a_shard, "reading over shards"
    ),
    Mutant("ids are cut to two bytes", Encoder, "encode", in_two_bytes, "large vocabulary"),
    Mutant("documents have no end", Encoder, "encode", without_ends, "tokens"),
    Mutant("validation text leaks into training", RawText, "pieces", all_for_training, "tokens"),
    Mutant("the order is no permutation", SampleOrder, "at", even_blocks_only, "epochs"),
    Mutant("each epoch has the same order", SampleOrder, "at", same_order_each_epoch, "epochs"),
    Mutant("the last block is left out", TrainingText, "__init__", blocks_more(-1), "epochs"),
    Mutant("a block is read twice", TrainingText, "__init__", blocks_more(1), "epochs"),
    Mutant("a resumed build skips a piece", _ShardWriter, "finish", one_piece_too_many, "resumed build"),
]
