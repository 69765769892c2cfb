"""The registry of built-in worlds: data sources that chatpipe makes itself, each with an oracle that scores answers.

    world = world_named("pocketworld", recipe.worlds)
    world.documents(); world.conversations(); world.prompts("validation")
    world.oracle().rate(prompt, "Mara works as a baker.").score

`source: NAME` in a recipe reads a world, and `rank.rater: NAME` ranks with its oracle. The rest of chatpipe asks this
registry and knows no world by its name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from chatpipe.data.row_files import Split
from chatpipe.pocketworld import PocketworldSource
from chatpipe.recipe.schema import POCKETWORLD, DataBlock
from chatpipe.recipe.section import Section

Worlds = Mapping[str, Section]
"""The settings of each world by its name: `Recipe.worlds`."""


class Rating(Protocol):
    """An oracle's opinion of one completion."""

    @property
    def score(self) -> float:
        """How good the completion is, on the oracle's own scale."""

    @property
    def right(self) -> bool | None:
        """Whether the answer is correct; None where the prompt has no correct answer."""

    @property
    def kind(self) -> str:
        """The kind of prompt, by which the share of correct answers is reported."""


class Oracle(Protocol):
    """Scores completions of a world's prompts by the truth."""

    @property
    def made_from(self) -> str:
        """Identifies the oracle: two with the same text give the same scores."""

    def rate(self, prompt: list[dict[str, str]], completion: str, ended: bool = True) -> Rating:
        """Rates one completion; `ended` is False where it was cut off. Raises `UsageError` for a foreign prompt."""

    def chance(self) -> float:
        """The accuracy of the best guesser who knows none of the facts."""


class WorldSource(Protocol):
    """Everything that a built-in world offers."""

    def documents(self) -> Sequence[str]:
        """Running text for pretraining."""

    def conversations(self) -> Iterable[list[dict[str, str]]]:
        """Conversations for fine-tuning; each ends with the assistant."""

    def prompts(self, split: Split) -> Sequence[list[dict[str, str]]]:
        """The prompts of one split; no prompt is in both."""

    def oracle(self) -> Oracle:
        """The scorer that knows what is true in this world."""

    def summary(self) -> str:
        """The size of the world in a few words, for `chatpipe check`."""


WORLDS: Mapping[str, Callable[..., WorldSource]] = {POCKETWORLD: PocketworldSource}
"""Each world takes its recipe section as keyword arguments."""


def is_world(name: str) -> bool:
    """Whether a source or a rater of this name is a built-in world."""
    return name in WORLDS


def world_named(name: str, worlds: Worlds) -> WorldSource:
    """The world of that name with its settings. Raises `UsageError` where the settings cannot be used."""
    return WORLDS[name](**worlds[name].model_dump())


def worlds_read(blocks: Sequence[DataBlock] | None) -> list[str]:
    """The names of the worlds that some of `blocks` read, each once."""
    return list(dict.fromkeys(block.source for block in blocks or () if is_world(block.source)))


def only_world(blocks: Sequence[DataBlock] | None) -> str | None:
    """The world that all of `blocks` read; None where they read anything else too."""
    sources = {block.source for block in blocks or ()}
    name = sources.pop() if len(sources) == 1 else ""
    return name if is_world(name) else None


def world_settings(blocks: Sequence[DataBlock] | None, worlds: Worlds) -> dict[str, dict[str, Any]]:
    """The settings of the worlds that `blocks` read, as JSON: part of the fingerprint of whatever is made of them."""
    return {name: worlds[name].model_dump(mode="json") for name in worlds_read(blocks)}
