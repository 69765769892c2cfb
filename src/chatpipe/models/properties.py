"""Properties of any model: its body, its kinds of layers, its tokens, how many it reads at once. No torch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from chatpipe.errors import UsageError
from chatpipe.models.weight_files import read_object

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

UNLIMITED = 2**31
"""The length of a model that has no table of positions."""

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What families call the length of their table of positions: most, GPT-2, MPT."""

COUNT_FROM_PADDING = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Model types like RoBERTa: their first token has the position after the padding token's id."""


def positions_of(folder: Path) -> int | None:
    """How many tokens the model in `folder` reads at once by its config.json; None where that sets no limit."""
    return usable_positions(read_object(folder / "config.json"))


def usable_positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model of such a config.json reads at once; None where it has no table of positions."""
    text = {**config, **(config.get("text_config") or {})}
    positions = next((text[name] for name in _POSITIONS if text.get(name) is not None), None)
    if not isinstance(positions, int) or positions <= 0:  # -1 in XLNet, which has no table
        return None
    before_first = text.get("pad_token_id")
    unused = (1 if before_first is None else before_first) + 1 if text.get("model_type") in COUNT_FROM_PADDING else 0
    return positions - unused


def check_block_size(block_size: int, positions: int | None) -> None:
    """Raises `UsageError` where the model that pretraining continues from cannot read so many tokens at once."""
    if positions is not None and block_size > positions:
        raise UsageError(
            f"pretrain.block_size = {block_size}, but the model reads {positions} tokens at most.",
            "Lower it, or continue from a model with more positions.",
        )


def freeze_other_towers(model: "PreTrainedModel") -> None:
    """Freezes what text never reaches in a model of images and text: DDP waits for gradients of all that is trained."""
    body = body_of(model)
    text = body.get_decoder() if model.config.get_text_config() is not model.config else body
    if text is not body:
        for tower in body.children():
            tower.requires_grad_(tower is text)


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


# ---- tokens ----

_NO_END = 2**31
_unnamed: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, tuple[range, ...]]]" = WeakKeyDictionary()


def unnamed_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[range, ...]:
    """The ids for which a tokenizer has no token, and so no text; the last range, behind its vocabulary, has no end.

    Many models have rows for them (Qwen, Phi), since an embedding of a round size is fast: these are never sampled.
    """
    size = len(tokenizer)
    if _unnamed.get(tokenizer, (None,))[0] != size:
        ids = [-1, *sorted(set(tokenizer.get_vocab().values())), _NO_END]
        gaps = (range(one + 1, other) for one, other in zip(ids, ids[1:], strict=False))
        _unnamed[tokenizer] = size, tuple(gap for gap in gaps if gap)
    return _unnamed[tokenizer][1]


def end_token_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end an answer: the tokenizer's EOS, then what generation_config.json names besides.

    Llama 3 ends with `<|eot_id|>` or `<|end_of_text|>`, gpt-oss with `<|return|>` or `<|call|>`. Of those in
    generation_config.json only control tokens of the tokenizer count: another tokenizer has a word there.
    """
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    others = [named] if isinstance(named, int) else named or []
    ids = [tokenizer.eos_token_id, *(token for token in others if token in control)]
    return list(dict.fromkeys(token for token in ids if token is not None))


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
