"""From a recipe's name, file and overrides to checked values, each with its origin.

Nothing here imports torch: a wrong recipe is answered within a fraction of a second.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock, Recipe, RewardSource

DEFAULT = "default"
"""The origin of a value that neither the recipe nor the command line gives."""
MAX_PROBLEMS = 6
OTHER_NAMES = {
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs", "train_epochs"), "num_train_epochs"),
    **dict.fromkeys(("lr", "learningrate"), "learning_rate"),
    **dict.fromkeys(("micro_batch_size", "train_batch_size", "mini_batch_size"), "per_device_train_batch_size"),
    **dict.fromkeys(("gradient_accumulation_steps", "global_batch_size", "train_batch_size_total"), "batch_size"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "sequence_len", "cutoff_len"), "max_length"),
    **dict.fromkeys(("max_tokens", "max_completion_length", "max_response_length"), "max_new_tokens"),
    **dict.fromkeys(("beta", "init_kl_coef", "kl_penalty"), "kl_coef"),
    **dict.fromkeys(("clip_range", "cliprange_policy", "epsilon"), "cliprange"),
    **dict.fromkeys(("warmup_ratio", "num_warmup_steps"), "warmup_steps"),
    **dict.fromkeys(("lora_r", "lora_rank", "rank"), "lora.r"),
    **dict.fromkeys(("lora_alpha",), "lora.alpha"),
    **dict.fromkeys(("ppo_epochs", "noptepochs"), "num_ppo_epochs"),
    **dict.fromkeys(("dataset", "train_file", "data_path", "dataset_name"), "data"),
    **dict.fromkeys(("model_name_or_path", "base_model", "pretrained"), "model"),
    **dict.fromkeys(("fp16", "dtype", "torch_dtype"), "bf16"),
    "stages": "start",
    **dict.fromkeys(("block_len", "context_length", "seq_len"), "block_size"),
}
"""Names that other tools have for a setting, and its name here."""
MAX_LISTED_KEYS = 16
SECTIONS = {
    name
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are what people mean: YAML 1.1 reads 010 as eight, 1:30 as ninety, and a day as an object."""


_NUMBERS = {
    "int": r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_OTHER_KINDS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0) if text.lstrip("+-")[:2] in ("0x", "0b") else int(text)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OTHER_KINDS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class RecipeDumper(yaml.SafeDumper):
    """Puts a text in quotes that a recipe would read as a number."""


for _kind, _pattern in _NUMBERS.items():
    for _side in (_Loader, RecipeDumper):
        _side.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list("-+.0123456789")
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


@dataclass(frozen=True)
class Resolved:
    """A checked recipe; `origins` maps each dotted key to a default, a recipe's line or an override."""

    recipe: Recipe
    origins: dict[str, str]
    path: Path | None

    def rows(self) -> list[tuple[str, str, str]]:
        """(dotted key, value, origin) of every value, in the order of the schema."""
        return [
            (key, _in_one_line(value), self.origins.get(key, DEFAULT))
            for key, value in flatten(self.recipe.model_dump(mode="json")).items()
        ]


def _in_one_line(value: Any) -> str:
    """A value as it is shown: of a block of data its source, and what it sets."""
    if not isinstance(value, list):
        return str(value)
    usual = {name: field.get_default(call_default_factory=True) for name, field in DataBlock.model_fields.items()}
    shown = []
    for item in value:
        if not isinstance(item, dict) or "source" not in item:
            return str(value)
        given = {key: of for key, of in item.items() if key != "source" and of != usual[key]}
        shown.append(f"{item['source']} {given}" if given else item["source"])
    return ", ".join(shown)


def load_recipe(name: str | None, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> Resolved:
    """Reads the recipe `name` (a path or a packaged name; None = all defaults), then `KEY=VALUE`s, then `flags`.

    `flags` maps dotted keys to values of command-line options such as `--model`.
    Raises `UsageError` that names every wrong key with its line and the nearest right one.
    """
    path = find_recipe(name) if name is not None else None
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        values, origins = _read_yaml(path)
        values.setdefault("out", f"runs/{path.stem}")
        origins.setdefault("out", "the recipe's name")
    for override in overrides:
        key, _, text = override.partition("=")
        _override(values, origins, key, _parse_value(override, text))
    for key, value in (flags or {}).items():
        _override(values, origins, key, value)
    return Resolved(_validate(values, origins), origins, path)


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by the name of a packaged one; raises `UsageError` if there is none."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or "/" in name:
        if path.is_file():
            return path
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.y*ml")], n=1)
        meant = f"Did you mean {path.with_name(near[0])}? " if near else ""
        raise UsageError(f"There is no recipe file {name}.", f"{meant}`chatpipe recipes ls` lists the packaged ones.")
    packaged = packaged_recipes()
    if name in packaged:
        return packaged[name]
    if path.is_file():
        raise UsageError(f"{name} is no recipe, which ends in .yaml.", f"Is it data? Give it with --data {name}.")
    if path.with_suffix(".yaml").is_file():
        raise UsageError(f"There is no recipe called {name}.", f"Give your file with its ending: {name}.yaml.")
    near = difflib.get_close_matches(name, packaged, n=1)
    known = f"Did you mean {near[0]}?" if near else f"Packaged recipes: {', '.join(sorted(packaged))}."
    raise UsageError(f"There is no recipe called {name}.", f"{known} A file of your own is given with its .yaml.")


def packaged_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with chatpipe (next to `src/` in an editable install)."""
    folder = Path(str(resources.files("chatpipe"))) / "recipes"
    if not folder.is_dir():
        folder = Path(__file__).resolve().parents[3] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
        root, values = yaml.compose(text, _Loader), yaml.load(text, _Loader)
    except UnicodeDecodeError as problem:
        raise UsageError(f"{path} is not a text file.", "Save it as UTF-8; a recipe is YAML.") from problem
    except (yaml.YAMLError, ValueError) as problem:  # ValueError: a number of thousands of digits
        mark = getattr(problem, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(problem, "problem", None) or problem
        raise UsageError(f"{where}: this is not YAML: {what}.", "See `chatpipe recipes show pocket`.") from problem
    if root is None:
        raise UsageError(f"The recipe {path} is empty.", "Start from a packaged one: `chatpipe recipes copy pocket`.")
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path}:1: a recipe consists of `key: value` lines.", "See `chatpipe recipes show pocket`.")
    origins: dict[str, str] = {}
    _check_keys(root, path, "", origins)
    return values, origins


def _check_keys(node: yaml.MappingNode, path: Path, prefix: str, origins: dict[str, str]) -> None:
    """Notes the line of each key, and refuses a key given twice (YAML would silently take the last)."""
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        where = f"{path}:{key_node.start_mark.line + 1}"
        if key in origins:
            raise UsageError(f"{where}: {key} is given twice; first at {origins[key]}.", "Remove one of them.")
        origins[key] = where
        if isinstance(value_node, yaml.MappingNode):
            _check_keys(value_node, path, f"{key}.", origins)


def _parse_value(override: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader) if text else None
    except (yaml.YAMLError, ValueError) as problem:
        raise UsageError(
            f"The value of {override!r} cannot be read.", "Put values with special signs in quotes."
        ) from problem


def _override(values: dict[str, Any], origins: dict[str, str], dotted: str, value: Any) -> None:
    """Sets a value, or a section as a whole, and notes that it came from the command line."""
    _set(values, dotted, value)
    for replaced in [key for key in origins if key.startswith(f"{dotted}.")]:
        del origins[replaced]
    origins.update(dict.fromkeys([dotted, *flatten({dotted: value})], "command line"))


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for depth, parent in enumerate(parents, start=1):
        if values.get(parent) is None:  # `pretrain:` without content is None in YAML
            values[parent] = {}
        below = values[parent]
        if not isinstance(below, dict):
            section = ".".join(parents[:depth])
            raise UsageError(
                f"{dotted} cannot be set: {section} is {below!r}, which has no keys.", f"Give {section} as a whole."
            )
        values = below
    values[last] = value


def _validate(values: dict[str, Any], origins: dict[str, str]) -> Recipe:
    # A section without content (`sft:`) means its defaults; a value without content (`out=$UNSET`) is a mistake.
    given = {key: value for key, value in values.items() if value is not None or key not in SECTIONS}
    try:
        return Recipe.model_validate(given)
    except ValidationError as problem:
        lines = [_describe(details, origins) for details in problem.errors()]
    shown = lines[:MAX_PROBLEMS]
    if len(lines) > MAX_PROBLEMS:
        shown.append(f"... and {len(lines) - MAX_PROBLEMS} more.")
    raise UsageError("\n".join(shown), "`chatpipe schema` lists every key.")


def _describe(details: Any, origins: dict[str, str]) -> str:
    """One line for one problem: where, which key, what is wrong, what is right."""
    keys = [str(part) for part in details["loc"] if not str(part).startswith("function-")]
    dotted = ".".join(keys)
    origin = _nearest(origins, dotted)
    where = f"{origin}: " if origin and origin != "command line" else ""
    if details["type"] == "extra_forbidden":
        *parents, last = keys
        near, known = _nearest_keys(parents, last), _known_keys(parents)
        if near:
            return f"{where}there is no key {dotted}; did you mean {' or '.join(near)}?"
        listed = f"; known there: {', '.join(known)}" if len(known) <= MAX_LISTED_KEYS else ""
        return f"{where}there is no key {dotted}{listed}."
    if details["type"] == "value_error":  # of values that do not go together; the message names them
        return f"{where}{dotted}: {details['ctx']['error']}."
    if details["type"] == "missing":
        return f"{where}{dotted} is required."
    given = repr(details["input"])
    return f"{where}{dotted} = {given[:60]}: {details['msg'][:1].lower()}{details['msg'][1:]}."


def _nearest_keys(parents: Sequence[str], last: str) -> list[str]:
    """Dotted keys that are meant by `last`: another tool's name for a key of the same section, the same word in other
    sections, then what looks like it in the same section, then anywhere."""
    known = _known_keys(parents)
    other = OTHER_NAMES.get(last, "").removeprefix(f"{parents[-1]}." if parents else "")
    if other.split(".")[0] in known:
        return [".".join([*parents, other])]
    keys = list(flatten(Recipe().model_dump()))
    anywhere = [key for key in keys if last == key.rsplit(".", 1)[-1] or (other and key.endswith(f".{other}"))]
    if anywhere:
        return anywhere
    here = difflib.get_close_matches(last, known, n=1)
    if here:
        return [".".join([*parents, here[0]])]
    words = {key.rsplit(".", 1)[-1]: key for key in keys}
    return [words[word] for word in difflib.get_close_matches(last, words, n=1, cutoff=0.8)]


def _known_keys(parents: Sequence[str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for parent in parents:
        if parent.isdigit():  # an item of a list of sections
            section = RewardSource if parents[:2] == ["ppo", "reward"] else DataBlock
            continue
        below = section.model_fields.get(parent)
        candidates = [below.annotation, *get_args(below.annotation)] if below else []
        models = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        section = models[0] if models else section
    return list(section.model_fields)


def _nearest(origins: Mapping[str, str], dotted: str) -> str | None:
    """The origin of a key or of the closest section above it that was given whole."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        origin = origins.get(".".join(parts[:end]))
        if origin is not None:
            return origin
    return None
