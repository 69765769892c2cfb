"""Experience: completions with their log-probs, values, rewards and advantages: what PPO learns from.

It is ragged: the tokens of all sequences lie in one flat array, one sequence after another, and so do the numbers that
belong to completion tokens. Padding exists in `chatpipe.ppo.microbatch` alone, so there is no pad id that could be
mistaken for EOS, no left or right, and no padded cell that could leak into a sum.

Below, n is the number of sequences and N the number of completion tokens of all of them. A completion is what the
policy wrote, its EOS included where it wrote one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Prompts and their completions.

    ids: [total tokens] int64, prompt then completion of each sequence. lengths: [n] int64, tokens of each sequence.
    prompt_lengths: [n] int64, at least 1. ended: [n] bool, whether the completion ends with EOS (else it was cut off).
    """

    ids: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    ended: Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], ended: Sequence[bool]
    ) -> "Sequences":
        """From lists of token ids; no prompt and no completion may be empty."""
        rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        if not all(prompts) or not all(completions):
            raise ValueError("a prompt or a completion has no tokens")
        return cls(
            ids=torch.tensor([token for row in rows for token in row]),
            lengths=torch.tensor([len(row) for row in rows]),
            prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
            ended=torch.tensor(list(ended), dtype=torch.bool),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def completion_lengths(self) -> Tensor:
        """Tokens of each completion: [n] int64."""
        return self.lengths - self.prompt_lengths

    def select(self, rows: Tensor) -> "Sequences":
        """The sequences `rows` [m] (int64), in that order."""
        return Sequences(
            ids=self.ids[flat_index(self.lengths, rows)],
            lengths=self.lengths[rows],
            prompt_lengths=self.prompt_lengths[rows],
            ended=self.ended[rows],
        )


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


def flat_index(lengths: Tensor, rows: Tensor) -> Tensor:
    """Where the items of `rows` [m] stand in a flat array whose rows have `lengths` [n]: [sum(lengths[rows])] int64."""
    starts = lengths.cumsum(0) - lengths
    picked = lengths[rows]
    # An item's place in the result, less the place at which its row begins there, is its place within the row.
    shift = starts[rows] - (picked.cumsum(0) - picked)
    return torch.arange(int(picked.sum())) + shift.repeat_interleave(picked)


def last_index(lengths: Tensor) -> Tensor:
    """Where the last item of each row stands in a flat array whose rows have `lengths` [n] (none is 0): [n] int64."""
    return lengths.cumsum(0) - 1
