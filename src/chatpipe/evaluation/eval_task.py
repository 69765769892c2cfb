"""What `chatpipe eval` evaluates: a model, the format of the data, and the settings under which the model was made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from chatpipe.data.datasets import stream_rows
from chatpipe.data.formats import recognise
from chatpipe.data.row_files import Row, kind_of
from chatpipe.data.sources import Report, is_hub, one_file_each, source_rows
from chatpipe.data.worlds import WORLDS, is_world
from chatpipe.errors import UsageError
from chatpipe.models.manifest import manifest_of
from chatpipe.models.properties import longest_sequence
from chatpipe.recipe.loading import load_recipe
from chatpipe.recipe.schema import DataBlock, Recipe

KEY = "--data"
SETTINGS = ("evaluation.", *(f"{name}." for name in WORLDS), "seed")
"""The settings that the command line may override."""
REMEMBERED = (
    "pretrain.block_size",
    "pretrain.documents",
    "pretrain.mlm_probability",
    "sft.max_length",
    "rm.max_length",
)
"""Further recipe keys from a model's manifest with which it is evaluated."""


@dataclass(frozen=True)
class EvalTask:
    """A model and its data; `known` are the settings under which a model of ours was made."""

    model: str
    blocks: list[DataBlock]
    recipe: Recipe
    known: dict[str, Any]
    limit: int | None

    def max_length(self, key: str, model: PreTrainedModel) -> int:
        """The length of rows in the stage that made the model if it is known, at most what the model reads."""
        return min(self.known.get(key, 2**31), longest_sequence(model, decodes=True))

    def rows(self, what: Any, report: Report) -> list[Any]:
        """All rows, or the first `limit`."""
        stream = stream_rows(what, self.blocks, self.recipe.worlds, KEY, report)
        found = [row for row, _ in islice(stream, self.limit)]
        if not found:
            raise UsageError(f"{KEY}: no row can be used.", "Give other data.")
        return found


def format_of(blocks: Sequence[DataBlock]) -> str:
    """The format of the sources, from their first rows. Raises `UsageError` where they differ."""
    forms = {_format_of_file(part) for block in blocks for part in _parts(block)}
    if len(forms) > 1:
        raise UsageError(f"{KEY} holds {' and '.join(sorted(forms))}.", "Give them one by one.")
    return forms.pop()


def _parts(block: DataBlock) -> Iterator[DataBlock]:
    if is_world(block.source):
        yield block
    else:
        yield from one_file_each(block, KEY)


def _format_of_file(part: DataBlock) -> str:
    if is_world(part.source):
        return part.source
    if not is_hub(part) and kind_of(Path(part.source)) == ".txt":
        return "text"
    first = next((row for row in source_rows(part, KEY) if isinstance(row, Row)), None)
    if first is None:
        raise UsageError(f"{KEY}: {part.source} holds no rows that can be read.", "Give other data.")
    return recognise(first, KEY)


def remembered_settings(model: str) -> dict[str, Any]:
    """The settings under which a model of ours was made and evaluated; none for other models."""
    manifest = manifest_of(model)
    if manifest is None:
        return {}
    noted = {**manifest.settings, **manifest.evaluation}
    return {key: value for key, value in noted.items() if key.startswith(SETTINGS) or key in REMEMBERED}


def settings_of(overrides: Sequence[str], known: dict[str, Any]) -> Recipe:
    """A recipe with the `known` settings and the overrides. Raises `UsageError` for an override of anything else."""
    given = {override.partition("=")[0] for override in overrides}
    foreign = [key for key in given if not key.startswith(SETTINGS)]
    if foreign:
        raise UsageError(
            f"{foreign[0]} does not change how a model is evaluated.", f"These do: {', '.join(SETTINGS)} (KEY=VALUE)."
        )
    return load_recipe(None, overrides, {key: value for key, value in known.items() if key not in given}).recipe
