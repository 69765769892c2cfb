"""How far a policy has moved from its reference, measured on completions of its own."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from chatpipe.data.padding import length_sorted
from chatpipe.data.sequences import Sequences, pad
from chatpipe.generation import SamplingParams, generate
from chatpipe.models.logprobs import completion_logprobs


@torch.no_grad()
def sampled_kl(
    policy: PreTrainedModel,
    ref_model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    eos_token_id: int,
    seed: int,
    batch_size: int = 32,
) -> float:
    """KL(policy, reference) in nats per completion: the mean of sum_t (log pi - log pi_ref) over sampled completions.

    One completion to each prompt (token ids), sampled as `params` says; dropout must be off.
    """
    completions = generate(policy, prompts, params, eos_token_id, seed)
    sequences = Sequences.of(prompts, [done.ids for done in completions], [done.ended for done in completions])
    total = 0.0
    for rows in length_sorted(sequences.lengths, batch_size):
        batch = pad(sequences.select(rows)).to(policy.device)
        new, old = (completion_logprobs(model, batch, params.temperature)[0] for model in (policy, ref_model))
        total += (new - old).sum().item()
    return total / len(sequences)
