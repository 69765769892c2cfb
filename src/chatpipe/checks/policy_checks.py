"""The check of PPO's start: before the first step, policy and reference give the same log-probs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatpipe.checks.gate import Finding
from chatpipe.data.sequences import Sequences, pad
from chatpipe.generation import SamplingParams, generate
from chatpipe.models.logprobs import completion_logprobs

RATIO_TOLERANCE, RATIO_TOLERANCE_BF16 = 1e-4, 2e-2
"""How far the first mean ratio may be from 1; bf16 rounds log-probs by up to .024 nat (transformers #31267)."""

Context = Callable[[], AbstractContextManager[object]]


@torch.no_grad()
def policy_is_not_reference(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    eos_token_id: int,
    *,
    as_reference: Context = nullcontext,
    autocast: Context = nullcontext,
    bf16: bool = False,
) -> Finding | None:
    """The policy's log-probs of its completions differ from the reference's, or from its own in a second reading.

    trl #1005, #615 (negative KL); the first ratio: "The 37 Implementation Details of PPO". One completion to each of
    the few `prompts` (token ids) is read all together, and again one by one in training mode, as updates read.
    `as_reference` is entered where `reference` reads (LoRA: the policy without its adapter), `autocast` around every
    reading. Mean absolute differences a token are held to the alarms' tolerances: 1e-4 nats, with `bf16` 2e-2.
    """
    completions = generate(policy, prompts, params, eos_token_id, seed=0)
    sequences = Sequences.of(prompts, [done.ids for done in completions], [done.ended for done in completions])
    tolerance = RATIO_TOLERANCE_BF16 if bf16 else RATIO_TOLERANCE
    was_training = policy.training
    try:
        with autocast():
            policy.eval()
            sampled = _logprobs(policy, sequences, params.temperature)
            with as_reference():
                kl = _distance(sampled, _logprobs(reference, sequences, params.temperature))
            policy.train()
            singly = [sequences.select(torch.tensor([row])) for row in range(len(sequences))]
            again = torch.cat([_logprobs(policy, one, params.temperature) for one in singly])
    finally:
        policy.train(was_training)
    if not kl <= tolerance:
        return Finding(
            f"policy and reference differ by {kl:.2g} nats a token before the first step, but KL must be 0 there.",
            "Both must be the same model in the same precision; an adapter (ppo.lora) must start at zero.",
        )
    ratio = _distance(sampled, again)
    if not ratio <= tolerance:
        return Finding(
            f"two readings of the policy differ by {ratio:.2g} nats a token, but the first ratio must be 1.",
            "Use a model without noise in its forward pass (dropout, router jitter), or ppo.bf16=false.",
        )
    return None


def _logprobs(model: PreTrainedModel, sequences: Sequences, temperature: float) -> Tensor:
    """Log-probs of the completion tokens in nats, [N] on the CPU."""
    return completion_logprobs(model, pad(sequences).to(model.device), temperature).cpu()


def _distance(some: Tensor, others: Tensor) -> float:
    """Mean absolute difference; NaN where one is."""
    return (some - others).abs().mean().item()
