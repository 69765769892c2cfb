from chatpipe.checks.gate import Finding

"""Conversations in short."""


def said(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def names(found: Finding | None, *facts: object) -> bool:
    """Whether a check found something, and its finding or remedy names all the facts."""
    assert found is not None
    return all(str(fact) in f"{found.what} {found.remedy}" for fact in facts)
