"""Hidden states of rows of different length, computed without padding between them.

The tokens of all rows go through the model as one row, so that embeddings, linear layers, norms and activations see no
padding. Attention alone has to know which tokens belong together: queries, keys and values are laid out in padded rows,
attended to there, and taken back. That needs no mask: padding stands on the right, where no token looks.

A model can be read so if it is one of transformers' with exchangeable attention, and if what it computes is the same,
which is tried out once for each model. Others are read in padded rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig

IMPLEMENTATION = "chatpipe_unpadded"
MULTIPLE = 32
"""The number of tokens is filled up to a multiple of this. On a CPU in bfloat16 oneDNN compiles a kernel for every
number of tokens it meets, and keeps it (docs/log.md)."""


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, padded on the right: input_ids, attention_mask (1 on tokens) and position_ids, all [b, t]."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor


def hidden_states_at(body: nn.Module, tokens: Rows, rows: Tensor, columns: Tensor) -> Tensor:
    """The last hidden states of `body` at the cells [rows, columns] of `tokens`, all different, none padding: [N, d].

    rows and columns: [N] int64.
    """
    if not reads_unpadded(body) or tokens.attention_mask.all():
        return _padded(body, tokens)[rows, columns]
    lengths = tokens.attention_mask.sum(1)
    starts = lengths.cumsum(0) - lengths
    return _Collect.apply(_flat(body, tokens), starts[rows] + columns)


def positions_read(body: nn.Module, attention_mask: Tensor) -> int:
    """How many tokens, padding included, go through `body` for rows with this mask [b, t]."""
    if not reads_unpadded(body) or attention_mask.all():
        return attention_mask.numel()
    return _filled(int(attention_mask.sum()))


def reads_unpadded(body: nn.Module) -> bool:
    """Whether `hidden_states_at` reads `body` without padding.

    Not with gradient checkpointing, whose second forward pass would come after the attention was changed back.
    """
    if not getattr(body, "_supports_attention_backend", False) or body.config._attn_implementation not in _KNOWN:
        return False
    if any(getattr(module, "gradient_checkpointing", False) for module in body.modules()):
        return False
    if body not in _agrees:
        _agrees[body] = _is_same(body)
    return _agrees[body]


_KNOWN = ("sdpa", "eager")
_WITHOUT_EFFECT = {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"}
_agrees: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def _is_same(body: nn.Module) -> bool:
    """Whether `body` says the same of two rows in both ways: it may cap scores, have biases by position, or look on."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], device=next(body.parameters()).device)
    positions = torch.arange(3, device=mask.device).expand_as(mask)
    tokens = Rows(positions % 2, mask, positions)
    try:
        with torch.autocast(mask.device.type, enabled=False):
            one, other = _padded(body, tokens)[mask.bool()], _flat(body, tokens)[: mask.sum()]
    except NotImplementedError:
        return False
    tolerance = 1e-3 if torch.finfo(body.dtype).bits > 16 else 2e-2
    return torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance)


def _padded(body: nn.Module, tokens: Rows) -> Tensor:
    """[b, t, d]; what stands in padded cells means nothing."""
    return body(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        position_ids=tokens.position_ids,
        use_cache=False,
    ).last_hidden_state


def _flat(body: nn.Module, tokens: Rows) -> Tensor:
    """[T and more, d], the tokens of all rows one after another; what stands behind them means nothing."""
    mask = tokens.attention_mask
    cells = mask.flatten().nonzero()[:, 0]
    fill = _filled(len(cells)) - len(cells)
    input_ids, ones, position_ids = (
        pad(values.flatten()[cells], (0, fill))[None] for values in (tokens.input_ids, mask, tokens.position_ids)
    )
    with _attention(body.config):
        return body(
            input_ids=input_ids,
            attention_mask=ones,
            position_ids=position_ids,
            use_cache=False,
            unpadded_places=Places(cells, mask.shape[0], mask.shape[1]),
        ).last_hidden_state[0]


def _filled(tokens: int) -> int:
    return -(-tokens // MULTIPLE) * MULTIPLE


@contextmanager
def _attention(config: PreTrainedConfig) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


@dataclass(frozen=True)
class Places:
    """Where the tokens of a flat row stand in padded rows [rows, columns]: in which of their cells, [T] int64."""

    cells: Tensor
    rows: int
    columns: int


class _Spread(torch.autograd.Function):
    """[T, ...] -> [size, ...], values[i] at places[i] and 0 elsewhere. The places differ: no gradients are added up."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return values.new_zeros(size, *values.shape[1:]).index_copy_(0, places, values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, *ctx.saved_tensors), None, None


class _Collect(torch.autograd.Function):
    """[size, ...] -> [T, ...], what stands at places[i]: the reverse of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, spread: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(spread)
        return spread.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, places, gradient), None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    unpadded_places: Places,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention within rows; query [1, heads, T, d], key and value with as many heads or fewer.

    Raises NotImplementedError where a model asks for more, such as a cap, a window or a bias by position.
    """
    asked = {name for name, value in more.items() if value is not None} - _WITHOUT_EFFECT
    if asked or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention with {sorted(asked)}")
    places, filled = unpadded_places, query.shape[2]
    # On a CPU in float32: there bfloat16 is slower here, and its kernels are kept for every new shape.
    dtype = torch.promote_types(query.dtype, torch.float32) if query.device.type == "cpu" else query.dtype

    def in_rows(states: Tensor) -> Tensor:
        """[1, heads, T, d] -> [rows, heads, columns, d]"""
        tokens = states[0].transpose(0, 1)[: len(places.cells)].to(dtype)
        spread = _Spread.apply(tokens, places.cells, places.rows * places.columns)
        return spread.unflatten(0, (places.rows, places.columns)).transpose(1, 2)

    with torch.autocast(query.device.type, enabled=False):
        attended = scaled_dot_product_attention(
            in_rows(query),
            in_rows(key),
            in_rows(value),
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        flat = _Collect.apply(attended.transpose(1, 2).flatten(0, 1), places.cells)
    return pad(flat, (0, 0, 0, 0, 0, filled - len(flat)))[None].to(query.dtype), None


AttentionInterface.register(IMPLEMENTATION, _attend)
