"""How a token is drawn from logits: the parameters, the random numbers, and the draw itself.

The random number of prompt i at step t depends on (seed, i, t) alone, through a counter-based generator (Philox). So a
seed gives the same completions whatever the number of slots, and in whatever order the rows of a batch finish.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chatpipe.errors import UsageError

# Probabilities become integers of this resolution (~3.6e-15) before they are summed: integer sums are exact in any
# order, so that the cumulative sum is monotonic on every device and a token of weight 0 can never be drawn.
PROBABILITY_UNIT = 2.0**-48


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave the full softmax.

    Temperature is applied first, then top-k, then top-p (as transformers does). Raises UsageError on values that
    cannot be.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, valid, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1 (off)"),
        ):
            if not valid:
                raise UsageError(f"{name} is {getattr(self, name)}", f"It must be {allowed}.")


def uniform_numbers(seed: int, prompt_index: int, count: int) -> np.ndarray:
    """The random numbers of one prompt: [count] float64, multiples of 2**-32 in [0, 1)."""
    generator = np.random.Philox(key=np.array([seed % 2**64, prompt_index], dtype=np.uint64))
    return (generator.random_raw(count) >> np.uint64(32)) * 2.0**-32


def sample(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Draw one token for each row of `logits` [rows, vocabulary] with `uniforms` [rows] (float64, in [0, 1)).

    Returns the tokens [rows] (int64) and their log-probabilities [rows] (nats, float32 or wider) under
    softmax(logits / temperature), before top-k and top-p; with temperature 0 under softmax(logits). A row with logits
    that are not finite gets a log-probability of NaN.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if params.temperature == 0:
        logprobs = logits.log_softmax(-1)
        tokens = logits.argmax(-1)
    else:
        logprobs = (logits / params.temperature).log_softmax(-1)
        tokens = _invert_cdf(_truncate(logprobs.exp(), params), uniforms)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _truncate(probs: Tensor, params: SamplingParams) -> Tensor:
    """Set to 0 what top-k and top-p exclude from `probs` [rows, vocabulary]. The rest keeps its proportions."""
    if 0 < params.top_k < probs.shape[-1]:
        smallest_kept = probs.topk(params.top_k).values[:, -1:]
        probs = probs.where(probs >= smallest_kept, 0)
    if params.top_p < 1:
        descending, order = probs.sort(dim=-1, descending=True)
        before = descending.cumsum(-1) - descending  # mass of the tokens that are more likely
        excluded = before >= params.top_p * descending.sum(-1, keepdim=True)
        probs = probs.masked_fill(excluded.scatter(-1, order, excluded), 0)
    return probs


def _invert_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """For each row the first token whose cumulative weight exceeds `uniform * total`."""
    cumulative = (weights.double() / PROBABILITY_UNIT).long().cumsum(-1)
    # u <= 1 - 2**-32 and total ~ 2**48, so the threshold is below the total after rounding too.
    threshold = (uniforms[:, None] * cumulative[:, -1:]).long()
    tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    return tokens.clamp_(max=weights.shape[-1] - 1)  # only rows of NaN fall off the end
