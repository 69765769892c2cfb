"""Rows of a completions file to rank."""

from typing import Any


def row(k: int, number: int = 0) -> dict[str, Any]:
    """Something to rank with `k` answers, each of which names its own number."""
    prompt = [{"role": "user", "content": f"Question {number}?"}]
    return {"prompt": prompt, "responses": [f"Answer {i} to {number}." for i in range(k)]}
