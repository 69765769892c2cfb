"""How many rows decode together, and which prompts: the memory for keys and values decides."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from chatpipe.generation.cache import RowCache

CACHE_SHARE = 0.7
"""The share of a GPU's free memory that the cache may take; the rest is for the steps."""

MAX_WASTE = 3
"""A cache holds at most this many times the positions that its rows need."""


class Group(NamedTuple):
    """Prompts that share one cache, as places in the list of prompts, longest first; and the cache's size."""

    places: list[int]
    slots: int
    max_length: int


def usual_slots(model: PreTrainedModel) -> int:
    """Rows that decode together where memory allows it: a GPU has room for more, and a step takes hardly longer."""
    return 64 if model.device.type == "cpu" else 256


def plan_groups(lengths: Sequence[int], slots: int, positions: float) -> list[Group]:
    """Divide sequences of at most `lengths` tokens into groups that decode one after the other.

    All are one group if its cache, of at most `slots` rows of the longest length, stays within `positions` positions
    and within `MAX_WASTE` times what its rows need. Otherwise those longer than half the longest are a group, with as
    many slots as fit (one at least), and the others are divided in the same way.
    """
    waiting = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    groups = []
    while waiting:
        longest, rows = lengths[waiting[0]], min(slots, len(waiting))
        needed = sum(lengths[place] for place in waiting[:rows])
        if rows * longest <= min(positions, MAX_WASTE * needed):
            group = waiting
        else:
            group = [place for place in waiting if 2 * lengths[place] > longest]
        rows = max(1, int(min(slots, len(group), positions // longest)))
        groups.append(Group(group, rows, longest))
        waiting = waiting[len(group) :]
    return groups


@torch.no_grad()
def affordable_positions(model: PreTrainedModel) -> float:
    """How many positions of keys and values fit into `CACHE_SHARE` of the GPU's free memory; infinite on a CPU."""
    if model.device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info()
    reserved_but_free = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return CACHE_SHARE * (free + reserved_but_free) // bytes_per_position(model)


@torch.no_grad()
def bytes_per_position(model: PreTrainedModel) -> int:
    """Bytes of the keys and values of one token in all layers, measured on a cache of one position."""
    cache = RowCache(model.config.get_text_config().num_hidden_layers, 1, 1)
    cache.begin_prefill(0, 1)
    zero = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    mask = torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=model.device)
    model.get_decoder()(input_ids=zero, attention_mask=mask, position_ids=zero, past_key_values=cache, use_cache=True)
    return cache.nbytes
