"""A store that was made when annotators had a column for the hash of their token, and stores had no salt."""

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
from ranked import items, open_store

from chatpipe.ranking.records import Annotator
from chatpipe.ranking.session import Session
from chatpipe.ranking.standing import standing_rankings
from chatpipe.ranking.store import Store

TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA application_id = 1918987883;
PRAGMA user_version = 1;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL,\
 responses TEXT NOT NULL, round INTEGER);
CREATE TABLE annotators (name TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('person', 'program')),\
 token_sha256 TEXT, created REAL NOT NULL);
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL,\
 annotator TEXT NOT NULL REFERENCES annotators (name), action TEXT NOT NULL, task TEXT, body TEXT NOT NULL,\
 key TEXT NOT NULL, UNIQUE (annotator, key));
CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are only added'); END;
CREATE TRIGGER events_hold BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are only added'); END;
"""
ITEMS = items(3)


@pytest.fixture
def path(work) -> Path:
    """The store: ann has ranked the first of three items."""
    first = ITEMS[0].id
    answer = {"ranks": [2, 1, 2], "all_bad": False, "flag": False, "note": ""}
    with contextlib.closing(sqlite3.connect(work / "r.db")) as older:
        older.executescript(TABLES)
        with older:
            older.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [("seed", "0"), ("created", "5.0"), ("overlap", "2"), ("repeats", "0.05")],
            )
            older.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
                [
                    (position, item.id, json.dumps(item.prompt), json.dumps(item.responses), None)
                    for position, item in enumerate(ITEMS)
                ],
            )
            older.execute("INSERT INTO annotators VALUES ('ann', 'person', 'f00d', 6.0)")
            older.executemany(
                "INSERT INTO events (time, annotator, action, task, body, key) VALUES (?, 'ann', ?, ?, ?, ?)",
                [
                    (7.0, "show", first, json.dumps({"order": [2, 0, 1]}), f"show {first}"),
                    (9.0, "submit", first, json.dumps({"answer": answer}), "submit"),
                ],
            )
    return work / "r.db"


def test_it_is_exported_and_told_of(chatpipe, path):
    assert chatpipe("rankings", "export", path, "-o", "r.jsonl", "--json").object["annotators"] == {"ann": 1}
    (line,) = (path.parent / "r.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "prompt": ITEMS[0].prompt,
        "responses": ITEMS[0].responses,
        "ranks": [2, 1, 2],
        "annotator": "ann",
        "kind": "person",
    }
    told = chatpipe("rankings", "stats", path, "--json").object["people"]["annotators"]["ann"]
    assert (told["rankings"], told["median_seconds"]) == (1, 2.0)


def test_it_gets_a_salt_and_goes_on(path):
    with Store.read(path) as store:
        assert store.salt == b""
    with open_store(path, ITEMS) as store:
        assert len(store.salt) == 32
        session = Session(store, "ann")
        view = session.view()
        assert view.done == 1
        session.act("next", "submit", view.task, {"ranks": [1, 2, 3]})
        store.add_annotator("ben", "person")
    with Store.read(path) as store:
        first, second = standing_rankings(store)
        assert (first.annotator, first.item, first.ranks) == ("ann", ITEMS[0], [2, 1, 2])
        assert (second.annotator, sorted(second.ranks)) == ("ann", [1, 2, 3])
        assert store.annotators() == [Annotator("ann", "person"), Annotator("ben", "person")]
