"""Properties of any model in memory: its body, its kinds of layers, how many tokens it reads at once. No torch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chatpipe.models.model_folder import usable_positions

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

UNLIMITED = 2**31
"""The length of a model that has no table of positions."""


def longest_sequence(
    model: "PreTrainedModel | PreTrainedConfig",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> int:
    """How many tokens `model` (or a model with this configuration) reads at once; `UNLIMITED` if nothing bounds it.

    The bounds are its positions and, with `tokenizer`, the tokenizer's `model_max_length`.
    """
    config: PreTrainedConfig = getattr(model, "config", model).get_text_config()
    bounds = [usable_positions(config.to_dict())]
    if tokenizer is not None:
        bounds.append(tokenizer.model_max_length)
    return min((bound for bound in bounds if bound), default=UNLIMITED)


LONGEST_ROW = 2048
"""Tokens of the longest row that is trained on where the recipe sets none: longer ones cost memory and are rare."""


def row_length(asked: int | None, context: int) -> int:
    """The longest row in tokens: what a recipe's `max_length` has `asked` for, at most a model's `context`."""
    return min(asked or LONGEST_ROW, context)


def shared_context(
    policy: "PreTrainedModel | PreTrainedConfig",
    scorers: "Iterable[PreTrainedModel | PreTrainedConfig]",
    tokenizer: "PreTrainedTokenizerBase",
) -> int:
    """How many tokens a prompt with its answer may have: `policy` writes them, and all `scorers` read them."""
    return min([longest_sequence(policy), *(longest_sequence(model, tokenizer) for model in scorers)])


def leaves_room(prompt_tokens: int, new_tokens: int, context: int) -> bool:
    """Whether a prompt of `prompt_tokens` and an answer of `new_tokens` fit into `context` tokens."""
    return prompt_tokens + new_tokens <= context


def layer_types(config: "PreTrainedConfig") -> set[str]:
    """The kinds of a model's layers, as transformers names them: `full_attention`, `sliding_attention` and others."""
    sliding = getattr(config, "sliding_window", None)
    return set(getattr(config, "layer_types", None) or ["sliding_attention" if sliding else "full_attention"])


def body_of(model: "PreTrainedModel") -> "nn.Module":
    """The transformer below a model's head."""
    body: nn.Module | None = getattr(model, model.base_model_prefix, None)
    return model.model if body is None else body  # Llama 4 names another attribute than it has


@contextmanager
def evaluation_mode(model: "nn.Module") -> Iterator[None]:
    """Puts the modules of `model` into evaluation mode (no dropout), and afterwards each back into its own mode."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
