"""The people who rank: their names, and how far they have come together."""

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatpipe.errors import UsageError
from chatpipe.ranking.store import Store, check_name
from chatpipe.ranking.tables import has_begun


def login_name() -> str:
    """The name of who is logged in. Raises `UsageError` where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as problem:
        raise UsageError("The system does not say who you are.", "Give your name: --annotator NAME.") from problem


def read_names(text: str) -> list[str]:
    """The names in `a,b,c`. Raises `UsageError` where one is empty or given twice."""
    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise UsageError(
            f"--annotators {text!r}: a name is empty or given twice.", "Give names with commas between: ann,ben."
        )
    return names


def names_of(annotator: str | None, annotators: str | None) -> list[str]:
    """Who ranks: `annotators` (`a,b,c`), or `annotator`, or who is logged in. Raises `UsageError`."""

    def one() -> str:
        return login_name() if annotator is None else annotator

    names = [one()] if annotators is None else read_names(annotators)
    for name in names:
        check_name(name)
    return names


@dataclass(frozen=True)
class Progress:
    """How far a store has come: `settled` items need no more rankings, or none of these annotators could give one."""

    items: int
    settled: int
    done: dict[str, int]
    """What each annotator has ranked or skipped, hidden repeats with it."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to rank."""
        return self.settled == self.items

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {"items": self.items, "settled": self.settled, "complete": self.is_complete, "done": self.done}


def progress_of(store: Store, names: Sequence[str]) -> Progress:
    """How far `names`, all of them annotators of the store, have come."""
    histories = [store.histories[name] for name in names]
    settled = [
        item
        for item in store.items
        if store.answers[item.id] >= store.overlap or all(item.id in history.standing for history in histories)
    ]
    return Progress(len(store.items), len(settled), {name: len(store.histories[name].standing) for name in names})


def who_ranked(path: Path) -> list[str]:
    """The people who did something in the store at `path`, be it undone since; none where there is no store."""
    if not has_begun(path):
        return []
    with Store.read(path) as store:
        people = [known.name for known in store.annotators() if known.kind == "person"]
        return [name for name in people if any(event.action != "show" for event in store.events(name))]
