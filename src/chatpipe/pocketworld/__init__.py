"""The built-in world: text, conversations and prompts about a small village, and an oracle that knows the facts."""

from chatpipe.pocketworld.source import PocketworldSource

__all__ = ["PocketworldSource"]
