"""What the folder of a model or a tokenizer holds, read from its json files and the headers of weights. No torch."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
_TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "tekken*")
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


def check_model(name: str, wanted: Kind, key: str, or_else: Kind | None = None, reads_text: bool = True) -> None:
    """Raises `UsageError` naming `key` unless `name` is a folder with a `wanted` model (or `or_else`), or a hub id.

    Also raises it where weights are missing, where a reward model gives more than one number, and where a model that
    `reads_text` has no tokenizer. A hub id is not checked here; loading it does that.
    """
    if not looks_like_path(name):
        return
    kind = model_kind(name, key)
    if kind not in (wanted, or_else):
        raise UsageError(
            f"{key} = {name} is a {_NAME_OF_KIND[kind]}, but a {_NAME_OF_KIND[wanted]} is needed there.",
            _remedy(wanted),
        )
    folder = Path(name).expanduser()
    if kind == "reward":
        _check_one_label(folder, name, key)
    check_weights(folder, f"{key} = {name}")
    if reads_text and not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        raise UsageError(
            f"{key} = {name} has no tokenizer.",
            "Put the one it was trained with into the folder (tokenizer.save_pretrained).",
        )


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


def check_weights(folder: Path, name: str) -> None:
    """Raises `UsageError` where the weights in `folder`, called `name`, are missing or incomplete.

    Reads the headers of safetensors, in one file or several; of a pickle it only checks that it exists.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("pytorch_model*.bin")):
        raise UsageError(f"{name} is not a complete model folder: it has no weights.", "Give a complete one.")
    for path in files:
        parameters_in(path)
    if (folder / INDEX).is_file():
        _check_index(folder, name)


def parameters_in(path: Path) -> int:
    """How many numbers a safetensors file holds. Raises `UsageError` for an incomplete file."""
    try:
        with safe_open(path, framework="np") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise UsageError(
            f"{path} is not a complete safetensors file.", "It is cut off or damaged: fetch or make the folder again."
        ) from problem


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


def model_kind(folder: str, key: str) -> Kind:
    """What kind of model `folder` holds; raises `UsageError` naming `key` if it holds none that we know."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UsageError(f"{key} = {folder}: there is no such folder.", "Give a model folder or a hub id.")
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise UsageError(
            f"{key} = {folder} holds only an adapter, not a model.",
            "Merge it into its base model (peft's merge_and_unload, then save_pretrained), and give that folder.",
        )
    config_file = path / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise UsageError(
            f"{key} = {folder} is not a model folder: it has no config.json.",
            "Give a folder that save_pretrained or a chatpipe stage wrote.",
        ) from problem
    except ValueError as problem:
        raise UsageError(
            f"{config_file} is not JSON ({problem}).", "The folder is damaged; make it again."
        ) from problem
    return kind_of_architectures(config.get("architectures") if isinstance(config, dict) else None, f"{key} = {folder}")


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
    """Raises `UsageError` naming `key` unless `name` is a folder with a fast tokenizer, or a hub id."""
    if looks_like_path(name) and not (Path(name).expanduser() / "tokenizer.json").is_file():
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
