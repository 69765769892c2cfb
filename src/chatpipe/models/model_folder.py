"""What the folder of a model or a tokenizer holds, read from its json files and the headers of weights. No torch."""

import importlib.util
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import Pretrain

Kind = Literal["causal", "reward", "masked"]

_KIND_OF_SUFFIX: tuple[tuple[str, Kind], ...] = (
    ("ForSequenceClassification", "reward"),
    ("ForMaskedLM", "masked"),
    ("LMHeadModel", "causal"),
    ("ForCausalLM", "causal"),
    ("ForConditionalGeneration", "causal"),
)
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    *("tokenizer*", "*.model", "vocab*", "tekken*", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    *("*.tiktoken", "chat_template*", "additional_chat_templates/*"),
)
"""Patterns of the files of a tokenizer and its chat template."""
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.*", "*.model", "tekken*", "*.tiktoken")
_LFS_POINTER = b"version https://git-lfs"
_LABELS_BY_DEFAULT = 2
"""The number of labels that transformers assumes for a config.json without labels."""

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

_NAME_OF_KIND = {"causal": "causal language model", "reward": "reward model", "masked": "masked language model"}


def looks_like_path(name: str) -> bool:
    """Whether `name` means a folder rather than a hub id such as `gpt2` or `Qwen/Qwen3-0.6B`.

    A folder that does not exist counts where its parent exists.
    """
    is_id = name.count("/") <= 1 and not name.startswith((".", "/", "~"))
    return not is_id or Path(name).exists() or ("/" in name and Path(name).parent.is_dir())


def check_model(
    name: str, wanted: Kind | None, key: str, others: Sequence[Kind] = (), reads_text: bool = True
) -> Kind | None:
    """Raises `UsageError` naming `key` unless `name` is a folder with a `wanted` model (or `others`), or a hub id.

    With `wanted` None any kind will do. Also raises it where the weights are not those of the config.json, where a
    reward model gives more than one number, and where a model that `reads_text` has no tokenizer. Returns the kind of
    the model; None for a hub id, which is checked when it is loaded.
    """
    if not looks_like_path(name):
        return None
    kind = model_kind(name, key)
    if wanted is not None and kind not in (wanted, *others):
        raise UsageError(
            f"{key} = {name} is a {_NAME_OF_KIND[kind]}, but a {_NAME_OF_KIND[wanted]} is needed there.",
            _remedy(wanted),
        )
    folder = Path(name).expanduser()
    if kind == "reward":
        _check_one_label(folder, name, key)
    check_weights(folder, f"{key} = {name}")
    if reads_text and not has_tokenizer(folder):
        raise UsageError(
            f"{key} = {name} has no tokenizer.",
            "Put the one it was trained with into the folder (tokenizer.save_pretrained).",
        )
    return kind


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds the vocabulary of a tokenizer, in any of the forms that transformers reads."""
    return any(path for pattern in _VOCABULARIES for path in folder.glob(pattern))


def positions_of(folder: Path) -> int | None:
    """How many tokens the model in `folder` reads at once by its config.json; None where that sets no limit."""
    return usable_positions(json.loads((folder / "config.json").read_text(encoding="utf-8")))


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


# ---- weights: their names, shapes and dtypes, from the headers of safetensors ----


class Weight(NamedTuple):
    """A weight as the header of a safetensors file describes it. `dtype` as there: F32, BF16, F16."""

    shape: Sequence[int]
    dtype: str


_WRAPPERS = {
    "_orig_mod.": ("a compiled model (torch.compile)", "model._orig_mod.save_pretrained"),
    "_fsdp_wrapped_module.": ("a model that FSDP wraps", "accelerate's unwrap_model"),
    "_checkpoint_wrapped_module.": ("a model with wrapped activation checkpoints", "accelerate's unwrap_model"),
    "module.": ("a model that DDP or DataParallel wraps", "model.module.save_pretrained"),
    "base_model.model.": ("a model with a PEFT adapter", "model.merge_and_unload().save_pretrained"),
}
"""What stands before the names of weights that were saved with a wrapper: what that was, and how to save without."""

_LAYER = re.compile(r"(?:^|.*?\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_COUNTS_OF_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def check_weights(folder: Path, name: str) -> None:
    """Raises `UsageError` where the weights in `folder`, called `name`, are missing, damaged or not its config.json's.

    Reads the headers of safetensors, in one file or several; of a pickle it only checks that it exists.
    """
    files = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("adapter_")]
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if not files and not pickles:
        raise UsageError(f"{name} is not a complete model folder: it has no weights.", "Give a complete one.")
    for path in pickles:
        _check_no_pointer(path)
    weights = {weight for path in files for weight in weights_in(path)}
    if (folder / INDEX).is_file():
        _check_index(folder, name)
    _check_no_wrapper(weights, name)
    if files and (folder / "config.json").is_file():
        _check_layers(weights, json.loads((folder / "config.json").read_text(encoding="utf-8")), name)


def weights_in(path: Path) -> dict[str, Weight]:
    """The weights in a safetensors file by name. Raises `UsageError` for an incomplete file."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Weight(found.get_shape(), found.get_dtype()) for name, found in slices.items()}
    except (SafetensorError, OSError) as problem:
        _check_no_pointer(path)
        raise UsageError(
            f"{path} is not a complete safetensors file.", "It is cut off or damaged: fetch or make the folder again."
        ) from problem


def parameters_in(path: Path) -> int:
    """How many numbers a safetensors file holds. Raises `UsageError` for an incomplete file."""
    return sum(math.prod(weight.shape) for weight in weights_in(path).values())


def _check_no_pointer(path: Path) -> None:
    """Git LFS leaves such a file where it has not fetched the real one."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UsageError(
                f"{path} is a pointer of Git LFS, not the weights.", "Run `git lfs pull` in the folder to fetch them."
            )


def missing_of(name: str, count: int, first: str) -> str:
    """The beginning of an error: how many weights of `name` are missing, and which is the first."""
    return f"{count} weights of {name} are missing ({first}, ...)" if count > 1 else f"{name} lacks the weight {first}"


def _check_no_wrapper(weights: Iterable[str], name: str) -> None:
    for wrapper, (what, instead) in _WRAPPERS.items():
        inside = wrapper.startswith("_")
        wrapped = sorted(weight for weight in weights if wrapper in weight and (inside or weight.startswith(wrapper)))
        if wrapped:
            raise UsageError(
                f"{missing_of(name, len(wrapped), wrapped[0].replace(wrapper, ''))}; its files have {wrapped[0]}: they "
                f"were saved from {what}.",
                f"Save it again with {instead}, or take {wrapper} out of the names.",
            )


def _check_layers(weights: Iterable[str], config: Mapping[str, Any], name: str) -> None:
    """Finds decoder layers without any weight. What else may be missing shows when the model is loaded."""
    if "text_config" in config:  # several towers, each with layers of its own
        return
    layers = next((config[key] for key in _COUNTS_OF_LAYERS if isinstance(config.get(key), int)), None)
    held: dict[str, Counter[int]] = {}
    for weight in weights:
        match = _LAYER.match(weight)
        if match:
            held.setdefault(weight[: match.start(1)], Counter())[int(match[1])] += 1
    if layers is None or not held:
        return
    place, counts = max(held.items(), key=lambda item: item[1].total())
    missing = [number for number in range(layers) if number not in counts]
    if missing:
        raise UsageError(
            f"{missing_of(name, len(missing) * max(counts.values()), f'{place}{missing[0]}')}: its config.json has "
            f"{layers} layers, its weights {layers - len(missing)} of them.",
            "Fetch or make the folder again, or give the config.json that belongs to these weights.",
        )


def _check_index(folder: Path, name: str) -> None:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = set(index["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UsageError(
            f"{folder / INDEX} is not an index of weights.", "Fetch or make the folder again."
        ) from problem
    missing = sorted(file for file in files if not (folder / file).is_file())
    if missing:
        raise UsageError(
            f"{name} is not a complete model folder: {missing[0]}, one of {len(files)} files of weights, is missing.",
            "Fetch or make the folder again.",
        )


# ---- the kind of model, and those that cannot be used ----


def model_kind(folder: str, key: str) -> Kind:
    """What kind of model `folder` holds; raises `UsageError` naming `key` if it holds none that can be used."""
    path, named = Path(folder).expanduser(), f"{key} = {folder}"
    if not path.is_dir():
        raise UsageError(f"{named}: there is no such folder.", "Give a model folder or a hub id.")
    if (path / "adapter_config.json").is_file():  # transformers would load the adapter's base model in its place
        raise UsageError(
            f"{named} holds a PEFT adapter, not a model.",
            "Merge it into its base model (peft's merge_and_unload, then save_pretrained), and give that folder.",
        )
    config_file = path / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise UsageError(
            f"{named} is not a model folder: it has no config.json.",
            "Give a folder that save_pretrained or a chatpipe stage wrote.",
        ) from problem
    except ValueError as problem:
        raise UsageError(
            f"{config_file} is not JSON ({problem}).", "The folder is damaged; make it again."
        ) from problem
    config = config if isinstance(config, dict) else {}
    check_config(config, named)
    return kind_of_architectures(config.get("architectures"), named)


def check_config(config: Mapping[str, Any], named: str) -> None:
    """Raises `UsageError` for a model that chatpipe does not use, by its config.json.

    That is one that needs Python code of its own or a newer transformers, that is quantised, or an encoder-decoder.
    """
    architecture, model_type = _first_architecture(config), config.get("model_type")
    if isinstance(model_type, str) and model_type and not _transformers_has(model_type, architecture):
        if config.get("auto_map"):
            raise needs_own_code(named, f" ({architecture}, auto_map in its config.json)")
        raise UsageError(
            f"{named} is a model of the type {model_type} ({architecture}), which transformers "
            f"{metadata.version('transformers')} does not have.",
            "Install a newer transformers, or give another model.",
        )
    quantised = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UsageError(
            f"{named} is quantised ({method or 'quantization_config in its config.json'}); chatpipe reads and trains "
            "bfloat16, float16 and float32 alone.",
            "Give the model that it was made from, before quantisation.",
        )
    if config.get("is_encoder_decoder"):
        raise UsageError(
            f"{named} is an encoder-decoder model ({architecture}); chatpipe trains decoders.",
            "Give a causal language model such as GPT-2, Llama or Qwen3.",
        )


def needs_own_code(named: str, found: str = "") -> UsageError:
    """The refusal of a model or tokenizer that is Python code in its folder."""
    return UsageError(
        f"{named} needs Python code of its own{found}, which chatpipe does not run.",
        "Give a model of a class that transformers itself has; for many models there is such a folder too.",
    )


def _first_architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else "none"


def _transformers_has(model_type: str, architecture: str) -> bool:
    """Whether the installed transformers has such a model; looks at names, imports no model and no torch."""
    spec = importlib.util.find_spec("transformers")
    [place] = spec.submodule_search_locations if spec and spec.submodule_search_locations else ["."]
    if Path(place, "models", model_type.replace("-", "_")).is_dir():
        return True
    import transformers

    return architecture in dir(transformers)


def kind_of_architectures(architectures: Sequence[str] | None, named: str) -> Kind:
    """What kind of model a configuration's `architectures` mean; raises `UsageError` if it is none that we know."""
    first = str((architectures or ["none"])[0])
    for suffix, kind in _KIND_OF_SUFFIX:
        if first.endswith(suffix):
            return kind
    raise UsageError(
        f"{named} holds a {first}, which chatpipe cannot use.",
        "Give a causal language model, a reward model (sequence classification) or a masked language model.",
    )


def _check_one_label(folder: Path, name: str, key: str) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    labels = len(config.get("id2label") or ()) or config.get("num_labels", _LABELS_BY_DEFAULT)
    if labels != 1:
        raise UsageError(f"{key} = {name} gives {labels} numbers for an answer; a reward is one.", _remedy("reward"))


def _remedy(wanted: Kind) -> str:
    if wanted == "reward":
        return "Give what `chatpipe rm` wrote, or any sequence classification model with one label."
    if wanted == "masked":
        return "Give what `chatpipe pretrain` wrote with pretrain.objective=masked, or any masked language model."
    return "Give what `chatpipe pretrain` or `chatpipe sft` wrote, or any causal language model."


def check_tokenizer(name: str, key: str) -> None:
    """Raises `UsageError` naming `key` unless `name` is a folder with a tokenizer, or a hub id."""
    if looks_like_path(name) and not has_tokenizer(Path(name).expanduser()):
        raise UsageError(
            f"{key} = {name} is not the folder of a tokenizer: it has no tokenizer.json.",
            "Give a folder that save_pretrained or a chatpipe stage wrote, or a hub id such as gpt2.",
        )


def expected_vocabulary(section: Pretrain) -> int | None:
    """Rows of a new model's embedding; None where `tokenizer.pretrained` is on the hub.

    For a tokenizer that is not trained yet it is the most that it may have: a bpe of enough text reaches it. Raises
    `UsageError` for a damaged tokenizer.
    """
    if section.architecture.vocab_size is not None:
        return section.architecture.vocab_size
    is_masked = section.objective == "masked"
    if section.tokenizer.pretrained is None:
        return section.tokenizer.vocab_size + is_masked
    file = Path(section.tokenizer.pretrained).expanduser() / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        entries: int = Tokenizer.from_file(str(file)).get_vocab_size()
        return entries + (is_masked and not _has_mask(file.with_name("tokenizer_config.json")))
    except Exception as problem:  # what `tokenizers` raises is nothing more specific
        raise UsageError(
            f"{file.parent} holds no tokenizer that can be read ({problem}).", "Give the folder of a complete one."
        ) from problem


def _has_mask(config: Path) -> bool:
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("mask_token") is not None
