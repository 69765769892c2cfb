"""What is sent again, at whatever moment, changes nothing: a page repeats each step until it hears an answer."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import items, open_store

from chatpipe.ranking.history import History, Step, StoreConflict
from chatpipe.ranking.items import BadAnswer
from chatpipe.ranking.session import Session, StaleTask, View
from chatpipe.ranking.store import Store

ANSWERS = st.sampled_from(
    [{"ranks": ranks, "note": note} for ranks in ([1, 2, 2], [2, 1, 3], [None, 1, None]) for note in ("", "odd")]
)
MOVES = st.fixed_dictionaries(
    {"action": st.sampled_from(["undo", "undo", "redo"]), "answer": st.none(), "has_token": st.booleans()}
)
STEPS = st.fixed_dictionaries({"action": st.sampled_from(["edit", "edit", "submit"]), "answer": ANSWERS})
SKIPS = st.fixed_dictionaries({"action": st.just("skip"), "answer": st.none() | ANSWERS, "reason": st.just("why")})
SCRIPTS = st.lists(st.tuples(STEPS | MOVES | SKIPS, st.lists(st.integers(0, 30), max_size=3)), max_size=12)

Request = dict[str, Any]


def request(number: int, said: Request, view: View) -> Request:
    """What the page sends of it, looking at `view`."""
    said = {"reason": None, "has_token": True, **said}
    task = view.task if said.pop("has_token") else None
    return {"key": f"key {number}", "task": task, **said}


def steps(store: Store) -> list[Step]:
    return History(store, "ann").steps()


@settings(max_examples=30, deadline=None)  # each example is made on a disk
@given(SCRIPTS)
def test_steps_that_are_sent_again_at_any_time_change_nothing(script):
    with tempfile.TemporaryDirectory() as folder:
        once, again = (open_store(Path(folder) / f"{name}.db", items(2)) for name in ("once", "again"))
        with once, again:
            again.salt = once.salt  # the tokens of one are those of the other
            for store in (once, again):
                store.add_annotator("ann", "person")
            plain, repeated = (Session(store, "ann", clock=lambda: 0.0) for store in (once, again))
            sent: list[Request] = []
            for number, (said, resent) in enumerate(script):
                step = request(number, said, plain.view())
                try:
                    view = plain.act(**step)
                except (BadAnswer, StaleTask) as refused:
                    with pytest.raises(type(refused)):
                        repeated.act(**step)
                    continue
                assert repeated.act(**step) == view
                sent.append(step)
                for place in resent:
                    assert repeated.act(**sent[place % len(sent)]) == view
            assert steps(again) == steps(once)
            expected = [one.ranks for one in once.rankings()], History(once, "ann").current()
        with Store.read(Path(folder) / "again.db") as read:
            assert ([one.ranks for one in read.rankings()], History(read, "ann").current()) == expected


@pytest.fixture
def store(work):
    with open_store(work / "r.db", items(3)) as store:
        store.add_annotator("ann", "person")
        yield store


@pytest.fixture
def session(store) -> Session:
    return Session(store, "ann")


@pytest.mark.parametrize("move", ["undo", "redo"])
def test_a_move_that_had_nothing_to_do_does_nothing_later_either(session, move):
    task = session.view().task
    session.act("too many", move, None, None)
    view = session.act("submit", "submit", task, {"ranks": [1, 2, 2]})
    if move == "redo":
        view = session.act("undo", "undo", None, None)
    assert session.act("too many", move, None, None) == view


def test_an_edit_that_changed_nothing_does_nothing_later_either(session):
    task = session.view().task
    session.act("1", "edit", task, {"ranks": [1, None, None]})
    session.act("same", "edit", task, {"ranks": [1, None, None]})
    view = session.act("2", "edit", task, {"ranks": [1, 2, None]})
    assert session.act("same", "edit", task, {"ranks": [1, None, None]}) == view


def test_a_skip_without_an_answer_is_the_same_skip_after_the_answer_has_changed(store, session):
    task = session.view().task
    session.act("skip", "skip", task, None, "why")
    session.act("undo", "undo", None, None)
    view = session.act("edit", "edit", task, {"ranks": [1, 2, 2]})
    before = steps(store)
    assert session.act("skip", "skip", task, None, "why") == view
    for reason, answer in (("because", None), ("why", {"ranks": [1, 2, 2]})):
        with pytest.raises(StoreConflict):
            session.act("skip", "skip", task, answer, reason)
    assert steps(store) == before


@pytest.mark.parametrize(
    "other",
    [
        ("submit", {"ranks": [2, 1, 1]}, None),
        ("edit", {"ranks": [1, 2, 2]}, None),
        ("skip", None, "why"),
        ("undo", None, None),
        ("redo", None, None),
    ],
    ids=lambda other: other[0],
)
def test_a_key_is_refused_for_anything_but_what_it_was_used_for(store, session, other):
    task = session.view().task
    session.act("key", "submit", task, {"ranks": [1, 2, 2]})
    before, view = steps(store), session.view()
    with pytest.raises(StoreConflict):
        session.act("key", other[0], task, *other[1:])
    assert (steps(store), session.view()) == (before, view)
