"""Conversations in short."""


def said(*texts: str, system: str = "") -> list[dict[str, str]]:
    """What user and assistant say in turn."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns
