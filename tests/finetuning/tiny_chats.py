"""What the tests of fine-tuning learn from."""

from collections.abc import Iterator

CONTEXT = 96


def conversation(number: int, exchanges: int = 1) -> list[dict[str, str]]:
    turns = []
    for exchange in range(exchanges):
        turns += [
            {"role": "user", "content": f"Who is Mara {number}?"},
            {"role": "assistant", "content": "Mara is a baker." + " She is." * ((number + exchange) % 5)},
        ]
    return turns


def conversations(count: int) -> Iterator[tuple[list[dict[str, str]], bool]]:
    """With the side they are on: every tenth is held out."""
    return ((conversation(number), number % 10 == 0) for number in range(count))
