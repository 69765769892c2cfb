"""What the folder of a model or a tokenizer holds, by its json files and the headers of weights. No torch."""

import importlib.util
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from chatpipe import console
from chatpipe.errors import UsageError
from chatpipe.models.weight_files import (
    FETCH_AGAIN,
    GIVE_COMPLETE,
    check_no_pointer,
    check_weights,
    quantised,
    read_object,
)

Kind = Literal["causal", "reward", "masked"]

_KIND_OF_SUFFIX: tuple[tuple[str, Kind], ...] = (
    ("ForSequenceClassification", "reward"),
    ("ForMaskedLM", "masked"),
    ("LMHeadModel", "causal"),
    ("ForCausalLM", "causal"),
    ("ForConditionalGeneration", "causal"),
)
TOKENIZER_FILES = (
    *("tokenizer*", "*.model", "vocab*", "tekken*", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    *("*.tiktoken", "chat_template*", "additional_chat_templates/*"),
)
"""Patterns of the files of a tokenizer and its chat template."""
PROCESSOR_FILES = ("*processor_config.json",)
"""Patterns of the files that say how images are prepared for a model."""
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.*", "*.model", "tekken*", "*.tiktoken")
_LABELS_BY_DEFAULT = 2
"""The number of labels that transformers assumes for a config.json without labels."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NESTED = ("*/config.json", "snapshots/*/config.json")
"""Where a folder without config.json may hold models: resume points, the cache of the hub."""
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
        if not _HUB_ID.fullmatch(name):
            raise UsageError(f"{key} = {name} is neither a folder nor a hub id.", GIVE_COMPLETE)
        return None
    try:
        return _check_folder(name, wanted, key, others, reads_text)
    except (AttributeError, TypeError, KeyError, ValueError) as problem:
        raise UsageError(
            f"{key} = {name}: a json file in it has values of other kinds ({problem!r}).", FETCH_AGAIN
        ) from problem


def _check_folder(name: str, wanted: Kind | None, key: str, others: Sequence[Kind], reads_text: bool) -> Kind:
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
    _check_generation_config(folder)
    if reads_text and not has_tokenizer(folder):
        raise UsageError(
            f"{key} = {name} has no tokenizer.",
            "Put the one it was trained with into the folder (tokenizer.save_pretrained).",
        )
    if reads_text:
        check_rows(folder, f"{key} = {name}")
    return kind


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds the vocabulary of a tokenizer, in any of the forms that transformers reads."""
    return any(path for pattern in _VOCABULARIES for path in folder.glob(pattern))


# ---- the kind of model, and those that cannot be used ----


def model_kind(folder: str, key: str) -> Kind:
    """What kind of model `folder` holds; raises `UsageError` naming `key` if it holds none that can be used."""
    path, named = Path(folder).expanduser(), f"{key} = {folder}"
    if not path.is_dir():
        what = "is a file, not a folder" if path.is_file() else "there is no such folder"
        raise UsageError(f"{named}: {what}.", "Give a model folder or a hub id.")
    if (path / "adapter_config.json").is_file():  # transformers would load the adapter's base model in its place
        raise UsageError(
            f"{named} holds a PEFT adapter, not a model.",
            "Merge it into its base model (peft's merge_and_unload, then save_pretrained), and give that folder.",
        )
    if not (path / "config.json").is_file():
        inside = sorted(found.parent for pattern in _NESTED for found in path.glob(pattern))
        raise UsageError(
            f"{named} is not a model folder: it has no config.json.",
            f"Give {inside[-1]}, which has one." if inside else GIVE_COMPLETE,
        )
    config = read_object(path / "config.json")
    check_config(config, named)
    return kind_of_architectures(config.get("architectures"), named)


def check_config(config: Mapping[str, Any], named: str) -> None:
    """Raises `UsageError` for a model that chatpipe does not use, by its config.json.

    That is one that needs Python code of its own or a newer transformers, that is quantised, or an encoder-decoder.
    """
    architecture, model_type = _first_architecture(config), config.get("model_type")
    if any(name.startswith("AutoModel") for name in config.get("auto_map") or ()) and not _has_class(architecture):
        raise needs_own_code(named, f" ({architecture}, auto_map in its config.json)")
    if isinstance(model_type, str) and model_type and not _transformers_has(model_type, architecture):
        if config.get("auto_map"):
            raise needs_own_code(named, f" ({architecture}, auto_map in its config.json)")
        raise UsageError(
            f"{named} is a model of the type {model_type} ({architecture}), which transformers "
            f"{metadata.version('transformers')} does not have.",
            "Install a newer transformers, or give another model.",
        )
    for part in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                method = part[key].get("quant_method") if isinstance(part[key], dict) else None
                raise quantised(named, method or f"{key} in its config.json")
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
    return Path(place, "models", model_type.replace("-", "_")).is_dir() or _has_class(architecture)


def _has_class(architecture: str) -> bool:
    import transformers

    return architecture in dir(transformers)


def kind_of_architectures(architectures: Sequence[str] | None, named: str) -> Kind:
    """What kind of model a configuration's `architectures` mean; raises `UsageError` if it is none that we know."""
    if not architectures:
        raise UsageError(
            f"{named}: its config.json names no `architectures`, so it does not say what kind of model it is.",
            "Write the name of its class there, such as LlamaForCausalLM, or save the model again.",
        )
    first = str(architectures[0])
    for suffix, kind in _KIND_OF_SUFFIX:
        if first.endswith(suffix):
            return kind
    raise UsageError(
        f"{named} holds a {first}, which chatpipe cannot use.",
        "Give a causal language model, a reward model (sequence classification) or a masked language model.",
    )


def _check_one_label(folder: Path, name: str, key: str) -> None:
    config = read_object(folder / "config.json")
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
    if not looks_like_path(name):
        return
    if not has_tokenizer(Path(name).expanduser()):
        raise UsageError(
            f"{key} = {name} is not the folder of a tokenizer: it has no tokenizer.",
            GIVE_COMPLETE,
        )
    _tokenizer_objects(Path(name).expanduser())


def _tokenizer_objects(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON objects in the files of a tokenizer, by the names of the files.

    Raises `UsageError` that names a file which is empty, no JSON, not UTF-8, or a pointer of Git LFS.
    """
    objects = {}
    for path in sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}):
        check_no_pointer(path)
        if path.suffix == ".json":
            objects[path.name] = read_object(path)
        elif path.match("*.model") and not path.stat().st_size:
            raise UsageError(f"{path} is empty.", FETCH_AGAIN)
        elif path.suffix == ".jinja":
            _check_utf8(path)
    return objects


def _check_utf8(path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise UsageError(f"{path} is not UTF-8 ({problem}).", FETCH_AGAIN) from problem


def _check_generation_config(folder: Path) -> None:
    """Raises `UsageError` for a generation_config.json that is no JSON object, or whose ends are no numbers."""
    file = folder / "generation_config.json"
    ends = read_object(file).get("eos_token_id") if file.is_file() else None
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [] if ends is None else [ends])):
        raise UsageError(f"{file}: eos_token_id is {ends!r}, not the number of a token, or several.", "Mend it.")


def check_rows(folder: Path, name: str) -> None:
    """Raises `UsageError` for damaged files of the tokenizer, and where tokens that occur in text have no embedding.

    Other control tokens may have none, as the image token of Gemma 3 1B.
    """
    objects = _tokenizer_objects(folder)
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    config |= config.get("text_config") or {}
    rows, padding = config.get("vocab_size"), config.get("pad_token_id")
    if not isinstance(rows, int):
        return
    if isinstance(padding, int) and padding >= rows:
        raise UsageError(
            f"{name}: pad_token_id = {padding} in its config.json, but its embedding has {rows} rows.",
            "Write the number of a token there, or null.",
        )
    content, occurring = objects.get("tokenizer.json", {}), _template_and_eos(folder, objects)
    words = (content.get("model") or {}).get("vocab") or ()
    ids = dict(words if isinstance(words, dict) else {word: number for number, (word, _) in enumerate(words)})
    for token in content.get("added_tokens") or ():
        if token.get("special") and token["content"] not in occurring:
            ids.pop(token["content"], None)
        else:
            ids[token["content"]] = token["id"]
    beyond = sorted(word for word, number in ids.items() if number >= rows)
    if beyond:
        raise UsageError(
            f"{name}: its embedding has {rows} rows, so none for {len(beyond)} tokens of its tokenizer, "
            f"{beyond[0]!r} among them.",
            "Give the tokenizer that it was trained with, or call model.resize_token_embeddings(len(tokenizer)) and "
            "save it again.",
        )


def _template_and_eos(folder: Path, objects: Mapping[str, dict[str, Any]]) -> str:
    """The text of the chat template and the EOS token; `objects` are those of the tokenizer's files."""
    settings, template = objects.get("tokenizer_config.json", {}), folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template")
    return f"{text} {settings.get('eos_token')}"


def copy_files(start: str, folder: Path, patterns: tuple[str, ...]) -> None:
    """Copies the files of these patterns at `start`, a folder or a hub id, into `folder`; others of their kind go."""
    source = folder_of(start, patterns)
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()
        for path in source.glob(pattern):
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def copy_generation_config(start: str, folder: Path, eos_token_id: int) -> bool:
    """Copies generation_config.json from `start` into `folder`; returns whether there is one.

    Only where generation would not stop at `eos_token_id`, which ends the answers that were trained, that is added.
    """
    path = folder_of(start, ("generation_config.json",)) / "generation_config.json"
    if not path.is_file():
        return False
    target = folder / path.name
    shutil.copyfile(path, target)
    settings = read_object(path)
    ends = settings.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if eos_token_id not in ends:
        settings["eos_token_id"] = [eos_token_id, *ends] if ends else eos_token_id
        target.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        console.note(f"generation stops at token {eos_token_id} too, which ends an answer (generation_config.json)")
    return True


def folder_of(model: str, patterns: tuple[str, ...]) -> Path:
    """The folder of a model; of a hub id the folder in the cache that has its files of these names."""
    if looks_like_path(model):
        return Path(model).expanduser()
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=list(patterns)))
