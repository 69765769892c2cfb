"""Making experience: which prompts come when, what the four models say about the completions, and the advantages."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatpipe.data.sequences import Sequences, flat_index, pad
from chatpipe.models.logprobs import completion_logprobs
from chatpipe.ppo.advantages import SumOverRanks, gae, whiten
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import Experience
from chatpipe.ppo.kl import k1, shape_rewards
from chatpipe.ppo.model import PolicyAndValueModel, micro_batch_rows
from chatpipe.reward.scoring import batch_scores


class Stream(IntEnum):
    """What random numbers are drawn for; each use has a stream of its own."""

    PROMPTS = 1
    GENERATION = 2
    MINIBATCHES = 3
    PTX = 4
    EVALUATION = 5


def seed_of(stream: Stream, *numbers: int) -> int:
    """A 64-bit seed that is a pure function of the stream and of `numbers`: the run's seed, the iteration, the rank."""
    return int(np.random.SeedSequence([stream, *numbers]).generate_state(1, np.uint64)[0])


def permutation(length: int, stream: Stream, *numbers: int) -> Tensor:
    """A permutation [length] that is a pure function of the stream and of `numbers`."""
    return torch.from_numpy(np.random.default_rng(seed_of(stream, *numbers)).permutation(length))


def prompt_numbers(num_prompts: int, start: int, count: int, seed: int, stream: Stream = Stream.PROMPTS) -> list[int]:
    """The prompts (of another stream: rows) at the places `start`, ..., `start + count - 1` of an endless order.

    The order is one pass over all prompts after another, each shuffled anew; it depends on nothing but `seed`, so a
    run that is resumed or has another number of ranks takes the same prompts.
    """
    passes = range(start // num_prompts, (start + count - 1) // num_prompts + 1)
    orders = {number: permutation(num_prompts, stream, seed, number) for number in passes}
    return [int(orders[place // num_prompts][place % num_prompts]) for place in range(start, start + count)]


class Scores(NamedTuple):
    """What the models say: logprobs, ref_logprobs and values [N] for each completion token, scores [n].

    Of several reward models scores are [n, m].
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor


@torch.no_grad()
def score(
    sequences: Sequences,
    trained: PolicyAndValueModel,
    ref_model: PreTrainedModel,
    reward_model: PreTrainedModel | Sequence[PreTrainedModel],
    micro_batch_size: int,
    device: torch.device,
    *,
    as_reference: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Scores:
    """Read all sequences with all models, `micro_batch_size` at a time. Results are on the CPU.

    The log-probs come from the forward pass that training uses, not from generation, whose kernels round differently:
    the first ratio is 1. `as_reference` is entered where `ref_model` reads: it turns a policy into its own reference.
    """
    lengths = sequences.completion_lengths
    reward_models = [reward_model] if isinstance(reward_model, nn.Module) else list(reward_model)
    readers = [trained.policy, trained.value_model, ref_model, *reward_models]
    chunks, read = micro_batch_rows(readers, sequences.lengths, micro_batch_size), []
    for rows in chunks:
        batch = pad(sequences.select(rows)).to(device)
        outputs = trained(*batch)
        with as_reference():
            ref_logprobs, _ = completion_logprobs(ref_model, batch, trained.temperature)
        scores = outputs.values.new_empty(len(rows), len(reward_models))
        for column, model in enumerate(reward_models):
            scores[:, column] = batch_scores(model, batch.input_ids, batch.attention_mask)
        read.append((outputs.logprobs.cpu(), ref_logprobs.cpu(), outputs.values.cpu(), scores.cpu()))
    order = torch.cat(chunks)
    logprobs, ref_logprobs, values, scores = (torch.cat(parts) for parts in zip(*read, strict=True))
    tokens = flat_index(lengths, order)
    scores = _put_back(scores, order)
    return Scores(
        logprobs=_put_back(logprobs, tokens),
        ref_logprobs=_put_back(ref_logprobs, tokens),
        values=_put_back(values, tokens),
        scores=scores[:, 0] if isinstance(reward_model, nn.Module) else scores,
    )


def with_advantages(
    sequences: Sequences,
    scores: Scores,
    args: PPOConfig,
    sum_over_ranks: SumOverRanks,
    *,
    kl_coef: float | None = None,
) -> tuple[Experience, Tensor]:
    """The experience that PPO learns from, and its advantages [N] before they were whitened.

    `scores.scores` [n] is what is to be maximised. kl_coef: default that of `args`.
    """
    lengths = sequences.completion_lengths
    rewards = shape_rewards(
        scores.scores,
        sequences.ended,
        k1(scores.logprobs, scores.ref_logprobs),
        lengths,
        args.kl_coef if kl_coef is None else kl_coef,
        args.missing_eos_penalty,
        args.missing_eos,  # type: ignore[arg-type]  # checked by PPOConfig
    )
    advantages = gae(rewards, scores.values, lengths, args.gamma, args.lam)
    experience = Experience(
        sequences=sequences,
        scores=scores.scores,
        logprobs=scores.logprobs,
        ref_logprobs=scores.ref_logprobs,
        values=scores.values,
        rewards=rewards,
        advantages=whiten(advantages, sum_over_ranks),
        returns=advantages + scores.values,
    )
    return experience, advantages


def minibatches(experience: Experience, count: int, *numbers: int) -> list[Experience]:
    """Split experience into `count` minibatches of equal size, in an order that is a pure function of `numbers`."""
    order = permutation(len(experience), Stream.MINIBATCHES, *numbers)
    return [experience.select(rows) for rows in order.chunk(count)]


def _put_back(values: Tensor, places: Tensor) -> Tensor:
    """values[i] goes to places[i]."""
    result = torch.empty_like(values)
    result[places] = values
    return result
