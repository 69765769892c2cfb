"""What stands in the tables of a store, held to what a store writes: disks flip bits, and files are edited by hand."""

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from chatpipe.ranking.history import MOVES, STEPS, Event
from chatpipe.ranking.items import Item, item_id
from chatpipe.ranking.said import BadAnswer, read_answer

Kind = Literal["person", "program"]

_EVENT_COLUMNS = "seq, time, annotator, action, task, body, key"


class Damaged(Exception):
    """What stands in a store was not written by one; the message says where."""


@dataclass(frozen=True)
class Annotator:
    """Who ranks."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Settings:
    """How the items of a store are given out: see `Store.create_or_open`.

    `salt` is what nobody can guess, for what annotators may see but not see through; empty where there is none yet.
    """

    seed: int
    overlap: int
    repeats: float
    salt: bytes


@contextmanager
def sound(what: str) -> Iterator[None]:
    """Whatever a block stumbles over in `what` it read becomes `Damaged`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, BadAnswer) as problem:
        raise Damaged(f"{what} makes no sense") from problem


def settings_in(connection: sqlite3.Connection) -> Settings:
    """The settings of the store. Raises `Damaged`, as all of these."""
    with sound("the table of settings"):
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        salt = bytes.fromhex(meta.get("salt", ""))
        return Settings(int(meta["seed"]), int(meta["overlap"]), float(meta["repeats"]), salt)


def items_in(connection: sqlite3.Connection) -> list[Item]:
    """The items in the order of their file; an item's id is a hash of its texts, so these are what was put in."""
    items = []
    for id, prompt, responses, made_in in connection.execute(
        "SELECT id, prompt, responses, round FROM items ORDER BY position"
    ):
        with sound(f"item {id}"):
            item = Item(id, json.loads(prompt), json.loads(responses), made_in)
            _expect(item.id == item_id(item.prompt, item.responses))
            _expect(made_in is None or isinstance(made_in, int))
            items.append(item)
    return items


def annotators_in(connection: sqlite3.Connection) -> Iterator[Annotator]:
    """The annotators in the order in which they came."""
    for name, kind in connection.execute("SELECT name, kind FROM annotators ORDER BY rowid"):
        with sound(f"annotator {name}"):
            _expect(isinstance(name, str) and kind in ("person", "program"))
        yield Annotator(name, kind)


def events_in(connection: sqlite3.Connection, annotator: str | None = None) -> list[Event]:
    """The events of one annotator, or of all, in the order in which they came."""
    chosen, values = ("", ()) if annotator is None else ("WHERE annotator = ?", (annotator,))
    rows = connection.execute(f"SELECT {_EVENT_COLUMNS} FROM events {chosen} ORDER BY seq", values)
    return list(map(_event, rows))


def event_of_key(connection: sqlite3.Connection, annotator: str, key: str) -> Event | None:
    """The event that an annotator's key was used for."""
    row = connection.execute(
        f"SELECT {_EVENT_COLUMNS} FROM events WHERE annotator = ? AND key = ?", (annotator, key)
    ).fetchone()
    return None if row is None else _event(row)


def check_event(event: Event, k: int) -> None:
    """Stumbles (see `sound`) over an event that says nothing of `k` responses."""
    if event.action == "show":
        _expect(sorted(event.body["order"]) == list(range(k)))
    elif event.action in STEPS:
        said = read_answer(event.body["answer"], range(k))
        _expect(event.action != "submit" or said.complete() == said)
        _expect(isinstance(event.body.get("reason"), str) == (event.action == "skip"))
    else:
        _expect(event.action in MOVES)


def _event(row: tuple[Any, ...]) -> Event:
    seq, at, annotator, action, task, body, key = row
    with sound(f"event {seq}"):
        event = Event(seq, at, annotator, action, task, json.loads(body), key)
        _expect(math.isfinite(at) and isinstance(event.body, dict))
        _expect(all(isinstance(text, str) for text in (annotator, action, key, task or "")))
    return event


def _expect(holds: bool) -> None:
    if not holds:
        raise ValueError
