"""Masked language modelling: hiding tokens, and the loss of predicting them (BERT, arXiv 1810.04805, section 3.1).

transformers' `DataCollatorForLanguageModeling(seed=)` does the same, but it draws from one generator over all batches
of a process, so a resumed run would hide other tokens, and on the CPU alone. Here each batch has a seed of its own.
"""

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
    """Hides `probability` of the tokens, never a special one: 80 % become `mask_id`, 10 % a random token, 10 % stay.

    `special_ids` are the ids of special tokens; random tokens are drawn from the first `tokens` ids.
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
