"""Experience: sequences with what PPO learns from, their log-probs, values, rewards and advantages.

It is ragged like the sequences themselves (`chatpipe.data.sequences`): the numbers that belong to completion tokens lie
in flat arrays [N], one completion after another.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chatpipe.data.sequences import Sequences, flat_index


@dataclass(frozen=True)
class Experience:
    """Sequences with what was measured on them before the update; floats without gradient.

    scores: [n], of the reward model, before the missing-EOS penalty. For each completion token, [N]: logprobs and
    ref_logprobs of the policy and the reference; values, read at the position before the token (they have not seen
    it); rewards (score and KL penalty); advantages, whitened; returns.
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
        """The same with its floats on `device`; the sequences stay where they are."""
        floats = ("scores", "logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
        return replace(self, **{name: getattr(self, name).to(device) for name in floats})

    def select(self, rows: Tensor) -> "Experience":
        """The experience of the sequences `rows` [m] (int64), in that order."""
        tokens = flat_index(self.sequences.completion_lengths, rows)
        return Experience(
            sequences=self.sequences.select(rows),
            scores=self.scores[rows],
            logprobs=self.logprobs[tokens],
            ref_logprobs=self.ref_logprobs[tokens],
            values=self.values[tokens],
            rewards=self.rewards[tokens],
            advantages=self.advantages[tokens],
            returns=self.returns[tokens],
        )
