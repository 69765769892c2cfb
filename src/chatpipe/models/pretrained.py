"""Loads models, tokenizers and configurations, and saves what was trained: the one way to get a model and to keep it.

A model that somebody brings stays what it is. No token is added to its tokenizer, unless it has no chat template; its
result has the dtype, the special tokens and the tokenizer's files of what it started from. Python code in a model's
folder is never run, nor is anybody asked whether it may.
"""

import copy
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.activations import NewGELUActivation
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from transformers.utils import logging

from chatpipe import console
from chatpipe.data.chat_template import ROLE_TOKENS, add_chat_template
from chatpipe.data.durable import share
from chatpipe.data.rendering import KWARGS
from chatpipe.data.sources import hub_is_offline
from chatpipe.errors import UsageError, is_out_of_memory, reason_of
from chatpipe.models.manifest import manifest_of_model
from chatpipe.models.model_folder import (
    TOKENIZER_FILES,
    check_config,
    check_rows,
    folder_of,
    looks_like_path,
    needs_own_code,
)
from chatpipe.models.properties import freeze_other_towers
from chatpipe.models.weight_files import missing_of, weights_in
from chatpipe.recipe.architectures import ROWS_OF_EMBEDDINGS

Model = TypeVar("Model", bound=PreTrainedModel)

MAX_EAGER_CONTEXT = 512
"""Eager attention holds a table of context * context for each head; beyond this the memory outweighs the time."""


def load_causal_model(model: str | Path, frozen: bool = False, half: bool = False) -> PreTrainedModel:
    """A causal language model from a folder or a hub id, as `prepare_model` places it.

    `frozen` models are never trained: their weights are bfloat16 on a GPU, otherwise float32. With `half` they are
    bfloat16 on a CPU too, for a model that only reads. Raises `UsageError` where there is no such model.
    """
    return prepare_model(load_model(causal_class(load_config(model)), model, _dtype(frozen, half)), frozen)


def load_for_chat(
    model: str, frozen: bool = False, settings: Mapping[str, Any] | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A causal model and its tokenizer, with a chat template and embeddings for all of the template's tokens.

    `settings` of the template (`chat_template_kwargs`) replace those that the model was made with.
    """
    tokenizer, loaded = load_tokenizer(model), load_causal_model(model, frozen)
    add_chat_template(tokenizer, settings)
    match_embeddings(loaded, tokenizer)
    return tokenizer, loaded


def match_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a model rows for the tokens of chatpipe's own chat template, where it has too few; a multiple of 64.

    A pad token that has no row then is unset, since padded cells are read too.
    """
    rows, ids = model.get_input_embeddings().num_embeddings, tokenizer.get_vocab()
    if all(ids.get(token, 0) < rows for token in ROLE_TOKENS):
        if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
            tokenizer.pad_token = None
        return
    set_seed(0)  # the new rows are drawn at random
    with _quiet():
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=ROWS_OF_EMBEDDINGS)
    more = model.get_input_embeddings().num_embeddings
    console.note(
        f"the model has no chat template, so it gets chatpipe's: {', '.join(ROLE_TOKENS)} are new tokens, and its "
        f"embedding grows from {rows:,} to {more:,} rows, the new ones untrained"
    )


def load_masked_model(model: str | Path, frozen: bool = False) -> PreTrainedModel:
    """A masked language model from a folder or a hub id, otherwise as `load_causal_model`."""
    return prepare_model(load_model(AutoModelForMaskedLM, model, _dtype(frozen)), frozen)


def load_reward_model(
    model: str | Path, frozen: bool = False, half: bool = False, new_head: bool = False
) -> PreTrainedModel:
    """A sequence classification model from a folder or a hub id, otherwise as `load_causal_model`.

    Also raises `UsageError` where it gives more than one number, where the offset that centres its scores is not a
    finite number and, unless a `new_head` may be drawn, where it has no head.
    """
    give_score_class(load_config(model))
    loaded = load_model(AutoModelForSequenceClassification, model, _dtype(frozen, half), new_head=new_head)
    if loaded.config.num_labels != 1:
        what = f"{model} gives {loaded.config.num_labels} numbers for an answer; a reward is one."
        raise UsageError(what, "Give a sequence classification model with one label.")
    offset = getattr(loaded.config, "chatpipe_reward_offset", 0.0)
    if not isinstance(offset, int | float) or not math.isfinite(offset):
        raise UsageError(
            f"{model}: chatpipe_reward_offset in its config.json is {offset}, not a finite number.",
            "Its scores cannot be centred: train the reward model again, or give another.",
        )
    return prepare_model(loaded, frozen)


def causal_class(config: PreTrainedConfig) -> Any:
    """The class of transformers that picks a causal language model for `config`.

    A model of images and text (Qwen-VL, Mistral 3) is one where it reads text alone.
    """
    with_images = (
        type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    )
    return AutoModelForImageTextToText if with_images else AutoModelForCausalLM


def give_score_class(config: PreTrainedConfig) -> bool:
    """Lets `AutoModelForSequenceClassification` make models with this configuration; False where transformers cannot.

    For a family that has causal models only (Mamba, LFM2, Granite, Cohere) a class is made as transformers makes its
    own for Llama: the body, and a linear layer called `score`.
    """
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return not getattr(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)], "made_by_chatpipe", False)
    causal = causal_class(config)._model_mapping.get(type(config), None)
    if causal is None:
        return True  # transformers says what is wrong
    parents = [parent for parent in causal.__mro__[1:] if issubclass(parent, PreTrainedModel)]
    own = {"base_model_prefix": causal.base_model_prefix, "made_by_chatpipe": True}
    own["__module__"] = causal.__module__  # transformers initialises classes of other modules in another way
    name = re.sub("For(CausalLM|ConditionalGeneration)$", "ForSequenceClassification", causal.__name__)
    scores = type(name, (GenericForSequenceClassification, parents[0]), own)
    renamed = get_checkpoint_conversion_mapping(causal.__name__)
    if renamed is not None:  # the files of Qwen2-VL have other names of weights than the model
        register_checkpoint_conversion_mapping(name, renamed, overwrite=True)
    # `register` of transformers 5.17 passes over configurations of its own.
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING._extra_content[type(config)] = scores
    return False


def prepare_model(model: Model, frozen: bool = False) -> Model:
    """Moves a model to the device that trains and picks its kernels; a `frozen` one gets no gradients."""
    if frozen:
        model.requires_grad_(False)
    return pick_kernels(model.to(training_device()))


def training_device() -> torch.device:
    """The device that this process trains on: the GPU of its rank, or the CPU where there is no GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _dtype(frozen: bool, half: bool = False) -> torch.dtype:
    """Half the memory for what only computes forward passes; on a CPU if `half`: there it makes decoding slower."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if frozen and (on_gpu or half) else torch.float32


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
    return sorted(_load_with_report(kind, model, device_map="meta")[1]["missing_keys"])


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises `UsageError` where there is none; of a hub id where words have no embedding.

    Its chat template has the settings (`chat_template_kwargs`) with which chatpipe made the model.
    """
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, model)
    if not looks_like_path(str(model)):  # a folder is checked before anything is loaded
        check_rows(folder_of(str(model), (*TOKENIZER_FILES, "config.json")), str(model))
    manifest = manifest_of_model(str(model))
    known = {} if manifest is None else manifest.settings
    settings = {key.removeprefix(f"{KWARGS}."): value for key, value in known.items() if key.startswith(f"{KWARGS}.")}
    if settings:
        setattr(tokenizer, KWARGS, settings)
    return tokenizer


def load_config(model: str | Path, **changes: Any) -> PreTrainedConfig:
    """The configuration of a model with some `changes`. Raises `UsageError` where there is none."""
    return _load(AutoConfig, model, **changes)


def load_model(
    auto: Any,
    model: str | Path,
    dtype: torch.dtype,
    config: PreTrainedConfig | None = None,
    new_head: bool = False,
) -> PreTrainedModel:
    """A model of the class that `auto` picks, on the CPU; with `new_head` what is behind its body may be missing.

    `config` replaces the model's own. Raises `UsageError` where weights are missing, which transformers would draw at
    random, where they are no finite numbers, and where the model is of a kind that cannot be used.
    """
    loaded, report = _load_with_report(auto, model, dtype=dtype, **({} if config is None else {"config": config}))
    missing = sorted(report["missing_keys"])
    if new_head:  # BERT's body has a part that only heads read
        body = f"{loaded.base_model_prefix}."
        missing = [name for name in missing if name.startswith(body) and not name.startswith(f"{body}pooler.")]
    _refuse_missing(model, missing, report)
    for name, weight in loaded.named_parameters():
        if weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():  # one pass, and no second tensor
            raise UsageError(
                f"The weight {name} of {model} has numbers that are not finite.",
                "It was saved after its training had failed, or damaged: give an earlier one.",
            )
    freeze_other_towers(loaded)
    return loaded


def _load_with_report(auto: Any, model: str | Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model, and transformers' report on missing and unexpected weights.

    Raises `UsageError` for weights of other shapes and a model of a kind that cannot be used.
    """
    check_config(load_config(model).to_dict(), str(model))
    with _quiet():
        loaded, report = _load(auto, model, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    for name, *shapes in sorted(report["mismatched_keys"]):
        found, expected = (" x ".join(map(str, shape)) for shape in shapes)
        raise UsageError(
            f"The weight {name} of {model} has the shape {found}, but its config.json makes it {expected}.",
            "Its config.json belongs to weights of other sizes: fetch or make the folder again.",
        )
    return loaded, report


def check_whole_model(model: str) -> None:
    """Raises `UsageError` where a causal language model is not whole, also for a stage that reads its body alone."""
    _, report = _load_with_report(causal_class(load_config(model)), model, device_map="meta")
    _refuse_missing(model, sorted(report["missing_keys"]), report)


def _refuse_missing(model: str | Path, missing: Sequence[str], report: Mapping[str, Any]) -> None:
    if missing:
        unknown = sorted(report["unexpected_keys"])
        others = f"; its files have {len(unknown)} that it does not know ({unknown[0]}, ...)" if unknown else ""
        raise UsageError(
            f"{missing_of(str(model), len(missing), missing[0])}{others}.",
            "Its config.json belongs to other weights, or they were not saved whole: make the folder again.",
        )


_TRUE_REASONS = (
    ("does not recognize this architecture", "Install a newer transformers, or give another model."),
    ("Unrecognized configuration class", "Models of its kind cannot be used there: give another."),
    ("pip install", "Install what it names, or give another model."),
    ("No module named", "Install what it names, or give another model."),
)
"""What a reason of transformers contains, and what to do then; the first that fits."""


def _load(auto: Any, model: str | Path, **options: Any) -> Any:
    folder = Path(model).expanduser()
    try:
        # Without this transformers would ask on the terminal whether code of the folder may run.
        return auto.from_pretrained(folder if folder.is_dir() else model, trust_remote_code=False, **options)
    except Exception as problem:  # damaged files raise anything: SafetensorError, UnpicklingError, bare Exception
        if is_out_of_memory(problem):
            raise
        if "trust_remote_code" in str(problem):
            raise needs_own_code(str(model)) from problem
        reason = reason_of(problem)
        remedy = next((remedy for part, remedy in _TRUE_REASONS if part in str(problem)), None)
        if folder.is_dir():
            raise UsageError(
                f"{model} cannot be loaded: {reason}",
                remedy or "The folder is damaged or incomplete: make it again, or give another.",
            ) from problem
        if hub_is_offline():
            raise UsageError(
                f"{model} is neither a folder nor in the cache of the hub, and HF_HUB_OFFLINE forbids to fetch it.",
                "Give a model folder, or unset HF_HUB_OFFLINE.",
            ) from problem
        raise UsageError(
            f"{model} is no folder here and cannot be loaded from the hub: {reason}",
            remedy or "Check the name and the network; a private model needs `hf auth login`.",
        ) from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from reporting new and unused weights: what may not be missing is an error here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


# ---- saving ----

_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
"""What training sets in a configuration for itself, and a result has as the model that it started from."""


def save_model(model: PreTrainedModel, folder: Path, start: str | None = None) -> None:
    """Writes `model`, trained in float32, into `folder`; in place it takes the dtype of the model at `start`.

    Its configuration has the special tokens and `use_cache` of that model, but a reward model its own pad token and
    EOS, by which the place is found where its score is read. Without `start` it uses a cache.
    """
    config = model.config.get_text_config()
    if start is not None:
        model.to(saved_dtype(start))
        before = load_config(start).get_text_config()
        for name in _KEPT:
            if hasattr(before, name) and not (name in ("pad_token_id", "eos_token_id") and hasattr(model, "score")):
                setattr(config, name, getattr(before, name))
    elif hasattr(config, "use_cache"):
        config.use_cache = True
    save_readable(model, folder)


def save_readable(model: PreTrainedModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """`model.save_pretrained(folder)`, whose files others may read as they may read any other new file.

    `model` stays as it is where `dtype` asks for another one.
    """
    other = dtype is not None and dtype != model.dtype
    (copy.deepcopy(model).to(dtype) if other else model).save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        share(path)


def saved_dtype(model: str) -> torch.dtype:
    """The dtype of most weights of the model in a folder or of a hub id."""
    sizes: Counter[str] = Counter()
    for path in Path(model).expanduser().glob("*.safetensors") if looks_like_path(model) else ():
        for weight in weights_in(path).values():
            sizes[weight.dtype] += math.prod(weight.shape)
    named = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    found = next((named[dtype] for dtype, _ in sizes.most_common() if dtype in named), None)
    return found or load_config(model).get_text_config().dtype or torch.float32
