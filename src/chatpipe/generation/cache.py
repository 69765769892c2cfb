"""What decoding keeps in memory: keys and values, a row for each sequence, and on a CPU the weights in blocks.

transformers' caches have one write position for all rows: rows of different lengths need padding, and a finished row
stays until the last one is done. Here each row has its own. Before each forward pass the engine sets what the pass
reads (`begin_prefill` or `begin_decode`); the layers then store the new keys and values and return those that the model
attends to.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D


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

    def __init__(self, slots: int, max_length: int, this_pass: _Pass, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.slots, self.max_length, self.this_pass, self.stored_dtype = slots, max_length, this_pass, dtype

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate both for the model's heads, in one dtype: the one given, or autocast's, or that of the states.

        Zeros, not `empty`: a masked NaN would still spoil the sum of the attention.
        """
        device = key_states.device.type
        computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value_states.dtype
        dtype = self.stored_dtype or computed
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
    """A `RowCacheLayer` for each of the layers of `config`, with at most `slots` rows of `max_length` tokens."""

    layers: list[RowCacheLayer]

    def __init__(self, config: PreTrainedConfig, slots: int, max_length: int) -> None:
        self._pass = _Pass()
        dtype = torch.float32 if config._attn_implementation == IN_FLOAT32 else None
        layers = [RowCacheLayer(slots, max_length, self._pass, dtype) for _ in range(config.num_hidden_layers)]
        super().__init__(layers=layers)

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


# ---- what makes a CPU quick while a model decodes ----


@contextmanager
def quick_on_cpu(model: PreTrainedModel) -> Iterator[None]:
    """Within this context `model` decodes quickly on a CPU; on a GPU it stays as it is.

    Its linear layers multiply by packed copies of their present weights, and have no gradients. Its attention
    multiplies in float32 where it would in bfloat16.
    """
    with _packed_weights(model), _attention_in_float32(model):
        yield


# Attention. Of one query, torch's bfloat16 kernel on a CPU takes up to five times as long as its float32 kernel.

IN_FLOAT32 = "chatpipe_float32"


@contextmanager
def _attention_in_float32(model: PreTrainedModel) -> Iterator[None]:
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if (
        not getattr(model, "_supports_attention_backend", False)
        or model.device.type != "cpu"
        or not (model.dtype == torch.bfloat16 or (model.dtype == torch.float32 and autocast))
        or model.config.get_text_config()._attn_implementation != "sdpa"
    ):
        yield
        return
    config, before = model.config, model.config._attn_implementation
    config._attn_implementation = IN_FLOAT32
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend_in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: object
) -> tuple[Tensor, None]:
    """transformers' `sdpa` on states [rows, heads, tokens, head_dim] of any dtype; the result has the query's."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext():
        attended, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **more)
    return attended.to(query.dtype), None


AttentionInterface.register(IN_FLOAT32, _attend_in_float32)
AttentionMaskInterface.register(IN_FLOAT32, sdpa_mask)

# Weights. A product of a few rows is bound by how they come from memory. torch reads them row by row (MKL, float32) or
# lays them out again in every call (oneDNN, bfloat16). In oneDNN's blocks they are read once, in order.

SMALLEST = {torch.float32: 2**17, torch.bfloat16: 1}
"""The fewest weights of a layer that is packed: a call of oneDNN takes some 14 us, MKL for float32 fewer."""

MOST_BYTES = 2**31
"""Weights beyond these stay as they are: the blocks are a copy of the model's weights."""

USUAL_ROWS = 32
"""The blocks are chosen for so many rows; others read the same ones as quickly."""


@contextmanager
def _packed_weights(model: PreTrainedModel) -> Iterator[None]:
    """Packs each linear layer that gains by it, but those that are packed already."""
    layers, left = [], MOST_BYTES
    for module in model.modules():
        if type(module) not in (nn.Linear, Conv1D) or "forward" in module.__dict__:
            continue
        weight = module.weight if type(module) is nn.Linear else module.weight.t()
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        if weight.device.type != "cpu" or weight.dtype == torch.float64 or not _multiplies(dtype):
            continue
        if weight.numel() < SMALLEST[dtype]:
            continue
        left -= weight.numel() * dtype.itemsize
        if left < 0:
            break
        module.forward = _packed_linear(weight.detach().to(dtype), module.bias)
        layers.append(module)
    try:
        yield
    finally:
        for module in layers:
            del module.forward


def _packed_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The function x [..., in] -> [..., out] of a layer with `weight` [out, in], of which it holds a copy."""
    dtype, multiply = weight.dtype, torch.ops.mkldnn._linear_pointwise.default
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), USUAL_ROWS)
    bias = None if bias is None else bias.detach().to(dtype)

    def forward(states: Tensor) -> Tensor:
        output: Tensor = multiply(states.to(dtype), packed, bias, "none", [], "")
        return output

    return forward


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and multiplies `dtype` on this machine."""
    if dtype not in SMALLEST or not torch.backends.mkldnn.is_available():
        return False
    states = torch.ones(2, 32, dtype=dtype)
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        return torch.equal(_packed_linear(torch.eye(32, dtype=dtype), None)(states), states)
    except (AttributeError, RuntimeError):  # the operators are private: a torch without them has other ones
        return False
