"""Hidden states of rows of different length on a CPU, computed without padding between them.

The tokens of all rows go through the model as one row, so embeddings, linear layers, norms and activations see no
padding. Only attention needs to know which tokens belong together: it copies queries, keys and values into padded
rows, one run of neighbours of similar length at a time, attends there, and copies the result back. That needs no mask:
padding is on the right, where causal attention does not look. Rows that are sorted by length make few runs.

It is worth a quarter of PPO's speed on a CPU (docs/log.md). On a GPU it costs more than padding does: every run is a
few small kernels in every layer, and its sizes have to be read back from the GPU. There rows are padded.

A model can be read this way if it is one of transformers' with exchangeable attention, if all its layers attend to all
tokens before, and if the result is the same, which is tried once for each model. Others are read in padded rows.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig

from chatpipe.data.sequences import pad_right, similar_runs
from chatpipe.models.properties import layer_types

IMPLEMENTATION = "chatpipe_unpadded"
MULTIPLE = 32
"""The number of tokens is filled up to a multiple of this. In bfloat16 oneDNN compiles a kernel for every number of
tokens it meets, and keeps it (docs/log.md)."""
MAX_ATTENTION_PADDING = 0.25
"""Share of padding among the cells that attend together: less means more and smaller calls."""
TRIED_LENGTHS = (40, 7)
"""Of the rows on which a model is tried out: windows and chunks of a few tokens would show."""


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, padded on the right: input_ids, attention_mask (1 on tokens) and position_ids, all [b, t]."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor


def hidden_states_at(body: nn.Module, tokens: Rows, rows: Tensor, columns: Tensor) -> Tensor:
    """The last hidden states of `body` at the cells [rows, columns] of `tokens`: [N, d].

    rows and columns: [N] int64; all cells are different, and none is padding.
    """
    if not reads_unpadded(body) or tokens.attention_mask.all():
        return _padded(body, tokens)[rows, columns]
    lengths = tokens.attention_mask.sum(1)
    starts = lengths.cumsum(0) - lengths
    return _Collect.apply(_flat(body, tokens), starts[rows] + columns)


@contextmanager
def flat_inputs(body: nn.Module, tokens: Rows) -> Iterator[dict[str, Any]]:
    """The arguments with which `body`, or a model that passes its arguments on to it, reads all rows as one.

    Call it within this context. It reads T tokens, [1, T and more]; the output behind the T-th is meaningless. Only for
    a body that `reads_unpadded`.
    """
    mask = tokens.attention_mask
    cells = mask.flatten().nonzero()[:, 0]
    fill = _filled(len(cells)) - len(cells)
    input_ids, ones, position_ids = (
        pad(values.flatten()[cells], (0, fill))[None] for values in (tokens.input_ids, mask, tokens.position_ids)
    )
    with _attention(body.config), _recomputing_alike(body):
        yield {
            "input_ids": input_ids,
            "attention_mask": ones,
            "position_ids": position_ids,
            "use_cache": False,
            "unpadded_runs": _runs(mask.sum(1)),
        }


def positions_read(body: nn.Module, attention_mask: Tensor) -> int:
    """How many tokens, padding included, go through `body` for rows with this mask [b, t]."""
    if not reads_unpadded(body) or attention_mask.all():
        return attention_mask.numel()
    return _filled(int(attention_mask.sum()))


def reads_unpadded(body: nn.Module) -> bool:
    """Whether `hidden_states_at` reads `body` without padding: on a CPU, where the result is the same."""
    if next(body.parameters()).device.type != "cpu":
        return False
    if not getattr(body, "_supports_attention_backend", False) or body.config._attn_implementation not in _KNOWN:
        return False
    if layer_types(body.config.get_text_config()) != {"full_attention"}:
        return False
    if body not in _agrees:
        _agrees[body] = _is_same(body)
    return _agrees[body]


_KNOWN = ("sdpa", "eager")
_WITHOUT_EFFECT = {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"}
_agrees: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def _is_same(body: nn.Module) -> bool:
    """Whether both ways give the same for two rows: `body` may cap scores, have position biases, or look ahead."""
    device, vocabulary = next(body.parameters()).device, body.get_input_embeddings().num_embeddings
    context = getattr(body.config.get_text_config(), "max_position_embeddings", None) or max(TRIED_LENGTHS)
    rows = [(torch.arange(min(length, context)) * 7 + 3) % vocabulary for length in TRIED_LENGTHS]
    ids, mask = (cells.to(device) for cells in pad_right(rows, fill=0))
    tokens = Rows(ids, mask, torch.arange(ids.shape[1], device=device).expand_as(ids))
    try:
        with torch.autocast(device.type, enabled=False):
            one, other = _padded(body, tokens)[mask.bool()], _flat(body, tokens)[: mask.sum()]
    except _OtherAttention:
        return False
    tolerance = 1e-3 if torch.finfo(body.dtype).bits > 16 else 2e-2
    return torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance)


def _padded(body: nn.Module, tokens: Rows) -> Tensor:
    """[b, t, d]; padded cells are meaningless."""
    takes_positions = "position_ids" in inspect.signature(body.forward).parameters  # recurrent models have none
    positions = {"position_ids": tokens.position_ids} if takes_positions else {}
    hidden: Tensor = body(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False, **positions
    ).last_hidden_state
    return hidden


def _flat(body: nn.Module, tokens: Rows) -> Tensor:
    """[T and more, d], the tokens of all rows one after another; the rest is meaningless."""
    with flat_inputs(body, tokens) as inputs:
        return body(**inputs).last_hidden_state[0]


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


@contextmanager
def _recomputing_alike(body: nn.Module) -> Iterator[None]:
    """Gradient checkpointing computes layers again in the backward pass, when the attention is changed back: once more.

    transformers keeps the function that does so in each layer.
    """
    layers = [module for module in body.modules() if getattr(module, "gradient_checkpointing", False)]
    before = [layer._gradient_checkpointing_func for layer in layers]
    for layer, function in zip(layers, before, strict=True):
        layer._gradient_checkpointing_func = partial(
            function, context_fn=lambda: (nullcontext(), _attention(body.config))
        )
    try:
        yield
    finally:
        for layer, function in zip(layers, before, strict=True):
            layer._gradient_checkpointing_func = function


class _OtherAttention(Exception):
    """The model needs attention other than plain causal attention within rows."""


@dataclass(frozen=True)
class Run:
    """Neighbouring rows that attend together: `tokens` of the flat row in padded `rows` x `columns`.

    cells: [tokens of the run] int64, the cell of each.
    """

    tokens: slice
    cells: Tensor
    rows: int
    columns: int


def _runs(lengths: Tensor) -> list[Run]:
    """For rows of `lengths` [b], one after another in a flat row."""
    runs, start = [], 0
    for some in lengths.split(similar_runs(lengths.tolist(), MAX_ATTENTION_PADDING)):
        rows, columns = len(some), int(some.max())
        cells = (torch.arange(columns, device=some.device) < some[:, None]).flatten().nonzero()[:, 0]
        runs.append(Run(slice(start, start + len(cells)), cells, rows, columns))
        start += len(cells)
    return runs


def _spread(values: Tensor, places: Tensor, size: int) -> Tensor:
    """[T, ...] -> [size, ...], values[i] at places[i] and 0 elsewhere."""
    return values.new_zeros(size, *values.shape[1:]).index_copy_(0, places, values)


class _Collect(torch.autograd.Function):
    """[size, ...] -> [T, ...], spread[places[i]]: the reverse of `_spread`.

    The places differ: no gradients are added up, which is what torch's own backward of `index_select` does, slowly.
    """

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
    unpadded_runs: list[Run] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention within rows; query [1, heads, T, d], key and value with as many heads or fewer.

    Raises _OtherAttention where a model needs more, such as a cap, a window or a bias by position.
    """
    asked = {name for name, value in more.items() if value is not None} - _WITHOUT_EFFECT
    if asked or not getattr(module, "is_causal", True):
        raise _OtherAttention(f"attention with {sorted(asked)}")
    if unpadded_runs is None:
        raise _OtherAttention("a model that does not pass its arguments on to its attention")
    # In float32: on a CPU bfloat16 is slower here, and its kernels are kept for every new shape.
    dtype = torch.promote_types(query.dtype, torch.float32)

    def in_rows(states: Tensor, run: Run) -> Tensor:
        """[1, heads, T, d] -> [rows, heads, columns, d]"""
        tokens = states[0].transpose(0, 1)[run.tokens].to(dtype)
        spread = _spread(tokens, run.cells, run.rows * run.columns)
        return spread.unflatten(0, (run.rows, run.columns)).transpose(1, 2)

    parts = []
    with torch.autocast(query.device.type, enabled=False):
        for run in unpadded_runs:
            attended = scaled_dot_product_attention(
                in_rows(query, run),
                in_rows(key, run),
                in_rows(value, run),
                dropout_p=dropout,
                is_causal=True,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            parts.append(_Collect.apply(attended.transpose(1, 2).flatten(0, 1), run.cells))
    flat = torch.cat(parts)
    return pad(flat, (0, 0, 0, 0, 0, query.shape[2] - len(flat)))[None].to(query.dtype), None


AttentionInterface.register(IMPLEMENTATION, _attend)
