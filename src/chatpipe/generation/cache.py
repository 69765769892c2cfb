"""The key-value cache of the decode engine: one row per sequence, and in each row its own write position.

transformers' caches have one write position for all rows, so that rows of different length need padding and a finished
row stays until the last one is done. Here every row writes where it stands. The engine says before each forward pass
what the pass is (`begin_prefill` or `begin_decode`); the layers then store and return what the model's attention needs.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class RowCacheLayer(CacheLayerMixin):
    """Keys and values of one layer: two tensors of shape [slots, max_length, heads, head_dim], made at first use."""

    is_sliding = False

    def __init__(self, slots: int, max_length: int) -> None:
        super().__init__()
        self.slots, self.max_length = slots, max_length
        self.first_row = 0  # of a prefill
        self.write_at: Tensor | None = None  # flat cache positions [rows] of a decode step; None during a prefill
        self.kv_length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the model's heads. Zeros, not `empty`: a masked NaN would still spoil the attention's sum."""
        self.keys, self.values = (
            states.new_zeros(self.slots, self.max_length, states.shape[1], states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new states [rows, heads, tokens, head_dim] and return those to attend to, of the same layout."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._store(self.keys, key_states), self._store(self.values, value_states)

    def _store(self, stored: Tensor, states: Tensor) -> Tensor:
        rows, _, tokens, _ = states.shape
        if self.write_at is None:
            stored[self.first_row : self.first_row + rows, :tokens] = states.transpose(1, 2)
            return states
        stored.flatten(0, 1).index_copy_(0, self.write_at, states[:, :, 0])
        return stored[:rows, : self.kv_length].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.kv_length, 0

    def get_seq_length(self) -> int:
        return 0  # differs by row; the engine passes position ids and masks itself

    def get_max_length(self) -> int:
        return self.max_length

    get_max_cache_shape = get_max_length  # its name before transformers 5.2x


class RowCache(Cache):
    """A `RowCacheLayer` for each of the model's layers, holding at most `slots` rows of `max_length` tokens."""

    layers: list[RowCacheLayer]

    def __init__(self, num_layers: int, slots: int, max_length: int) -> None:
        super().__init__(layers=[RowCacheLayer(slots, max_length) for _ in range(num_layers)])
        self.max_length = max_length

    def begin_prefill(self, first_row: int, kv_length: int) -> None:
        """The next pass reads the first `kv_length` tokens of new sequences, in the rows from `first_row` on."""
        for layer in self.layers:
            layer.first_row, layer.kv_length, layer.write_at = first_row, kv_length, None

    def begin_decode(self, positions: Tensor, kv_length: int) -> None:
        """The next forward pass reads one token in each of the first rows, at `positions` [rows], all < `kv_length`."""
        write_at = torch.arange(len(positions), device=positions.device) * self.max_length + positions
        for layer in self.layers:
            layer.kv_length, layer.write_at = kv_length, write_at

    def move_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` positions of the rows `source` [n] into the rows `target` [n], which are others."""
        for layer in self.layers:
            if layer.is_initialized:
                for stored in (layer.keys[:, :length], layer.values[:, :length]):
                    stored.index_copy_(0, target, stored.index_select(0, source))
