"""Experience: sequences with what PPO learns from, their log-probs, values, rewards and advantages.

It is ragged like the sequences themselves (`chatpipe.data.sequences`): the numbers that belong to completion tokens lie
in flat arrays [N], one completion after another. n is the number of sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from chatpipe.data.sequences import Sequences, flat_index, upload


@dataclass(frozen=True)
class Rollout:
    """Completions, and what all models and reward functions give them, without gradient, on the CPU.

    scores: [n], the total reward of each completion, before the missing-EOS penalty. by_source: metric names and the
    scores [n] of single sources. For each completion token, [N]: logprobs and ref_logprobs of the policy and the
    reference; values, read at the position before the token (they have not seen it). seconds: metric names and times.
    """

    sequences: Sequences
    scores: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    by_source: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Experience:
    """A rollout, or some sequences of it, with rewards and advantages.

    For each completion token, [N]: rewards (score and KL penalty); advantages, whitened; returns. The others as in
    `Rollout`.
    """

    sequences: Sequences
    scores: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def num_tokens(self) -> int:
        """N, the number of completion tokens: what every mean over tokens divides by."""
        return len(self.logprobs)

    def to(self, device: torch.device) -> "Experience":
        """The same with the numbers of its tokens on `device`; sequences and scores stay on the CPU."""
        moved = upload([getattr(self, name) for name in TOKEN_FIELDS], device)
        return replace(self, **dict(zip(TOKEN_FIELDS, moved, strict=True)))

    def select(self, rows: Tensor) -> "Experience":
        """The experience of the sequences `rows` [m] (int64), in that order."""
        tokens = flat_index(self.sequences.completion_lengths, rows)
        return Experience(
            sequences=self.sequences.select(rows),
            scores=self.scores[rows],
            **{name: getattr(self, name)[tokens] for name in TOKEN_FIELDS},
        )


TOKEN_FIELDS = ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
"""Fields of `Experience` with a number for each completion token."""
