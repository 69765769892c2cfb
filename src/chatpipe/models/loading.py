"""Loading models for training and judging: float32 weights, and the attention that is quickest here."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)

MAX_EAGER_CONTEXT = 512
"""Eager attention holds a table of context * context for each head; beyond this the memory outweighs the time."""


def load_causal_model(model: str | Path) -> PreTrainedModel:
    """A causal language model from a folder or a hub id."""
    return quickest_attention(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))


def load_reward_model(model: str | Path) -> PreTrainedModel:
    """A sequence classification model from a folder or a hub id."""
    return quickest_attention(AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32))


def quickest_attention(model: Model) -> Model:
    """Switches `model` to eager attention on a CPU with a short context; what it computes stays the same.

    On a CPU under bf16 autocast torch's scaled_dot_product_attention trains 1.7 times slower (docs/log.md).
    """
    config: Any = model.config
    if not torch.cuda.is_available() and config.max_position_embeddings <= MAX_EAGER_CONTEXT:
        model.set_attn_implementation("eager")
    return model
