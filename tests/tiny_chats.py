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


def conversations(count: int) -> Iterator[tuple[list[dict[str, str]], str]]:
    """Conversations with their split: every tenth is for validation."""
    return ((conversation(number), "train" if number % 10 else "validation") for number in range(count))
