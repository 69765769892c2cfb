"""PTX: the pretraining loss in the same optimizer step, so that the policy does not forget how to write.

InstructGPT (arXiv 2203.02155, eq. 2) adds gamma * E_{x ~ pretraining}[log pi(x)] to what PPO maximises.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatpipe.data.sequences import Sequences, pad
from chatpipe.errors import UsageError
from chatpipe.models.logprobs import completion_logprobs


def text_loss(policy: PreTrainedModel, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """-sum log pi(token | tokens before it in its row), in nats, with gradient; a row's first token is given.

    `rows` are token ids, two at least each. The sum is over sum(len(row) - 1) tokens. Temperature 1: what is asked for
    is the model of the text, not the policy that samples.
    """
    sequences = Sequences.of([row[:1] for row in rows], [row[1:] for row in rows], [False] * len(rows))
    logprobs, _ = completion_logprobs(policy, pad(sequences).to(device), temperature=1.0)
    return -logprobs.sum()


def row_of(dataset: Any, number: int) -> list[int]:
    """The token ids of a row; raises UsageError where it has none."""
    row = dataset[number]
    ids = row.get("input_ids") if hasattr(row, "get") else None
    if ids is None or len(ids) < 2:
        raise UsageError(
            f"ptx_dataset, row {number} has no input_ids, or fewer than two.",
            "Give tokenised text: chatpipe's TrainingText.",
        )
    return [int(token) for token in ids]
