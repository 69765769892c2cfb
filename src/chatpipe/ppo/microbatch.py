"""From ragged sequences to the padded tensors of one forward pass: the only place of PPO where there is padding.

A causal model predicts token t at position t-1. So what belongs to the completion token at column c of row i, its
log-prob and its value, is read at [i, c - 1]: `rows` and `columns` list these cells, in the flat order of experience.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from chatpipe.ppo.experience import Sequences


class MicroBatch(NamedTuple):
    """Inputs of one forward pass; b sequences, right-padded to t tokens, with N completion tokens.

    input_ids, attention_mask (1 = token, 0 = padding), position_ids: [b, t] int64. rows, columns: [N] int64, the cell
    that predicts each completion token; the token itself stands one column further on.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    rows: Tensor
    columns: Tensor

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on `device`."""
        return MicroBatch(*(tensor.to(device) for tensor in self))


PADDING_ID = 0  # any token would do: nothing that PPO computes depends on it


def pad(sequences: Sequences) -> MicroBatch:
    """Lay out `sequences` for a forward pass."""
    lengths, prompt_lengths = sequences.lengths[:, None], sequences.prompt_lengths[:, None]
    position_ids = torch.arange(int(lengths.max())).expand(len(sequences), -1)
    is_token = position_ids < lengths
    input_ids = torch.full(position_ids.shape, PADDING_ID)
    input_ids[is_token] = sequences.ids
    rows, columns = (is_token & (position_ids >= prompt_lengths)).nonzero(as_tuple=True)
    return MicroBatch(input_ids, is_token.long(), position_ids, rows, columns - 1)


def length_sorted(lengths: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split rows of `lengths` [n] into micro-batches of `size` rows of similar length: tuple of [<= size] int64.

    Similar lengths save padding. The longest come first: if they do not fit in memory, one knows at once.
    """
    return lengths.argsort(descending=True, stable=True).split(size)
