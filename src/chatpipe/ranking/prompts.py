"""The prompts that models answer for ranking, outside of a run."""

from pathlib import Path

from pydantic import TypeAdapter

from chatpipe.checkpoints import read_manifest
from chatpipe.data.load import Conversation, stream_rows
from chatpipe.data.report import Report
from chatpipe.errors import UsageError
from chatpipe.models.folder import looks_like_path
from chatpipe.recipe.loading import load_recipe
from chatpipe.recipe.schema import POCKETWORLD, Data, Pocketworld

KEY = "--prompts"


def read_prompts(source: str, model: str) -> list[Conversation]:
    """Different prompts, in order; of the built-in world those to practise on, in the world that `model` knows.

    Says what was left out. Raises `UsageError` where there are none.
    """
    blocks = TypeAdapter(Data).validate_python(source)
    report = Report()
    for_practice = [block.source for block in blocks] == [POCKETWORLD]
    stream = stream_rows("prompts", blocks, world_of(model), KEY, report)
    prompts = [prompt for prompt, held_out in stream if not (for_practice and held_out)]
    report.say()
    if not prompts:
        raise UsageError(f"{KEY}: no row of {source} can be used.", 'Give rows like {"prompt": "..."}.')
    return prompts


def world_of(model: str) -> Pocketworld:
    """The built-in world that a model of ours was made for; the usual one for others."""
    manifest = read_manifest(Path(model).expanduser()) if looks_like_path(model) else None
    noted = manifest.settings if manifest else {}
    known = {key: value for key, value in noted.items() if key.startswith("pocketworld.")}
    return load_recipe(None, flags=known).recipe.pocketworld
