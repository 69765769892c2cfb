"""The prompts whose completions are ranked, and the built-in worlds that a model was made for."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from chatpipe.data.datasets import Conversation, stream_rows
from chatpipe.data.messages import prompt_key
from chatpipe.data.row_files import Row
from chatpipe.data.sources import Report, source_rows
from chatpipe.data.worlds import WORLDS, Worlds, is_world
from chatpipe.errors import UsageError
from chatpipe.models.manifest import read_manifest
from chatpipe.models.model_folder import looks_like_path
from chatpipe.recipe.loading import load_recipe
from chatpipe.recipe.schema import Data, DataBlock, Recipe

KEY = "--prompts"


def read_prompts(source: str, model: str) -> list[Conversation]:
    """The prompts of the option --prompts; those of a built-in world are about the world that `model` was made for."""
    return prompts_to_rank(TypeAdapter(Data).validate_python(source), worlds_of(model), KEY)


def prompts_to_rank(blocks: Sequence[DataBlock], worlds: Worlds, key: str) -> list[Conversation]:
    """Different prompts, in order, of both splits: the reward model validates on some of what was ranked.

    Only the validation prompts of built-in worlds are left out. Prints what else is. Raises `UsageError` naming `key`
    where there are none.
    """
    report = Report()
    prompts: dict[str, Conversation] = {}
    for block in blocks:
        for prompt, split in stream_rows("prompts", [block], worlds, key, report):
            if not (split == "validation" and is_world(block.source)):
                prompts.setdefault(prompt_key(prompt), prompt)
    report.say()
    if not prompts:
        sources = ", ".join(block.source for block in blocks)
        raise UsageError(f"{key}: no row of {sources} can be used.", 'Give rows like {"prompt": "..."}.')
    return list(prompts.values())


def worlds_of_answers(completions: Path) -> Worlds | None:
    """The settings of the built-in worlds that the first model of a completions file was made for.

    In a run the file names that model by its place relative to the file. None where the worlds are unknown.
    """
    rows = source_rows(DataBlock(source=str(completions)), "rank")
    models = next((row.values.get("models") for row in rows if isinstance(row, Row)), None)
    if not (isinstance(models, list) and models and isinstance(models[0], str)):
        return None
    return _noted_worlds(str(completions.parent / models[0])) or _noted_worlds(models[0])


def worlds_of(model: str) -> Worlds:
    """The settings of the built-in worlds that a model of ours was made for; the defaults for others."""
    return _noted_worlds(model) or Recipe().worlds


def _noted_worlds(model: str) -> Worlds | None:
    manifest = read_manifest(Path(model).expanduser()) if looks_like_path(model) else None
    noted = manifest.settings if manifest else {}
    known = {key: value for key, value in noted.items() if key.partition(".")[0] in WORLDS}
    return load_recipe(None, flags=known).recipe.worlds if known else None
