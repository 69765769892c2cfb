"""transformers' continuous batching as a backend of `generate`.

It writes the same greedy tokens as the decode engine and samples from the same distribution. What differs:

- It draws with torch's generator: a seed gives the same tokens again for the same prompts and slots, but others for
  another number of slots or another order of prompts.
- Its log-probs are those after top-k and top-p, so they are given for the full distribution alone.
- It has no min-p, and looks for stop strings when a completion is done.

It needs flash attention to be quick: otherwise each row's query is multiplied with the keys of all rows, and masked.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from chatpipe.errors import TrainingError, UsageError
from chatpipe.generation.decode_rows import Completion, prefill_tokens
from chatpipe.generation.sampling import SamplingParams

PAGE_SIZE = {"cpu": 32, "cuda": 256}
"""Tokens of a page of its cache; flash attention wants 256."""


def generate_continuous(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    eos_token_id: int,
    seed: int,
    slots: int,
    on_finished: Callable[[int], None] | None,
    logprobs: bool,
) -> list[Completion]:
    """Complete every prompt; arguments and errors are those of `generate`, which calls it with checked prompts."""
    if params.min_p > 0:
        raise UsageError("min_p with the backend continuous, which has none", "Use the backend native.")
    if logprobs and (params.top_k or params.top_p < 1):
        raise UsageError(
            "log-probs with top_k or top_p, which the backend continuous does not give", "Use the backend native."
        )
    finished: dict[str, Completion] = {}
    problem = "its thread ended early"
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        torch.inference_mode(False),  # its thread writes into what is allocated here
        torch.random.fork_rng(devices),  # it seeds torch's generators
        model.continuous_batching_context_manager(
            generation_config=_generation_config(params, eos_token_id),
            continuous_batching_config=_batching_config(model, prompts, params, seed, slots),
        ) as manager,
    ):
        limits = {"max_new_tokens": params.max_new_tokens, "eos_token_id": eos_token_id}
        requests = [manager.add_request(list(prompt), **limits) for prompt in prompts]
        for result in manager:
            if result.error is not None or not math.isfinite(sum(result.logprobs)):
                problem = result.error or "a log-prob is not finite"
                break
            ids = list(result.generated_tokens)
            finished[result.request_id] = Completion(
                ids, list(result.logprobs) if logprobs else None, ended=ids[-1] == eos_token_id
            )
            if on_finished:
                on_finished(len(finished))
            if len(finished) == len(prompts):
                break
    if len(finished) < len(prompts):
        raise TrainingError(
            f"continuous batching failed, as it does when the model's output is not finite: {problem}",
            "Are the weights broken, or do they overflow in this dtype? Try the backend native.",
        )
    return [finished[request] for request in requests]


def _generation_config(params: SamplingParams, eos_token_id: int) -> GenerationConfig:
    greedy = params.temperature == 0
    return GenerationConfig(
        max_new_tokens=params.max_new_tokens,
        eos_token_id=eos_token_id,
        do_sample=not greedy,
        temperature=1.0 if greedy else params.temperature,
        top_k=params.top_k,  # 0 is off; None would be 50
        top_p=params.top_p,
    )


def _batching_config(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], params: SamplingParams, seed: int, slots: int
) -> Any:
    """Sized for `slots` rows: by default the cache takes most of the memory that is free (0.6 of it on a CPU)."""
    from transformers import ContinuousBatchingConfig  # older versions have none, and still run the native backend

    longest_prompt, page_size = max(map(len, prompts)), PAGE_SIZE.get(model.device.type, 256)
    pages = -(-(longest_prompt + params.max_new_tokens) // page_size)
    return ContinuousBatchingConfig(
        page_size=page_size,
        num_blocks=slots * pages + 1,
        max_batch_tokens=max(slots, prefill_tokens(model)),
        max_requests_per_batch=slots,
        allow_block_sharing=False,  # its prefixes may have been written with other weights
        return_logprobs=True,  # to see that they are finite
        seed=seed % 2**63,
    )
