"""What PPO trains: policy and value model in one module, so that DDP sees one forward and one backward pass."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from chatpipe.data.padding import equal_tokens, length_sorted
from chatpipe.errors import UsageError
from chatpipe.models.unpadded import MULTIPLE, Rows, hidden_states_at, positions_read, reads_unpadded
from chatpipe.ppo.microbatch import MicroBatch
from chatpipe.reward.reward_model import head_scores, reward_offset

MAX_LOGITS = 2**25
"""Logits that are held at once, times about four in float32 with what log-softmax and entropy need: 0.5 GB."""

MAX_TOKENS_ON_CPU = 4096
"""Of a micro-batch that is read without padding: on a CPU more at once take more memory and hardly less time."""


class Outputs(NamedTuple):
    """For each completion token, [N]: log-prob in nats, entropy of its distribution (no gradient), value before it."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


class PolicyAndValueModel(nn.Module):
    """A causal language model and a sequence classification model whose score at each position is the value."""

    def __init__(self, policy: PreTrainedModel, value_model: PreTrainedModel, temperature: float) -> None:
        super().__init__()
        self.policy, self.value_model, self.temperature = policy, value_model, temperature

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, rows: Tensor, columns: Tensor
    ) -> Outputs:
        """Arguments as in `MicroBatch`."""
        batch = MicroBatch(input_ids, attention_mask, position_ids, rows, columns)
        logprobs, entropy = completion_logprobs(self.policy, batch, self.temperature)
        return Outputs(logprobs, entropy, completion_values(self.value_model, batch))

    def positions_read(self, batch: MicroBatch) -> Tensor:
        """How many tokens of `batch`, padding included, go through the policy: a number."""
        read = positions_read(_body(self.policy), batch.attention_mask)
        return torch.tensor(read, device=batch.attention_mask.device)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """What Trainer calls for `gradient_checkpointing`."""
        for model in (self.policy, self.value_model):
            model.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same under its name before transformers 5.2x."""
        for model in (self.policy, self.value_model):
            model.gradient_checkpointing_enable(**kwargs)


def micro_batch_rows(models: Iterable[PreTrainedModel], lengths: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split rows of `lengths` [n], which all `models` read, into micro-batches: the row numbers of each, int64.

    A micro-batch takes at most about the memory of `size` of the longest rows. Where some model needs padding between
    rows, rows of similar length go together.
    """
    models = list(models)
    if not all(reads_unpadded(_body(model)) for model in models):
        return length_sorted(lengths, size)
    tokens = size * int(lengths.max())
    return equal_tokens(lengths, min(tokens, MAX_TOKENS_ON_CPU) if models[0].device.type == "cpu" else tokens)


def completion_logprobs(policy: PreTrainedModel, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion tokens under softmax(logits / temperature) and its entropy, [N] each, in nats.

    Computed in float32 or wider. The output head sees the N positions that predict a completion token and no other.
    Where their logits are more than `MAX_LOGITS` numbers, it sees them in parts, each of which the backward pass
    computes anew. The entropy has no gradient.
    """
    hidden = _hidden_states(policy, batch, batch.rows, batch.columns)
    tokens = batch.input_ids[batch.rows, batch.columns + 1]
    head = policy.get_output_embeddings()
    at_once = max(1, MAX_LOGITS // policy.config.get_text_config().vocab_size)
    if len(tokens) <= at_once:
        return _token_logprobs(head, hidden, tokens, temperature)
    parts = [
        checkpoint(_token_logprobs, head, *part, temperature, use_reentrant=False)
        for part in zip(hidden.split(at_once), tokens.split(at_once), strict=True)
    ]
    logprobs, entropy = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return logprobs, entropy


def _token_logprobs(head: nn.Module, hidden: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-prob of `tokens` [N] and entropy [N] where the output head sees the states `hidden` [N, d]."""
    # Filled up for the same reason as the tokens that a model reads.
    logits = head(pad(hidden, (0, 0, 0, -len(hidden) % MULTIPLE)))[: len(hidden)]
    logprobs = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, tokens[:, None])[:, 0], entropy


def completion_values(value_model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """The value model's value before each completion token, [N]."""
    # Taken out before the head: padded cells would add 0 times what stands in them to its gradient.
    hidden = _hidden_states(value_model, batch, batch.rows, batch.columns)
    return head_scores(value_model.score, hidden) - reward_offset(value_model)


def _hidden_states(model: PreTrainedModel, batch: MicroBatch, rows: Tensor, columns: Tensor) -> Tensor:
    tokens = Rows(batch.input_ids, batch.attention_mask, batch.position_ids)
    return hidden_states_at(_body(model), tokens, rows, columns)


def _body(model: PreTrainedModel) -> nn.Module:
    return getattr(model, model.base_model_prefix)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability in `model` to 0, in place. Its config keeps what it had.

    With dropout the ratio of new to old policy would be random. This is done in place of `eval()` since that would
    switch off gradient checkpointing too (trl #1066).
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (isinstance(module, nn.modules.dropout._DropoutNd) or "drop" in name):
                setattr(module, name, 0.0)


@torch.no_grad()
def check_output_head(policy: PreTrainedModel) -> None:
    """Raise UsageError unless the policy's logits are its output head applied to its last hidden states.

    `completion_logprobs` takes them to be that; a model that scales or caps its logits (Gemma 2, Cohere, Granite)
    would be trained on other probabilities than it samples from.
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
