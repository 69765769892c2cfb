"""The built-in world: text, conversations and prompts about a small village, and an oracle that knows the facts."""

from typing import Literal

from chatpipe.pocketworld.oracle import Oracle
from chatpipe.pocketworld.questions import Message
from chatpipe.pocketworld.texts import conversations, documents, prompts
from chatpipe.pocketworld.world import Split, World

__all__ = ["PocketworldSource"]

MAX_PROMPTS = 2000
"""Prompts of each split."""

SPLITS: dict[str, Split] = {"train": "practice", "validation": "test"}
"""The people of validation prompts are not those of training prompts."""


class PocketworldSource:
    """One pocketworld; the arguments are the keys of the recipe section `pocketworld`."""

    def __init__(self, seed: int, people: int, documents: int, conversations: int) -> None:
        """Raises `UsageError` where there cannot be as many people."""
        self.world = World.build(seed=seed, people=people)
        self._seed, self._documents, self._conversations = seed, documents, conversations

    def documents(self) -> list[str]:
        """Paragraphs that state every fact about everybody in many wordings."""
        return documents(self.world, self._documents, self._seed)

    def conversations(self) -> list[list[Message]]:
        """Conversations of mixed quality; each ends with an answer."""
        return conversations(self.world, self._conversations, self._seed)

    def prompts(self, split: Literal["train", "validation"]) -> list[list[Message]]:
        """Different questions about the people of one split, at most `MAX_PROMPTS`."""
        return prompts(self.world, SPLITS[split], MAX_PROMPTS, self._seed)

    def oracle(self) -> Oracle:
        """The scorer that knows the facts."""
        return Oracle(self.world)

    def summary(self) -> str:
        """How many people live in the world."""
        return f"{len(self.world.people)} people"
