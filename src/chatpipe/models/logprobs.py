"""Log-probs of completions under a causal model, and its hidden states at the positions that predict them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from chatpipe.data.sequences import MicroBatch
from chatpipe.errors import UsageError
from chatpipe.models.properties import body_of
from chatpipe.models.unpadded import MULTIPLE, Rows, hidden_states_at

MAX_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Logits that are held at once, by type of device. Log-softmax and entropy need about four times their float32 memory:
0.5 GB on a CPU, 4 GB on a GPU."""


def completion_logprobs(policy: PreTrainedModel, batch: MicroBatch, temperature: float) -> Tensor:
    """Log-probs of the completion tokens under softmax(logits / temperature), [N], in nats, float32 or wider."""
    return _read(policy, batch, temperature, with_entropy=False)[0]


def logprobs_and_entropy(policy: PreTrainedModel, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """As `completion_logprobs`, and the entropy of each softmax, [N], in nats, without gradient."""
    return _read(policy, batch, temperature, with_entropy=True)


def completion_states(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """The last hidden states of a model's body at the cells that predict the completion tokens, [N, d]."""
    tokens = Rows(batch.input_ids, batch.attention_mask, batch.position_ids)
    return hidden_states_at(body_of(model), tokens, batch.rows, batch.columns)


def _read(policy: PreTrainedModel, batch: MicroBatch, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor]:
    """The output head sees the N positions that predict a completion token and no other.

    Where their logits are more than `MAX_LOGITS` numbers, it sees them in parts, and the backward pass computes each
    part again.
    """
    hidden = completion_states(policy, batch)
    tokens = batch.input_ids[batch.rows, batch.columns + 1]
    head = policy.get_output_embeddings()
    most = MAX_LOGITS.get(hidden.device.type, MAX_LOGITS["cuda"])
    at_once = max(1, most // policy.config.get_text_config().vocab_size)
    if len(tokens) <= at_once:
        return token_logprobs(head, hidden, tokens, temperature, with_entropy)
    options = {"use_reentrant": False, "preserve_rng_state": False}
    parts = [
        checkpoint(token_logprobs, head, *part, temperature, with_entropy, **options)
        for part in zip(hidden.split(at_once), tokens.split(at_once), strict=True)
    ]
    logprobs, entropy = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return logprobs, entropy


def token_logprobs(
    head: nn.Module, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Log-probs of `tokens` [N] where the output head sees the states `hidden` [N, d], and entropy [N] (else [0])."""
    # A multiple of rows, for the reason given at MULTIPLE.
    logits = head(pad(hidden, (0, 0, 0, -len(hidden) % MULTIPLE)))[: len(hidden)]
    logprobs = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
    entropy = logprobs.new_empty(0)
    if with_entropy:
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, tokens[:, None])[:, 0], entropy


@torch.no_grad()
def check_output_head(policy: PreTrainedModel) -> None:
    """Raise UsageError unless the policy's logits are its output head applied to its last hidden states.

    `completion_logprobs` assumes that. A model that scales or caps its logits (Gemma 2, Cohere, Granite) would be
    trained on other probabilities than it samples from.
    """
    ids = torch.zeros(1, 2, dtype=torch.long, device=policy.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    ours = policy.get_output_embeddings()(policy.base_model(**inputs).last_hidden_state)
    theirs = policy(**inputs).logits
    if not theirs.isfinite().all():
        raise UsageError(
            "The policy's output is not finite (NaN or infinity).", "Its weights are broken: look at them."
        )
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise UsageError(
            f"{type(policy).__name__} changes its logits after the output head, which PPO here does not do.",
            "Use a model that does not, such as GPT-2, Llama or Qwen3.",
        )
