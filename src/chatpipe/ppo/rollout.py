"""The rollout: what the policy writes, what all models give it, its advantages, and the minibatches of the update."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.chat_template import decode_answer
from chatpipe.data.sequences import Sequences, flat_index, pad
from chatpipe.generation import generate
from chatpipe.models.logprobs import completion_logprobs
from chatpipe.models.side_by_side import Reading, side_by_side
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import MINIBATCHES, Experience, Prompt, Rollout, permutation
from chatpipe.ppo.maths import SumOverRanks, gae, k1, shape_rewards, whiten
from chatpipe.ppo.model import PolicyAndValueModel, completion_values, micro_batch_rows
from chatpipe.reward.reward_model import batch_scores
from chatpipe.reward.rewards import Content


def complete(
    trained: PolicyAndValueModel,
    prompts: Sequence[Sequence[int]],
    response_length: int,
    end_tokens: Sequence[int],
    seed: int,
) -> Sequences:
    """One completion to each prompt (token ids), which ends at one of `end_tokens`."""
    completions = generate(trained.policy, prompts, trained.sampling(response_length), end_tokens, seed)
    return Sequences.of(prompts, [each.ids for each in completions], [each.ended for each in completions])


class Readings(NamedTuple):
    """Numbers that the models give: logprobs, ref_logprobs and values [N] by completion token; scores [n, models]."""

    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor


@torch.no_grad()
def read_with_all_models(
    sequences: Sequences,
    trained: PolicyAndValueModel,
    ref_model: PreTrainedModel,
    reward_models: Sequence[PreTrainedModel],
    stop_token_id: int,
    micro_batch_size: int,
    device: torch.device,
    as_reference: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Readings:
    """The readings of all sequences, on the CPU; at most about `micro_batch_size` of the longest are read at once.

    The log-probs come from the forward pass that training uses, not from generation, whose kernels round differently:
    so the first ratio is 1. Reward models know one end of an answer: they read `stop_token_id` in place of any other,
    whose score was never trained, so that no end pays more than another. `as_reference` is entered while `ref_model`
    reads: with LoRA it turns the adapter off.
    """
    readers = [trained.policy, trained.value_model, ref_model, *reward_models]
    chunks, parts = micro_batch_rows(readers, sequences.lengths, micro_batch_size), []
    answered = sequences.ended_by(stop_token_id)
    for rows in chunks:
        batch = pad(sequences.select(rows)).to(device)
        answers = pad(answered.select(rows)).input_ids.to(device)
        how = (batch, trained.temperature, trained.excluded)
        of_policy = _reading(completion_logprobs, trained.policy, *how)
        of_reference = _reading(completion_logprobs, ref_model, *how)
        others = [_reading(completion_values, trained.value_model, batch)]
        others += [_reading(batch_scores, model, answers, batch.attention_mask) for model in reward_models]
        if ref_model is trained.policy:
            (logprobs,), (values,), *of_rewards = side_by_side([of_policy, *others])
            with as_reference():
                [(ref_logprobs,)] = side_by_side([of_reference])
        else:
            (logprobs,), (ref_logprobs,), (values,), *of_rewards = side_by_side([of_policy, of_reference, *others])
        scores = values.new_empty(len(rows), len(reward_models))
        for column, (numbers,) in enumerate(of_rewards):
            scores[:, column] = numbers
        parts.append((logprobs, ref_logprobs, values, scores))
    logprobs, ref_logprobs, values, scores = (torch.cat(kind).cpu() for kind in zip(*parts, strict=True))
    order = torch.cat(chunks)
    tokens = flat_index(sequences.completion_lengths, order)
    return Readings(
        logprobs=put_back(logprobs, tokens),
        ref_logprobs=put_back(ref_logprobs, tokens),
        values=put_back(values, tokens),
        scores=put_back(scores, order),
    )


def _reading(read: Callable[..., Tensor], model: PreTrainedModel, *arguments: Any) -> Reading:
    return model, lambda: (read(model, *arguments),)


def put_back(values: Tensor, places: Tensor) -> Tensor:
    """The tensor that has values[i] at places[i]."""
    result = torch.empty_like(values)
    result[places] = values
    return result


def shown_texts(
    prompts: Sequence[Prompt], sequences: Sequences, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Content], list[str]]:
    """What reward functions read: prompts as they were given, and completions."""
    completions = [decode_answer(tokenizer, ids) for ids in sequences.completions()]
    return [prompt.shown(tokenizer) for prompt in prompts], completions


def completion_rows(
    prompts: Sequence[Prompt], rollout: Rollout, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """A row for each completion: the texts `query` and `model response`, and the `score`; TRL's names."""
    _, completions = shown_texts(prompts, rollout.sequences, tokenizer)
    queries = [tokenizer.decode(prompt.ids) for prompt in prompts]
    rows = zip(queries, completions, rollout.scores.tolist(), strict=True)
    return [{"query": query, "model response": text, "score": score} for query, text, score in rows]


def advantages(rollout: Rollout, kl_coef: float, args: PPOConfig, sum_over_ranks: SumOverRanks) -> Experience:
    """The experience that PPO learns from: rewards with the KL penalty, GAE, returns, and whitened advantages."""
    lengths = rollout.sequences.completion_lengths
    rewards = shape_rewards(
        rollout.scores,
        rollout.sequences.ended,
        k1(rollout.logprobs, rollout.ref_logprobs),
        lengths,
        kl_coef,
        args.missing_eos_penalty,
        args.missing_eos,  # type: ignore[arg-type]  # checked by PPOConfig
    )
    raw = gae(rewards, rollout.values, lengths, args.gamma, args.lam)
    return Experience(
        sequences=rollout.sequences,
        scores=rollout.scores,
        logprobs=rollout.logprobs,
        ref_logprobs=rollout.ref_logprobs,
        values=rollout.values,
        rewards=rewards,
        advantages=whiten(raw, sum_over_ranks),
        returns=raw + rollout.values,
    )


def minibatches(experience: Experience, args: PPOConfig, iteration: int) -> Iterator[Experience]:
    """`num_ppo_epochs` passes over the experience, each shuffled differently, in `num_mini_batches` equal parts."""
    for epoch in range(args.num_ppo_epochs):
        order = permutation(len(experience), MINIBATCHES, args.seed, iteration, epoch, args.process_index)
        for rows in order.chunk(args.num_mini_batches):
            yield experience.select(rows)
