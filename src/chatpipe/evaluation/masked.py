"""How well an encoder guesses hidden tokens of held-out text."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from chatpipe.data.token_store import TokenStore
from chatpipe.generation.engine import evaluation_mode
from chatpipe.pretraining.masking import IGNORED, Masking


@dataclass(frozen=True)
class MaskedScore:
    """Nats per hidden token, and the share of them that is guessed rightly."""

    nats_per_token: float
    accuracy: float


def masked_score(model: PreTrainedModel, store: TokenStore, masking: Masking, batch_size: int) -> MaskedScore:
    """The model's guesses at tokens of `store`, hidden in the same places at each call and for each model.

    A text in which no token happens to be hidden gives NaN.
    """
    nats, right, hidden = 0.0, 0, 0
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(store), batch_size):
            blocks = [store[i]["input_ids"] for i in range(start, min(start + batch_size, len(store)))]
            inputs, labels = masking(torch.stack(blocks), seed=start)
            chosen = labels != IGNORED
            logits = model(input_ids=inputs.to(model.device)).logits[chosen.to(model.device)].float()
            answers = labels[chosen].to(model.device)
            nats += F.cross_entropy(logits, answers, reduction="sum").item()
            right += int((logits.argmax(-1) == answers).sum())
            hidden += len(answers)
    return MaskedScore(nats / hidden, right / hidden) if hidden else MaskedScore(math.nan, math.nan)


def unigram_nats(train: TokenStore, held_out: TokenStore, special_ids: tuple[int, ...], tokens: int) -> float:
    """Nats per token of guessing by frequencies in `train` (plus one, for `tokens` tokens), without special ones."""
    counts = np.bincount(np.asarray(train.tokens), minlength=tokens) + 1.0
    counts[list(special_ids)] = 0
    asked = np.asarray(held_out.tokens)
    asked = asked[~np.isin(asked, special_ids)]
    return float(-np.log(counts[asked] / counts.sum()).mean())
