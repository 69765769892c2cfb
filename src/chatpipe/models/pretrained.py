"""Loading models for training and judging: float32 weights, and the attention that is quickest here."""

import math
import os
import textwrap
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from chatpipe.errors import UsageError
from chatpipe.models.activation import quickest_gelu
from chatpipe.models.model_folder import Kind, kind_of_architectures

Model = TypeVar("Model", bound=PreTrainedModel)

MAX_REASON = 300
"""Characters of a library's message."""

MAX_EAGER_CONTEXT = 512
"""Eager attention holds a table of context * context for each head; beyond this the memory outweighs the time."""


def load_causal_model(model: str | Path) -> PreTrainedModel:
    """A causal language model from a folder or a hub id. Raises `UsageError` where there is none."""
    return quickest_gelu(quickest_attention(_load(AutoModelForCausalLM, model, dtype=torch.float32)))


def load_masked_model(model: str | Path) -> PreTrainedModel:
    """A masked language model from a folder or a hub id. Raises `UsageError` where there is none."""
    return quickest_attention(_load(AutoModelForMaskedLM, model, dtype=torch.float32))


def load_reward_model(model: str | Path) -> PreTrainedModel:
    """A sequence classification model from a folder or a hub id.

    Raises `UsageError` where there is none, and for one whose offset, which centres its scores, is no finite number.
    """
    loaded = _load(AutoModelForSequenceClassification, model, dtype=torch.float32)
    offset = getattr(loaded.config, "chatpipe_reward_offset", 0.0)
    if not isinstance(offset, int | float) or not math.isfinite(offset):
        raise UsageError(
            f"{model}: chatpipe_reward_offset in its config.json is {offset}, no finite number.",
            "Its scores cannot be centred: train the reward model anew, or give another.",
        )
    return quickest_attention(loaded)


def missing_weights(kind: type[PreTrainedModel], model: str | Path) -> list[str]:
    """Names of the weights that a `kind` of model has and the folder or hub id has not, so that loading draws them.

    Reads names and shapes alone: the weights go to the meta device.
    """
    _, report = kind.from_pretrained(model, device_map="meta", output_loading_info=True)
    return sorted(report["missing_keys"])


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises `UsageError` where there is none."""
    return _load(AutoTokenizer, model)


def load_config(model: str | Path) -> PreTrainedConfig:
    """The configuration of a model, without its weights. Raises `UsageError` where there is none."""
    return _load(AutoConfig, model)


def model_kind_of_hub(model: str) -> Kind:
    """What kind of model a hub id names. Raises `UsageError` where it is none that we know, or not to be had."""
    return kind_of_architectures(load_config(model).architectures, f"MODEL = {model}")


def placed(model: Model) -> Model:
    """The model where it is quickest."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _load(auto: Any, model: str | Path, **options: Any) -> Any:
    try:
        return auto.from_pretrained(model, **options)
    except Exception as problem:  # damaged files raise anything: SafetensorError, UnpicklingError, bare Exception
        reason = textwrap.shorten(f"{type(problem).__name__}: {problem}", MAX_REASON, placeholder=" ...")
        if Path(model).expanduser().is_dir():
            raise UsageError(
                f"{model} cannot be loaded: {reason}",
                "The folder is damaged or not whole; make it anew, or give another.",
            ) from problem
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
            raise UsageError(
                f"{model} is neither a folder nor in the cache of the hub, and HF_HUB_OFFLINE forbids to fetch it.",
                "Give a model folder, or unset HF_HUB_OFFLINE.",
            ) from problem
        raise UsageError(
            f"{model} is no folder here and cannot be loaded from the hub: {reason}",
            "Check the name and the network; a private model needs `hf auth login`.",
        ) from problem


def quickest_attention(model: Model) -> Model:
    """Switches `model` to eager attention on a CPU with a short context; what it computes stays the same.

    On a CPU under bf16 autocast torch's scaled_dot_product_attention trains 1.7 times slower (docs/log.md).
    """
    context = getattr(model.config, "max_position_embeddings", None)  # which models without such a limit lack
    if not torch.cuda.is_available() and context is not None and context <= MAX_EAGER_CONTEXT:
        model.set_attn_implementation("eager")
    return model
