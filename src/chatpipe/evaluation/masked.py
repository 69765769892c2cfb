"""How well an encoder guesses hidden tokens of held-out text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from chatpipe.data.masking import IGNORED, Masking
from chatpipe.data.text_blocks import ValidationText
from chatpipe.data.token_store import TokenStore
from chatpipe.models.layers import evaluation_mode

COUNTED_AT_ONCE = 2**22
"""Tokens, which bounds the memory that a large store takes."""


@dataclass(frozen=True)
class MaskedScore:
    """Nats per hidden token, and the share of them that is guessed rightly."""

    nats_per_token: float
    accuracy: float


def masked_score(model: PreTrainedModel, text: ValidationText, masking: Masking, batch_size: int) -> MaskedScore:
    """The model's guesses at tokens of `text`, hidden in the same places at each call and for each model.

    A text in which no token happens to be hidden gives NaN.
    """
    nats, right, hidden = 0.0, 0, 0
    with evaluation_mode(model), torch.no_grad():
        for number, blocks in enumerate(text.blocks().split(batch_size)):
            inputs, labels = masking(blocks, seed=number)
            chosen = labels != IGNORED
            logits = model(input_ids=inputs.to(model.device)).logits[chosen.to(model.device)].float()
            answers = labels[chosen].to(model.device)
            nats += F.cross_entropy(logits, answers, reduction="sum").item()
            right += int((logits.argmax(-1) == answers).sum())
            hidden += len(answers)
    return MaskedScore(nats / hidden, right / hidden) if hidden else MaskedScore(math.nan, math.nan)


def unigram_nats(
    train: Sequence[TokenStore], held_out: ValidationText, special_ids: tuple[int, ...], tokens: int
) -> float:
    """Nats per token of guessing by frequencies in `train` (plus one, for `tokens` tokens), without special ones."""
    counts = np.ones(tokens)
    for store in train:
        for start in range(0, len(store), COUNTED_AT_ONCE):
            counts += np.bincount(store.read(start, min(COUNTED_AT_ONCE, len(store) - start)), minlength=tokens)
    counts[list(special_ids)] = 0
    asked = held_out.tokens
    asked = asked[~np.isin(asked, special_ids)]
    return float(-np.log(counts[asked] / counts.sum()).mean())
