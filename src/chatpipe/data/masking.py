"""Masked language modelling: which tokens are hidden, and the loss of guessing them (BERT, arXiv 1810.04805, 3.1)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORED = -100
MASK = "<|mask|>"
REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class Masking:
    """Hides `probability` of the tokens, never a special one: 80 % behind `mask_id`, 10 % another token, 10 % seen.

    `special_ids` are the ids of special tokens; random tokens are drawn from the first `tokens` ids.
    """

    mask_id: int
    special_ids: tuple[int, ...]
    tokens: int
    probability: float

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, probability: float) -> "Masking":
        """For a tokenizer that has a mask token."""
        return cls(tokenizer.mask_token_id, tuple(sorted(tokenizer.all_special_ids)), len(tokenizer), probability)

    def __call__(self, ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """What the model reads, and the labels: the hidden tokens, -100 elsewhere. All (rows, tokens).

        Draws from `seed` alone, so that a resumed run hides what the uninterrupted one does.
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
    """Mean nats of the tokens that labels name: of this batch's, or its share in a step of `num_items_in_batch`."""
    losses = F.cross_entropy(outputs.logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    counted = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return losses / torch.as_tensor(counted, device=losses.device).clamp(min=1)


def add_mask_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives `tokenizer` a mask token unless it has one."""
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
