"""What PPO trains: policy and value model in one module, so that DDP sees one forward and one backward pass."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatpipe.data.padding import equal_tokens, length_sorted
from chatpipe.data.sequences import MicroBatch
from chatpipe.models.layers import body_of
from chatpipe.models.logprobs import completion_logprobs, completion_states
from chatpipe.models.unpadded import positions_read, reads_unpadded
from chatpipe.reward.reward_model import head_scores, reward_offset

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
        read = positions_read(body_of(self.policy), batch.attention_mask)
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
    if not all(reads_unpadded(body_of(model)) for model in models):
        return length_sorted(lengths, size)
    tokens = size * int(lengths.max())
    return equal_tokens(lengths, min(tokens, MAX_TOKENS_ON_CPU) if models[0].device.type == "cpu" else tokens)


def completion_values(value_model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """The value model's value before each completion token, [N]."""
    # Taken out before the head: padded cells would add 0 times what stands in them to its gradient.
    hidden = completion_states(value_model, batch)
    return head_scores(value_model.score, hidden) - reward_offset(value_model)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability in `model` to 0, in place. Its config keeps what it had.

    With dropout the ratio of new to old policy would be random. This is done in place of `eval()` since that would
    switch off gradient checkpointing too (trl #1066).
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (isinstance(module, nn.modules.dropout._DropoutNd) or "drop" in name):
                setattr(module, name, 0.0)
