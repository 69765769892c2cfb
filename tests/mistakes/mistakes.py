"""What a user did wrong, and what chatpipe says to it: the form of the corpus, and rows for its data files."""

import json
import shlex
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Mistake:
    """A command in an empty folder, with the files that lie there, and all that it says on stderr.

    `models` maps a folder's name to what kind of model lies in it (conftest.py makes them). Where `begun`, only the
    work itself shows what is wrong: the stage's folder is there, with no model in it.
    """

    name: str
    command: str
    says: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    begun: bool = False

    @property
    def words(self) -> list[str]:
        """What follows `chatpipe` on the command line."""
        return shlex.split(self.command)[1:]

    @property
    def lines(self) -> list[str]:
        """What it says, without the indentation that it has here."""
        return textwrap.dedent(self.says).strip().splitlines()


def jsonl(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def chats(count: int) -> list[dict[str, Any]]:
    """Conversations with nothing wrong."""
    return [chat(f"Question {i}?", f"Answer {i}.") for i in range(count)]


def turns(*roles: str) -> dict[str, Any]:
    """A conversation of such roles."""
    return {"messages": [{"role": role, "content": "Hello."} for role in roles]}


def pairs(count: int) -> list[dict[str, Any]]:
    """Pairs with nothing wrong."""
    return [{"prompt": f"Question {i}?", "chosen": f"Yes, {i}.", "rejected": f"No, {i}."} for i in range(count)]


def ranking(responses: list[str], ranks: list[Any], prompt: str = "Question?") -> dict[str, Any]:
    return {"prompt": prompt, "responses": responses, "ranks": ranks}
