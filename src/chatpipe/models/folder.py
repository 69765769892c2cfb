"""What a model folder holds, read from its config.json alone, so that a wrong one is answered without torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from chatpipe.errors import UsageError

Kind = Literal["causal", "reward", "masked"]

_KIND_OF_SUFFIX: tuple[tuple[str, Kind], ...] = (
    ("ForSequenceClassification", "reward"),
    ("ForMaskedLM", "masked"),
    ("LMHeadModel", "causal"),
    ("ForCausalLM", "causal"),
    ("ForConditionalGeneration", "causal"),
)
_WEIGHTS = (".safetensors", ".bin")
_NAME_OF_KIND = {"causal": "causal language model", "reward": "reward model", "masked": "masked language model"}


def looks_like_path(name: str) -> bool:
    """Whether `name` means a folder rather than a hub id such as `gpt2` or `Qwen/Qwen3-0.6B`.

    Also a folder that is not there, but would stand in one that is.
    """
    is_id = name.count("/") <= 1 and not name.startswith((".", "/", "~"))
    return not is_id or Path(name).exists() or ("/" in name and Path(name).parent.is_dir())


def check_model(name: str, wanted: Kind, key: str, or_else: Kind | None = None) -> None:
    """Raises `UsageError` naming `key` unless `name` is a folder with a `wanted` model (or `or_else`), or a hub id.

    A hub id is taken on trust here; loading it answers for it.
    """
    if not looks_like_path(name):
        return
    kind = model_kind(name, key)
    if kind not in (wanted, or_else):
        raise UsageError(
            f"{key} = {name} is a {_NAME_OF_KIND[kind]}, but a {_NAME_OF_KIND[wanted]} is needed there.",
            _remedy(wanted),
        )
    if not any(path.suffix in _WEIGHTS for path in Path(name).expanduser().iterdir()):
        raise UsageError(
            f"{key} = {name} is not a whole model folder: it has no weights.", "Give one that was written to its end."
        )


def check_tokenizer(name: str, key: str) -> None:
    """Raises `UsageError` naming `key` unless `name` is a folder with a fast tokenizer, or a hub id."""
    if looks_like_path(name) and not (Path(name).expanduser() / "tokenizer.json").is_file():
        raise UsageError(
            f"{key} = {name} is not the folder of a tokenizer: it has no tokenizer.json.",
            "Give a folder that save_pretrained or a chatpipe stage wrote, or a hub id such as gpt2.",
        )


def model_kind(folder: str, key: str) -> Kind:
    """What kind of model `folder` holds; raises `UsageError` naming `key` if it holds none that we know."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UsageError(f"{key} = {folder}: there is no such folder.", "Give a model folder or a hub id.")
    config_file = path / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise UsageError(
            f"{key} = {folder} is not a model folder: it has no config.json.",
            "Give a folder that save_pretrained or a chatpipe stage wrote.",
        ) from problem
    except ValueError as problem:
        raise UsageError(f"{config_file} is not JSON ({problem}).", "The folder is damaged; make it anew.") from problem
    return kind_of_architectures(config.get("architectures") if isinstance(config, dict) else None, f"{key} = {folder}")


def kind_of_architectures(architectures: Sequence[str] | None, named: str) -> Kind:
    """What kind of model a configuration's `architectures` mean; raises `UsageError` if it is none that we know."""
    first = (architectures or ["none"])[0]
    for suffix, kind in _KIND_OF_SUFFIX:
        if first.endswith(suffix):
            return kind
    raise UsageError(
        f"{named} holds a {first}, which chatpipe cannot use.",
        "It reads causal language models, reward models (sequence classification) and masked language models.",
    )


def _remedy(wanted: Kind) -> str:
    if wanted == "reward":
        return "Give what `chatpipe rm` wrote, or any sequence classification model with one label."
    if wanted == "masked":
        return "Give what `chatpipe pretrain` wrote with pretrain.objective=masked, or any masked language model."
    return "Give what `chatpipe pretrain` or `chatpipe sft` wrote, or any causal language model."
