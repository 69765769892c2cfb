"""The prompts that models answer for ranking."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from chatpipe.data.datasets import Conversation, prompt_key, stream_rows
from chatpipe.data.report import Report
from chatpipe.data.row_files import Row
from chatpipe.data.sources import source_rows
from chatpipe.errors import UsageError
from chatpipe.models.manifest import read_manifest
from chatpipe.models.model_folder import looks_like_path
from chatpipe.recipe.loading import load_recipe
from chatpipe.recipe.schema import POCKETWORLD, Data, DataBlock, Pocketworld

KEY = "--prompts"


def read_prompts(source: str, model: str) -> list[Conversation]:
    """The prompts that a flag names; those of the built-in world are about the world that `model` knows."""
    return prompts_to_rank(TypeAdapter(Data).validate_python(source), world_of(model), KEY)


def prompts_to_rank(blocks: Sequence[DataBlock], world: Pocketworld, key: str) -> list[Conversation]:
    """Different prompts, in order, of both sides of the split: the reward model holds out some of what was ranked.

    Only the built-in world's test questions are left out. Says what else was. Raises `UsageError` naming `key` where
    there are none.
    """
    report = Report()
    prompts: dict[str, Conversation] = {}
    for block in blocks:
        for prompt, held_out in stream_rows("prompts", [block], world, key, report):
            if not (held_out and block.source == POCKETWORLD):
                prompts.setdefault(prompt_key(prompt), prompt)
    report.say()
    if not prompts:
        sources = ", ".join(block.source for block in blocks)
        raise UsageError(f"{key}: no row of {sources} can be used.", 'Give rows like {"prompt": "..."}.')
    return list(prompts.values())


def world_of_answers(completions: Path) -> Pocketworld | None:
    """The built-in world that the first model of a completions file was made for; None where that is not known."""
    rows = source_rows(DataBlock(source=str(completions)), "rank")
    models = next((row.values.get("models") for row in rows if isinstance(row, Row)), None)
    return _noted_world(models[0]) if isinstance(models, list) and models and isinstance(models[0], str) else None


def world_of(model: str) -> Pocketworld:
    """The built-in world that a model of ours was made for; the usual one for others."""
    return _noted_world(model) or Pocketworld()


def _noted_world(model: str) -> Pocketworld | None:
    manifest = read_manifest(Path(model).expanduser()) if looks_like_path(model) else None
    noted = manifest.settings if manifest else {}
    known = {key: value for key, value in noted.items() if key.startswith("pocketworld.")}
    return load_recipe(None, flags=known).recipe.pocketworld if known else None
