"""What pretraining reads: blocks of tokens in their order, batches of them, hidden tokens, and validation text."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from chatpipe.data.documents import Piece
from chatpipe.data.encoding import Encoder
from chatpipe.data.token_store import TokenStore


class TrainingText(Dataset[dict[str, Tensor]]):
    """The samples of a training run in their order: item s is sample number s of the run.

    A store is cut into blocks of `block_size` tokens; the last one is filled up from the store's beginning, so every
    block has the same length and no token is left out. `SampleOrder` decides the order.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        weights: Sequence[float],
        block_size: int,
        seed: int,
        samples: int | None = None,
    ) -> None:
        """`samples`: the number that the run reads over all processes, by default one epoch. No store may be empty."""
        self.stores, self.block_size = stores, block_size
        self.order = SampleOrder([-(-len(store) // block_size) for store in stores], weights, seed)
        self.samples = self.order.samples_per_epoch if samples is None else samples

    def __len__(self) -> int:
        """The number of samples."""
        return self.samples

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """`input_ids` and `labels`, both (block_size,); the model itself shifts the labels by one."""
        source, block = self.order.at(sample)
        ids = torch.from_numpy(self.stores[source].read(block * self.block_size, self.block_size))
        return {"input_ids": ids, "labels": ids}


class SampleOrder:
    """Which block of several sources is sample number s of a run: a pure function of the seed and of s.

    The order is the same on any number of processes and after a resume at any step, because nothing but s is counted.

    In an epoch a source with n blocks and weight w has round(w * n) samples, at least one. Over the epochs a source
    goes through all its blocks in one random order after another, so no block is read twice more often than another,
    also where w is 0.3 or 2.5.

    Each order is numpy's permutation of the source's blocks, drawn from (seed, source, turn) and kept for one epoch:
    4 bytes for each block, so 40 MB and 0.9 s for 10 million blocks (10 billion tokens).
    """

    def __init__(self, blocks: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """`blocks` and `weights` of each source; raises ValueError where a source has no block."""
        if not blocks or min(blocks) < 1:
            raise ValueError("each source needs a block")
        self.blocks, self.seed = list(blocks), seed
        self.shares = [max(1, round(weight * count)) for weight, count in zip(weights, blocks, strict=True)]
        self._ends = list(accumulate(self.shares))
        self._epoch = -1
        self._permutations: dict[tuple[int, int], NDArray[np.uint32]] = {}

    @property
    def samples_per_epoch(self) -> int:
        """The number of samples in an epoch."""
        return self._ends[-1]

    def at(self, sample: int) -> tuple[int, int]:
        """(source, block) of sample number `sample`, counted from 0 over all epochs and processes."""
        epoch, place = divmod(sample, self.samples_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutations = epoch, {}
        slot = int(self._permutation(0, epoch, self.samples_per_epoch)[place])
        source = bisect_right(self._ends, slot)
        share, count = self.shares[source], self.blocks[source]
        turn, number = divmod(epoch * share + slot - (self._ends[source] - share), count)
        return source, int(self._permutation(source + 1, turn, count)[number])

    def _permutation(self, stream: int, turn: int, count: int) -> NDArray[np.uint32]:
        """The permutation number `turn` of a stream: 0 mixes the sources of an epoch, i + 1 orders source i."""
        if (stream, turn) not in self._permutations:
            numbers = np.arange(count, dtype=np.uint32)
            np.random.default_rng([self.seed, stream, turn]).shuffle(numbers)
            self._permutations[stream, turn] = numbers
        return self._permutations[stream, turn]


@dataclass(frozen=True)
class BlockCollator:
    """Stacks blocks to a batch; with `isolate_at`, the id of end-of-text, documents do not attend to each other.

    transformers isolates packed documents where position ids restart, and only without an attention mask and without a
    cache; otherwise logits shift by 1.0 to 1.5 with no warning.
    """

    isolate_at: int | None = None

    def __call__(self, blocks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor | bool]:
        """`input_ids` and `labels` [blocks, tokens], and the arguments that isolate documents."""
        ids = torch.stack([block["input_ids"] for block in blocks])
        labels = torch.stack([block["labels"] for block in blocks])
        return {"input_ids": ids, "labels": labels, **isolating(ids, self.isolate_at)}


def isolating(ids: Tensor, isolate_at: int | None) -> dict[str, Tensor | bool]:
    """The model's further arguments for `ids` [rows, tokens] that isolate documents; none without `isolate_at`."""
    return {} if isolate_at is None else {"position_ids": document_positions(ids, isolate_at), "use_cache": False}


def document_positions(ids: Tensor, eos_token_id: int) -> Tensor:
    """The position of each token in its document, from 0: [rows, tokens], int64.

    The end-of-text token before a document counts as its first token, so the document's beginning is predicted from
    that token alone. Every token but the first of a block is predicted, each from its own document.
    """
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    starts = torch.where(ids == eos_token_id, places, 0)
    return places - starts.cummax(dim=1).values


@dataclass(frozen=True)
class ValidationText:
    """Token ids [tokens] of text to evaluate on, int64, each document with end-of-text behind it.

    `num_bytes` counts the UTF-8 bytes of the text; end-of-text tokens have none. `isolate_at` as in `BlockCollator`.
    """

    tokens: np.ndarray
    num_bytes: int
    block_size: int
    isolate_at: int | None = None

    @classmethod
    def of(
        cls, texts: Iterable[str], encoder: Encoder, block_size: int, isolate_at: int | None = None
    ) -> "ValidationText":
        """Tokenises `texts`, a document each."""
        encoded = encoder.encode(Piece(text, "validation", ends=True) for text in texts)
        return cls(encoded.ids.astype(np.int64), encoded.num_bytes, block_size, isolate_at)

    def blocks(self) -> Tensor:
        """The tokens in blocks, [blocks, block_size]; the last one ends with the last token and may overlap another."""
        size, count = min(self.block_size, len(self.tokens)), len(self.tokens)
        starts = np.minimum(np.arange(-(-count // size)) * size, count - size)
        return torch.from_numpy(self.tokens[starts[:, None] + np.arange(size)])


# ---- masked language modelling (BERT, arXiv 1810.04805, section 3.1) ----

IGNORED = -100
"""The label of a token that no loss is computed of."""
MASK = "<|mask|>"
REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class Masking:
    """Hides `probability` of the tokens, never a special one: 80 % become `mask_id`, 10 % a random token, 10 % stay.

    `special_ids` are the ids of special tokens; random tokens are drawn from the first `tokens` ids.

    transformers' `DataCollatorForLanguageModeling(seed=)` does the same, but it draws from one generator over all
    batches of a process, so a resumed run would hide other tokens, and on the CPU alone. Here each batch has a seed.
    """

    mask_id: int
    special_ids: tuple[int, ...]
    tokens: int
    probability: float

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, probability: float) -> "Masking":
        """Masking for a tokenizer that has a mask token."""
        return cls(tokenizer.mask_token_id, tuple(sorted(tokenizer.all_special_ids)), len(tokenizer), probability)

    def __call__(self, ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels for `ids`, all [rows, tokens] int64; labels are -100 where no token is hidden.

        A pure function of `ids` and `seed`, so a resumed run hides the same tokens as one that was not interrupted.
        """
        generator = torch.Generator().manual_seed(seed)

        def draw() -> Tensor:
            return torch.rand(ids.shape, generator=generator).to(ids.device)

        special = torch.isin(ids, torch.tensor(self.special_ids, device=ids.device))
        chosen = (draw() < self.probability) & ~special
        labels = ids.where(chosen, torch.tensor(IGNORED, device=ids.device))
        fate = draw()
        others = torch.randint(self.tokens, ids.shape, generator=generator).to(ids.device)
        inputs = ids.masked_fill(chosen & (fate < REPLACED_BY_MASK), self.mask_id)
        at_random = chosen & (fate >= REPLACED_BY_MASK) & (fate < REPLACED_BY_MASK + REPLACED_AT_RANDOM)
        return others.where(at_random, inputs), labels


def masked_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """The loss of the labelled tokens in nats: their mean, or their sum over the step's `num_items_in_batch`."""
    losses = F.cross_entropy(outputs.logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    counted = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return losses / torch.as_tensor(counted, device=losses.device).clamp(min=1)


def add_mask_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives `tokenizer` a mask token unless it has one."""
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
