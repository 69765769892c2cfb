"""Prompts and their completions as ragged rows, and the padded micro-batches of rows that a model reads.

Rows are ragged: the tokens of all sequences lie in one flat array, one sequence after another. Padding exists in a
`MicroBatch` alone, so no pad id can be mistaken for EOS, there is no left or right, and no padded cell enters a sum.

Below, n is the number of sequences and N the number of completion tokens of all of them. A completion is what the
policy wrote, its EOS included where it wrote one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

MAX_PADDING = 0.05
"""The most padding in a micro-batch. With a tenth, a small model on a CPU would be 6 % faster."""

PADDING_ID = 0
"""Fills padded cells where there is no tokenizer to ask (`padding_id`). No result depends on it."""


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills padded cells, which masks and lengths hide: the tokenizer's own, else its EOS, else 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return PADDING_ID


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
        """Sequences from lists of token ids. Raises ValueError for an empty prompt or completion."""
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

    def ended_by(self, token: int) -> "Sequences":
        """The same with `token` as the last one of each completion that ended, whichever end it had."""
        last = (self.lengths.cumsum(0) - 1)[self.ended]
        return replace(self, ids=self.ids.index_fill(0, last, token))

    def completions(self) -> list[list[int]]:
        """The token ids of each completion."""
        rows = zip(self.ids.split(self.lengths.tolist()), self.prompt_lengths.tolist(), strict=True)
        return [ids[start:].tolist() for ids, start in rows]


def flat_index(lengths: Tensor, rows: Tensor) -> Tensor:
    """The places of the items of `rows` [m] in a flat array whose rows have `lengths` [n]: [sum(lengths[rows])]."""
    starts = lengths.cumsum(0) - lengths
    picked = lengths[rows]
    # An item's place in the result, less the place at which its row begins there, is its place within the row.
    shift = starts[rows] - (picked.cumsum(0) - picked)
    return torch.arange(int(picked.sum())) + shift.repeat_interleave(picked)


def last_index(lengths: Tensor) -> Tensor:
    """The place of each row's last item in a flat array whose rows have `lengths` [n] (none is 0): [n] int64."""
    return lengths.cumsum(0) - 1


# ---- micro-batches ----


class MicroBatch(NamedTuple):
    """The inputs of one forward pass: b sequences, padded on the right to t tokens, with N completion tokens.

    input_ids, attention_mask (1 = token, 0 = padding), position_ids: [b, t] int64. rows, columns: [N] int64, the cells
    that predict the completion tokens, in their flat order. A causal model predicts token t at position t - 1, so what
    belongs to the token at column c, its log-prob and its value, is read at column c - 1.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    rows: Tensor
    columns: Tensor

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on `device`."""
        return MicroBatch(*upload(self, device))


def pad(sequences: Sequences) -> MicroBatch:
    """The micro-batch of `sequences`, on the CPU."""
    input_ids, attention_mask = pad_right(sequences.ids.split(sequences.lengths.tolist()), PADDING_ID)
    position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    is_completion = attention_mask.bool() & (position_ids >= sequences.prompt_lengths[:, None])
    rows, columns = is_completion.nonzero(as_tuple=True)
    return MicroBatch(input_ids, attention_mask, position_ids, rows, columns - 1)


def upload(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """`tensors` of one dtype on `device`. A GPU gets them in one copy that the host does not wait for."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    flat = torch.cat([tensor.flatten() for tensor in tensors]).pin_memory().to(device, non_blocking=True)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


# ---- which rows go together, and padding them ----


def length_sorted(lengths: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split rows of `lengths` [n] into micro-batches of rows of similar length: tuple of row numbers, int64.

    A micro-batch is padded to its longest row. It has at most as many tokens, padding included, as `size` of the
    longest rows, and at most `MAX_PADDING` of them is padding. The longest rows come first, so running
    out of memory happens at once.
    """
    order = lengths.argsort(descending=True, stable=True)
    descending = lengths[order].tolist()
    return order.split(similar_runs(descending, MAX_PADDING, size * max(descending, default=0)))


def similar_runs(lengths: Sequence[int], max_padding: float, max_tokens: float = math.inf) -> list[int]:
    """Sizes of runs of neighbouring rows of `lengths` that go together; they sum to the number of rows.

    A run padded to its longest row has at most the share `max_padding` of padding, and at most `max_tokens` tokens with
    padding (or one row).
    """
    sizes: list[int] = []
    longest = rows = tokens = 0
    for length in lengths:
        padded = max(longest, length) * (rows + 1)
        if rows and (padded > max_tokens or padded - tokens - length > max_padding * padded):
            sizes.append(rows)
            longest = rows = tokens = 0
        longest = max(longest, length)
        rows, tokens = rows + 1, tokens + length
    return [*sizes, rows] if rows else []


def equal_tokens(lengths: Tensor, max_tokens: int) -> tuple[Tensor, ...]:
    """Split rows of `lengths` [n] into micro-batches of similar length and equally many tokens: row numbers, int64.

    For models that read rows without padding. A batch has about `max_tokens` tokens, at most one row more; batches
    differ little in their tokens. The longest rows come first.
    """
    order = lengths.argsort(descending=True, stable=True)
    descending = lengths[order]
    total = int(descending.sum())
    parts = -(-total // max_tokens)
    middles = descending.cumsum(0) - descending / 2
    sizes = (middles * parts / total).long().bincount(minlength=parts)
    return order.split(sizes[sizes > 0].tolist())


def pad_right(rows: Sequence[Sequence[int] | Tensor], fill: int) -> tuple[Tensor, Tensor]:
    """`rows` as one tensor [n, longest] padded on the right with `fill`, and its mask, 1 on tokens: both int64."""
    padded = pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_value=fill)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long()
