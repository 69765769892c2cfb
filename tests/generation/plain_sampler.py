"""What the engine must write, in a loop over tokens: one prompt at a time, the whole sequence read for each token.

Everything is float64 and follows the definitions; the random number of a token is a function of the seed, the prompt,
how often the prompt came before, and the step.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from chatpipe.generation import SamplingParams


@torch.no_grad()
def plain_completions(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], params: SamplingParams, eos: int, seed: int
) -> list[list[int]]:
    completions = []
    for place, prompt in enumerate(prompts):
        earlier = sum(list(other) == list(prompt) for other in prompts[:place])
        uniforms, written = random_numbers(seed, prompt, earlier, params.max_new_tokens), []
        while len(written) < params.max_new_tokens and eos not in written:
            logits = model(torch.tensor([[*prompt, *written]])).logits[0, -1].double().numpy()
            written.append(draw(allowed(logits, params), uniforms[len(written)]))
        completions.append(written)
    return completions


def random_numbers(seed: int, prompt: Sequence[int], earlier: int, count: int) -> np.ndarray:
    name = np.asarray(prompt, dtype=np.int64).tobytes() + earlier.to_bytes(8, "little")
    stream = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
    raw = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(count)
    return (raw >> np.uint64(32)) / 2**32


def allowed(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The weights of all tokens: temperature, then top-k, top-p and min-p."""
    weights = np.exp((logits - logits.max()) / params.temperature)
    weights /= weights.sum()
    if params.top_k:
        weights[weights < np.sort(weights)[-params.top_k]] = 0
    if params.top_p < 1:
        likelier = np.array([weights[weights > weight].sum() for weight in weights])
        weights[likelier >= params.top_p * weights.sum()] = 0
    weights[weights < params.min_p * weights.max()] = 0
    return weights


def draw(weights: np.ndarray, uniform: float) -> int:
    through = 0.0
    for token, weight in enumerate(weights):
        through += weight
        if through > uniform * weights.sum():
            return token
    return int(np.flatnonzero(weights)[-1])
