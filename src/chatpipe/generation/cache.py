"""The key-value cache of the decode engine: one row per sequence, and in each row its own write position.

transformers' caches have one write position for all rows, so that rows of different length need padding and a finished
row stays until the last one is done. Here every row writes where it stands. The engine says before each forward pass
what the pass is (`begin_prefill` or `begin_decode`); the layers then store and return what the model's attention needs.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _Pass:
    """What the next forward pass is, for all layers. Prefill: whole sequences in the rows from `first_row` on.

    Decode: one token in each of the first rows, at `positions` [rows]; the first `kv_length` positions are read.
    """

    def __init__(self, kv_length: int, first_row: int = 0, positions: Tensor | None = None) -> None:
        self.kv_length, self.first_row, self.positions = kv_length, first_row, positions
        self._write_at: dict[int, Tensor] = {}

    def write_at(self, heads: int, max_length: int) -> Tensor:
        """Where the new token of each row and head goes in a flattened [slots, heads, max_length]."""
        if heads not in self._write_at:  # of the first layer; the others have as many, as a rule
            assert self.positions is not None
            starts = torch.arange(len(self.positions) * heads, device=self.positions.device) * max_length
            self._write_at[heads] = (starts.view(-1, heads) + self.positions[:, None]).flatten()
        return self._write_at[heads]


class RowCacheLayer(CacheLayerMixin):
    """Keys and values of one layer: two tensors of shape [slots, heads, max_length, head_dim], made at first use.

    In this order a slice over the first rows and positions is a batch of matrices, which attention multiplies without
    copying it first.
    """

    is_sliding = False

    def __init__(self, slots: int, max_length: int) -> None:
        super().__init__()
        self.slots, self.max_length = slots, max_length
        self.next_pass = _Pass(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the model's heads. Zeros, not `empty`: a masked NaN would still spoil the attention's sum."""
        self.keys, self.values = (
            states.new_zeros(self.slots, states.shape[1], self.max_length, states.shape[3])
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
        (rows, heads, tokens, _), this = states.shape, self.next_pass
        if this.positions is None:
            stored[this.first_row : this.first_row + rows, :, :tokens] = states
            return states
        flat = stored.view(-1, stored.shape[-1])
        flat.index_copy_(0, this.write_at(heads, self.max_length), states.reshape(-1, stored.shape[-1]))
        return stored[:rows, :, : this.kv_length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.next_pass.kv_length, 0

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

    def begin_prefill(self, first_row: int, kv_length: int) -> None:
        """The next pass reads the first `kv_length` tokens of new sequences, in the rows from `first_row` on."""
        self._begin(_Pass(kv_length, first_row))

    def begin_decode(self, positions: Tensor, kv_length: int) -> None:
        """The next forward pass reads one token in each of the first rows, at `positions` [rows], all < `kv_length`."""
        self._begin(_Pass(kv_length, positions=positions))

    def _begin(self, next_pass: _Pass) -> None:
        for layer in self.layers:
            layer.next_pass = next_pass

    def move_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` positions of the rows `source` [n] into the rows `target` [n], which are others."""
        for layer in self.layers:
            if layer.is_initialized:
                for stored in (layer.keys[:, :, :length], layer.values[:, :, :length]):
                    stored.index_copy_(0, target, stored.index_select(0, source))
