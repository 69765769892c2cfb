"""How a token is drawn from logits: the parameters, the random numbers, and the draw itself.

The random number of a prompt at step t depends on nothing but the seed, the prompt's tokens, how often the prompt came
before, and t, through a counter-based generator (Philox). So a seed gives a prompt the same completion whatever the
number of slots, the order of the prompts, and the order in which rows finish.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from chatpipe.errors import TrainingError, UsageError
from chatpipe.models.logprobs import exclude

BROKEN = -1
"""The token that `sample` gives a row whose logits are not finite."""

BLOCK = 128
"""Neighbouring tokens whose probabilities are added up first when a token is drawn."""


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 leave the full softmax.

    Temperature is applied first, then top-k, then top-p, then min-p (as transformers does); a token whose probability
    is less than `min_p` times that of the likeliest is excluded. The ids `excluded`, which have no text, are no part of
    the softmax. A completion ends before the first of the strings in `stop`. Raises UsageError on values that cannot
    be.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    excluded: tuple[range, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise UsageError(f"stop is the text {self.stop!r}", "Give a list of strings.")
        object.__setattr__(self, "stop", tuple(self.stop))
        for name, valid, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "at least 0 (off) and at most 1"),
            ("stop", all(isinstance(text, str) and text for text in self.stop), "a list of strings that are not empty"),
        ):
            if not valid:
                raise UsageError(f"{name} is {getattr(self, name)}", f"It must be {allowed}.")


def random_streams(prompts: Sequence[Sequence[int]]) -> list[int]:
    """For each prompt the number of its stream of random numbers: 64 bits of a hash.

    Equal prompts get different streams, and the prompts between them do not matter.
    """
    seen: Counter[bytes] = Counter()
    streams = []
    for prompt in prompts:
        tokens = np.asarray(prompt, dtype=np.int64).tobytes()
        digest = hashlib.blake2b(tokens + seen[tokens].to_bytes(8, "little"), digest_size=8).digest()
        streams.append(int.from_bytes(digest, "little"))
        seen[tokens] += 1
    return streams


def uniform_numbers(seed: int, stream: int, count: int) -> np.ndarray:
    """The random numbers of one prompt: [count] float64, multiples of 2**-32 in [0, 1)."""
    generator = np.random.Philox(key=np.array([seed % 2**64, stream], dtype=np.uint64))
    return (generator.random_raw(count) >> np.uint64(32)) * 2.0**-32


def sample(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> Tensor:
    """Draw one token for each row of `logits` [rows, vocabulary] with `uniforms` [rows] (float64, in [0, 1)).

    Returns the tokens [rows] (int64); `BROKEN` for a row with logits that are not finite (-inf alone is).
    """
    if params.excluded:
        logits = logits.clone()
        exclude(logits, params.excluded)
    if params.temperature == 0:
        highest, tokens = logits.max(-1)
        return tokens.masked_fill_(~highest.isfinite(), BROKEN)
    probs = _tempered(logits, params).softmax(-1)
    broken = probs[:, 0].isnan()  # one NaN or infinity makes a whole row of a softmax NaN
    return _invert_cdf(_truncate(probs, params), uniforms).masked_fill_(broken, BROKEN)


def check_finite(tokens: Sequence[int]) -> None:
    """Raises TrainingError if one of the drawn `tokens` is `BROKEN`."""
    if BROKEN in tokens:
        raise TrainingError(
            "the model's output is not finite (NaN or infinity) while generating",
            "The weights are broken or overflow in this dtype: look at the stage that wrote the model.",
        )


def _tempered(logits: Tensor, params: SamplingParams) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if params.temperature in (0, 1) else logits / params.temperature


def _truncate(probs: Tensor, params: SamplingParams) -> Tensor:
    """Set to 0 what top-k, top-p and min-p exclude from `probs` [rows, vocabulary]. The rest keeps its proportions."""
    if 0 < params.top_k < probs.shape[-1]:
        smallest_kept = probs.topk(params.top_k).values[:, -1:]
        probs = probs.where(probs >= smallest_kept, 0)
    if params.top_p < 1:
        descending, order = probs.sort(dim=-1, descending=True)
        before = descending.cumsum(-1) - descending  # mass of the tokens that are more likely
        excluded = before >= params.top_p * descending.sum(-1, keepdim=True)
        probs = probs.masked_fill(excluded.scatter(-1, order, excluded), 0)
    if params.min_p > 0:
        probs = probs.masked_fill(probs < params.min_p * probs.amax(-1, keepdim=True), 0)
    return probs


def _invert_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """For each row the first token whose cumulative weight exceeds `uniform * total`; its weight is not 0.

    First the block of tokens is found, then the token in it: a cumulative sum over the vocabulary takes longer than all
    else here. Sums are float64.
    """
    blocks = pad(weights, (0, -weights.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(-1, dtype=torch.float64)
    through = sums.cumsum(-1)
    threshold = uniforms[:, None] * through[:, -1:]
    block = torch.searchsorted(through, threshold, right=True).clamp_(max=blocks.shape[1] - 1)
    members = blocks.gather(1, block[:, :, None].expand(-1, 1, BLOCK))[:, 0].double()
    within = members.cumsum(-1)
    # What is left for the block; rounding may put it a little outside.
    threshold = threshold - (through - sums).gather(-1, block)
    threshold = torch.minimum(threshold, within[:, -1:] * (1 - 2.0**-40))
    first = ((within > threshold) & (members > 0)).int().argmax(-1)
    return block[:, 0] * BLOCK + first
