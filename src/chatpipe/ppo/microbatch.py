"""From ragged sequences to the padded tensors of one forward pass: the only place of PPO where there is padding.

A causal model predicts token t at position t-1. So what belongs to the completion token at column c of row i, its
log-prob and its value, is read at [i, c - 1]: `rows` and `columns` list these cells, in the flat order of experience.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from chatpipe.data.padding import pad_right
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
    input_ids, attention_mask = pad_right(sequences.ids.split(sequences.lengths.tolist()), PADDING_ID)
    position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    is_completion = attention_mask.bool() & (position_ids >= sequences.prompt_lengths[:, None])
    rows, columns = is_completion.nonzero(as_tuple=True)
    return MicroBatch(input_ids, attention_mask, position_ids, rows, columns - 1)
