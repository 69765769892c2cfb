"""The built-in world: running text, conversations and prompts about a small village, and raters who know the truth."""

from chatpipe.pocketworld.conversations import conversations, prompts
from chatpipe.pocketworld.gold import GoldRater, Rating
from chatpipe.pocketworld.guessing import chance_of_guessing
from chatpipe.pocketworld.simulated_people import rank
from chatpipe.pocketworld.text import documents
from chatpipe.pocketworld.world import Person, World

__all__ = [
    "GoldRater",
    "Person",
    "Rating",
    "World",
    "chance_of_guessing",
    "conversations",
    "documents",
    "prompts",
    "rank",
]
