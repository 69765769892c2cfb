"""Blocks of tokens of one length: the samples of pretraining, their collator, and the text to evaluate on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from chatpipe.data.documents import Piece
from chatpipe.data.encoding import Encoder
from chatpipe.data.sample_order import SampleOrder
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
