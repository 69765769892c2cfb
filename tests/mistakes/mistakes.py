"""What a user did wrong, and the facts that the error names: the form of the corpus, and rows for its data files."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Mistake:
    """A command in an empty folder with some files, and the facts that its error names.

    `names`: the place (file:line, recipe key, folder) and the numbers, then after ` -> ` the keys, options or commands
    that mend it; each part is one fact, parted by a comma and a space. `models` maps a folder's name to what kind of
    model lies in it (conftest.py makes them). Where `begun`, only the work itself shows what is wrong: the stage's
    folder exists, and there is no model in it.
    """

    name: str
    command: str
    names: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    begun: bool = False

    @property
    def words(self) -> list[str]:
        """What follows `chatpipe` on the command line."""
        return shlex.split(self.command)[1:]

    def missing_facts(self, error: str) -> list[str]:
        """The facts that `error` does not name."""
        facts = [fact for part in self.names.split(" -> ") for fact in part.split(", ") if fact]
        return [fact for fact in facts if not re.search(rf"(?<![\w]){re.escape(fact)}(?![\w])", error)]


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
