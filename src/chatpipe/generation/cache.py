"""The key-value cache of the decode engine, a row for each sequence, and how many rows there is memory for.

transformers' caches have one write position for all rows: rows of different lengths need padding, and a finished row
stays until the last one is done. Here each row has its own. Before each forward pass the engine sets what the pass
reads (`begin_prefill` or `begin_decode`); the layers then store the new keys and values and return those that the model
attends to.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin


class _Pass:
    """The forward pass that comes next; all layers share it.

    Prefill (`positions` is None): whole sequences in the rows from `first_row` on. Decode: one token in each of the
    first rows, at `positions` [rows]. The first `kv_length` positions are read.
    """

    kv_length = 0
    first_row = 0
    positions: Tensor | None = None
    write_at: Tensor | None = None


class RowCacheLayer(CacheLayerMixin):
    """Keys and values of one layer: two tensors [slots, heads, max_length, head_dim], allocated at first use.

    In this order a slice over the first rows and positions is a batch of matrices, which attention multiplies without
    copying it first.
    """

    is_sliding = False

    def __init__(self, slots: int, max_length: int, this_pass: _Pass) -> None:
        super().__init__()
        self.slots, self.max_length, self.this_pass = slots, max_length, this_pass

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate both for the model's heads, in one dtype: that of autocast if it is on, else that of the states.

        Zeros, not `empty`: a masked NaN would still spoil the sum of the attention.
        """
        device = key_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value_states.dtype
        self.keys, self.values = (
            states.new_zeros(self.slots, states.shape[1], self.max_length, states.shape[3], dtype=dtype)
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new states [rows, heads, tokens, head_dim] and return those to attend to, in the same layout."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._store(self.keys, key_states), self._store(self.values, value_states)

    def _store(self, stored: Tensor, states: Tensor) -> Tensor:
        (rows, heads, tokens, width), this = states.shape, self.this_pass
        states = states.to(stored.dtype)
        if this.positions is None:
            stored[this.first_row : this.first_row + rows, :, :tokens] = states
            return states
        if (
            this.write_at is None or len(this.write_at) != rows * heads
        ):  # the first layer; the others have as many heads
            starts = torch.arange(rows * heads, device=stored.device) * self.max_length
            this.write_at = (starts.view(rows, heads) + this.positions[:, None]).flatten()
        stored.view(-1, width).index_copy_(0, this.write_at, states.reshape(-1, width))
        return stored[:rows, :, : this.kv_length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.this_pass.kv_length, 0

    def get_seq_length(self) -> int:
        return 0  # differs by row; the engine passes position ids and masks itself

    def get_max_length(self) -> int:
        return self.max_length

    get_max_cache_shape = get_max_length  # its name before transformers 5.2x


class RowCache(Cache):
    """A `RowCacheLayer` for each of the model's layers, with at most `slots` rows of `max_length` tokens."""

    layers: list[RowCacheLayer]

    def __init__(self, num_layers: int, slots: int, max_length: int) -> None:
        self._pass = _Pass()
        super().__init__(layers=[RowCacheLayer(slots, max_length, self._pass) for _ in range(num_layers)])

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized)

    def begin_prefill(self, first_row: int, kv_length: int) -> None:
        """The next pass reads the first `kv_length` tokens of new sequences, in the rows from `first_row` on."""
        self._pass.first_row, self._pass.kv_length, self._pass.positions = first_row, kv_length, None

    def begin_decode(self, positions: Tensor, kv_length: int) -> None:
        """The next pass reads one token in each of the first rows, at `positions` [rows], all below `kv_length`."""
        self._pass.positions, self._pass.kv_length, self._pass.write_at = positions, kv_length, None

    def move_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` positions of the rows `source` [n] into the rows `target` [n], which are others."""
        for layer in self.layers:
            if layer.is_initialized:
                for stored in (layer.keys[:, :, :length], layer.values[:, :, :length]):
                    stored.index_copy_(0, target, stored.index_select(0, source))


# ---- how many rows decode together: what there is memory for decides ----

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
