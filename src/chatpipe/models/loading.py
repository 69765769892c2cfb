"""Loading models for training and judging: float32 weights, and the attention that is quickest here."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from chatpipe.errors import UsageError

Model = TypeVar("Model", bound=PreTrainedModel)

MAX_EAGER_CONTEXT = 512
"""Eager attention holds a table of context * context for each head; beyond this the memory outweighs the time."""


def load_causal_model(model: str | Path) -> PreTrainedModel:
    """A causal language model from a folder or a hub id. Raises `UsageError` where there is none."""
    return quickest_attention(_load(AutoModelForCausalLM, model, dtype=torch.float32))


def load_reward_model(model: str | Path) -> PreTrainedModel:
    """A sequence classification model from a folder or a hub id. Raises `UsageError` where there is none."""
    return quickest_attention(_load(AutoModelForSequenceClassification, model, dtype=torch.float32))


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises `UsageError` where there is none."""
    return _load(AutoTokenizer, model)


def _load(auto: Any, model: str | Path, **options: Any) -> Any:
    try:
        return auto.from_pretrained(model, **options)
    except (OSError, ValueError) as problem:
        raise UsageError(
            f"{model} cannot be loaded: {str(problem).splitlines()[0][:200]}",
            "Give a model folder, or a hub id that can be reached (HF_HUB_OFFLINE must not be set then).",
        ) from problem


def quickest_attention(model: Model) -> Model:
    """Switches `model` to eager attention on a CPU with a short context; what it computes stays the same.

    On a CPU under bf16 autocast torch's scaled_dot_product_attention trains 1.7 times slower (docs/log.md).
    """
    config: Any = model.config
    if not torch.cuda.is_available() and config.max_position_embeddings <= MAX_EAGER_CONTEXT:
        model.set_attn_implementation("eager")
    return model
