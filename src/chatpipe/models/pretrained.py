"""Loads models, tokenizers and configurations: the one way to get a model, on the device that trains."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.activations import NewGELUActivation
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from chatpipe import console
from chatpipe.data.chat_template import add_chat_template
from chatpipe.data.rendering import KWARGS
from chatpipe.data.sources import hub_is_offline
from chatpipe.errors import UsageError, reason_of
from chatpipe.models.manifest import manifest_of_model
from chatpipe.models.model_folder import Kind, kind_of_architectures

Model = TypeVar("Model", bound=PreTrainedModel)

MAX_EAGER_CONTEXT = 512
"""Eager attention holds a table of context * context for each head; beyond this the memory outweighs the time."""


def load_causal_model(model: str | Path, frozen: bool = False) -> PreTrainedModel:
    """A causal language model from a folder or a hub id, as `prepare_model` places it.

    `frozen` models are never trained: their weights are bfloat16 on a GPU, otherwise float32. Raises `UsageError`
    where there is no such model.
    """
    return prepare_model(_load(AutoModelForCausalLM, model, dtype=_dtype(frozen)), frozen)


def load_for_chat(
    model: str, frozen: bool = False, settings: Mapping[str, Any] | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A causal model and its tokenizer, with a chat template and embeddings for all of the template's tokens.

    `settings` of the template (`chat_template_kwargs`) replace those that the model was made with.
    """
    tokenizer, loaded = load_tokenizer(model), load_causal_model(model, frozen)
    add_chat_template(tokenizer, settings)
    entries = loaded.get_input_embeddings().num_embeddings
    if len(tokenizer) > entries:
        console.note(
            f"the vocabulary grows from {entries:,} to {len(tokenizer):,}: tokens of the chat template, untrained"
        )
        set_seed(0)  # the new rows are drawn at random
        loaded.resize_token_embeddings(len(tokenizer))
    loaded.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, loaded


def load_masked_model(model: str | Path, frozen: bool = False) -> PreTrainedModel:
    """A masked language model from a folder or a hub id, otherwise as `load_causal_model`."""
    return prepare_model(_load(AutoModelForMaskedLM, model, dtype=_dtype(frozen)), frozen)


def load_reward_model(model: str | Path, frozen: bool = False) -> PreTrainedModel:
    """A sequence classification model from a folder or a hub id, otherwise as `load_causal_model`.

    Also raises `UsageError` where the offset that centres its scores is not a finite number.
    """
    give_score_class(load_config(model))
    loaded = _load(AutoModelForSequenceClassification, model, dtype=_dtype(frozen))
    offset = getattr(loaded.config, "chatpipe_reward_offset", 0.0)
    if not isinstance(offset, int | float) or not math.isfinite(offset):
        raise UsageError(
            f"{model}: chatpipe_reward_offset in its config.json is {offset}, not a finite number.",
            "Its scores cannot be centred: train the reward model again, or give another.",
        )
    return prepare_model(loaded, frozen)


def give_score_class(config: PreTrainedConfig) -> bool:
    """Lets `AutoModelForSequenceClassification` make models with this configuration; False where transformers cannot.

    For a family that has causal models only (Mamba, LFM2, Granite, Cohere) a class is made as transformers makes its
    own for Llama: the body, and a linear layer called `score`.
    """
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return not getattr(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)], "made_by_chatpipe", False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return True  # transformers says what is wrong
    causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    parents = [parent for parent in causal.__mro__[1:] if issubclass(parent, PreTrainedModel)]
    own = {"base_model_prefix": causal.base_model_prefix, "made_by_chatpipe": True}
    own["__module__"] = causal.__module__  # transformers initialises classes of other modules in another way
    name = causal.__name__.replace("ForCausalLM", "ForSequenceClassification")
    scores = type(name, (GenericForSequenceClassification, parents[0]), own)
    AutoModelForSequenceClassification.register(type(config), scores, exist_ok=True)
    return False


def prepare_model(model: Model, frozen: bool = False) -> Model:
    """Moves a model to the device that trains and picks its kernels; a `frozen` one gets no gradients."""
    if frozen:
        model.requires_grad_(False)
    return pick_kernels(model.to(training_device()))


def training_device() -> torch.device:
    """The device that this process trains on: the GPU of its rank, or the CPU where there is no GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _dtype(frozen: bool) -> torch.dtype:
    """Half the memory for what only computes forward passes; not on a CPU, where bfloat16 is slower when decoding."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if frozen and on_gpu else torch.float32


def pick_kernels(model: Model) -> Model:
    """Switches `model` in place to the fastest attention and GELU here; what it computes and saves does not change."""
    return fuse_gelu(pick_attention(model))


def pick_attention(model: Model) -> Model:
    """Switches `model` in place to eager attention on a CPU with a short context.

    On a CPU under bf16 autocast torch's scaled_dot_product_attention trains 1.7 times slower (docs/log.md).
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # None: no such limit
    if not torch.cuda.is_available() and context is not None and context <= MAX_EAGER_CONTEXT:
        model.set_attn_implementation("eager")
    return model


def fuse_gelu(model: Model) -> Model:
    """Replaces transformers' `gelu_new`, which is eight kernels, by torch's one in place. The configuration stays."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


def missing_weights(kind: type[PreTrainedModel], model: str | Path) -> list[str]:
    """Names of the weights that a `kind` of model needs and the folder or hub id lacks; loading draws them at random.

    Reads names and shapes only: the weights go to the meta device.
    """
    _, report = kind.from_pretrained(model, device_map="meta", output_loading_info=True)
    return sorted(report["missing_keys"])


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises `UsageError` where there is none.

    Its chat template has the settings (`chat_template_kwargs`) with which chatpipe made the model.
    """
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, model)
    manifest = manifest_of_model(str(model))
    known = {} if manifest is None else manifest.settings
    settings = {key.removeprefix(f"{KWARGS}."): value for key, value in known.items() if key.startswith(f"{KWARGS}.")}
    if settings:
        setattr(tokenizer, KWARGS, settings)
    return tokenizer


def load_config(model: str | Path) -> PreTrainedConfig:
    """The configuration of a model, without its weights. Raises `UsageError` where there is none."""
    return _load(AutoConfig, model)


def model_kind_of_hub(model: str) -> Kind:
    """The kind of a hub model. Raises `UsageError` for a kind that we do not know, or a model that cannot be loaded."""
    return kind_of_architectures(load_config(model).architectures, f"MODEL = {model}")


def _load(auto: Any, model: str | Path, **options: Any) -> Any:
    try:
        return auto.from_pretrained(model, **options)
    except Exception as problem:  # damaged files raise anything: SafetensorError, UnpicklingError, bare Exception
        reason = reason_of(problem)
        if Path(model).expanduser().is_dir():
            raise UsageError(
                f"{model} cannot be loaded: {reason}",
                "The folder is damaged or incomplete: make it again, or give another.",
            ) from problem
        if hub_is_offline():
            raise UsageError(
                f"{model} is neither a folder nor in the cache of the hub, and HF_HUB_OFFLINE forbids to fetch it.",
                "Give a model folder, or unset HF_HUB_OFFLINE.",
            ) from problem
        raise UsageError(
            f"{model} is no folder here and cannot be loaded from the hub: {reason}",
            "Check the name and the network; a private model needs `hf auth login`.",
        ) from problem
