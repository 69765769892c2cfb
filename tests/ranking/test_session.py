"""One annotator at work: what they see, what their answers become, and what is refused."""

from pathlib import Path

import pytest
from ranked import items

from chatpipe.errors import UsageError
from chatpipe.ranking.history import History, StoreConflict
from chatpipe.ranking.items import BadAnswer
from chatpipe.ranking.session import Session, StaleTask, View, shown_order
from chatpipe.ranking.store import Store

ANSWER = {"ranks": [1, 2, 2], "all_bad": False, "flag": True, "note": "close"}
BLANK = {"ranks": [None] * 3, "all_bad": False, "flag": False, "note": ""}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "r.db"


def open_store(path: Path) -> Store:
    store = Store.create_or_open(path, items(5), seed=1, overlap=1, repeats=0.0)
    store.add_annotator("ann", "person")
    return store


@pytest.fixture
def store(path):
    with open_store(path) as store:
        yield store


@pytest.fixture
def session(store) -> Session:
    return Session(store, "ann")


def test_the_shown_order_is_stored_and_seen(store, session):
    view = session.view()
    (task,) = store.tasks("ann")
    item, order = store.item(task.item), History(store, "ann").shown_order(task)
    assert order == shown_order(1, "ann", task, 3)
    assert view.responses == [item.responses[index] for index in order]
    assert view.prompt == item.prompt
    assert (view.answer, view.done, view.left, view.seconds_per_task) == (BLANK, 0, 5, None)
    assert (view.can_undo, view.can_redo) == (False, False)


def test_a_view_identifies_no_item(store, session):
    view = session.view()
    assert not any(item.id in str(view) for item in store.items)


def test_looking_again_shows_the_same(store, session):
    assert session.view() == session.view() == Session(store, "ann").view()
    assert len(store.tasks("ann")) == 1


def test_an_answer_is_taken_in_shown_order_and_stored_in_that_of_the_file(store, session):
    view = session.view()
    session.act("key", "submit", view.task, ANSWER)
    (ranking,) = store.rankings()
    assert [ranking.item.responses[index] for index in ranking.order] == view.responses
    assert dict(zip(ranking.item.responses, ranking.ranks, strict=True)) == dict(
        zip(view.responses, [1, 2, 2], strict=True)
    )
    assert (ranking.annotator, ranking.kind, ranking.repeat, ranking.skipped) == ("ann", "person", False, None)
    assert (ranking.flag, ranking.note, ranking.all_bad) == (True, "close", False)


def test_a_half_done_answer_is_there_after_opening_again(path):
    half = {**BLANK, "ranks": [None, 1, None], "note": "so far"}
    with open_store(path) as store:
        session = Session(store, "ann")
        before = session.act("key", "edit", session.view().task, half)
    with open_store(path) as store:
        assert Session(store, "ann").view() == before
    assert before.answer == half


def test_an_action_with_the_same_key_is_done_once(store, session):
    task = session.view().task
    first = session.act("key", "submit", task, ANSWER)
    assert session.act("key", "submit", task, ANSWER) == first
    assert first.done == 1
    undone = session.act("undo", "undo", first.task, None)
    assert session.act("undo", "undo", first.task, None) == undone
    assert undone.can_redo


def test_another_action_with_the_same_key_is_refused(session):
    task = session.view().task
    session.act("key", "submit", task, ANSWER)
    with pytest.raises(StoreConflict):
        session.act("key", "submit", task, {**ANSWER, "ranks": [2, 1, 1]})


def test_a_task_that_was_answered_in_another_tab_is_stale(store, session):
    other_tab = Session(store, "ann")
    task = session.view().task
    after = other_tab.act("key", "submit", task, ANSWER)
    for action in ("edit", "submit", "skip", "undo", "redo"):
        with pytest.raises(StaleTask):
            session.act(action, action, task, ANSWER, "why")
    with pytest.raises(StaleTask):
        session.act("none", "submit", None, ANSWER)
    assert session.view() == after


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"ranks": [1, 2]}, id="too-few"),
        pytest.param({"ranks": [1, 2, 3, 3]}, id="too-many"),
        pytest.param({"ranks": [0, 1, 2]}, id="zero"),
        pytest.param({"ranks": [-1, 1, 2]}, id="negative"),
        pytest.param({"ranks": [1, 2, 4]}, id="more-than-k"),
        pytest.param({"ranks": [True, 1, 2]}, id="bool"),
        pytest.param({"ranks": [1.0, 2, 3]}, id="float"),
        pytest.param({"ranks": ["1", 2, 3]}, id="text"),
        pytest.param({"ranks": "123"}, id="no-list"),
        pytest.param({}, id="no-ranks"),
        pytest.param(None, id="nothing"),
        pytest.param([1, 2, 3], id="a-list"),
        pytest.param({"ranks": [1, 2, 3], "flag": 1}, id="flag"),
        pytest.param({"ranks": [1, 2, 3], "all_bad": None}, id="all-bad"),
        pytest.param({"ranks": [1, 2, 3], "note": 5}, id="note"),
        pytest.param({"ranks": [1, 2, 3], "note": "\ud800"}, id="surrogate"),
        pytest.param({"ranks": [1, 2, 3], "score": 7}, id="unknown-field"),
    ],
)
@pytest.mark.parametrize("action", ["edit", "submit"])
def test_what_is_no_answer_is_refused_and_nothing_stored(store, session, action, wrong):
    before = session.view()
    with pytest.raises(BadAnswer):
        session.act("key", action, before.task, wrong)
    assert session.view() == before
    assert History(store, "ann").steps() == []


@pytest.mark.parametrize(
    "ranks", [[1, 1, 3], [2, 2, 2], [2, 3, 3], [1, 3, 3], [None, 1, 2], [None] * 3], ids=lambda ranks: str(ranks)
)
def test_ranks_that_are_missing_or_leave_a_gap_can_be_kept_but_not_submitted(session, ranks):
    task = session.view().task
    with pytest.raises(BadAnswer):
        session.act("submit", "submit", task, {"ranks": ranks})
    assert session.act("edit", "edit", task, {"ranks": ranks}).answer["ranks"] == ranks


@pytest.mark.parametrize(
    "ranks, stored", [([None] * 3, [1, 1, 1]), ([None, 1, None], [2, 1, 2]), ([1, 2, 3], [1, 2, 3])]
)
def test_where_all_are_bad_what_has_no_rank_is_tied_behind_what_has_one(store, session, ranks, stored):
    view = session.view()
    session.act("key", "submit", view.task, {"ranks": ranks, "all_bad": True})
    (ranking,) = store.rankings()
    assert [ranking.ranks[index] for index in ranking.order] == stored
    assert ranking.all_bad


@pytest.mark.parametrize("reason", [None, "", "  ", 5, "\ud800"])
def test_a_skip_needs_a_reason(session, reason):
    before = session.view()
    with pytest.raises(BadAnswer):
        session.act("key", "skip", before.task, None, reason)
    assert session.view() == before


def test_a_skip_is_stored_with_its_reason_and_the_answer_so_far(store, session):
    task = session.view().task
    session.act("edit", "edit", task, {**BLANK, "note": "odd"})
    view = session.act("skip", "skip", task, None, "not my language")
    (ranking,) = store.rankings()
    assert (ranking.skipped, ranking.ranks, ranking.note) == ("not my language", [], "odd")
    assert (view.done, view.left) == (1, 4)


def test_an_unknown_action_is_refused(session):
    with pytest.raises(BadAnswer, match="there is no action erase"):
        session.act("key", "erase", session.view().task, ANSWER)


def test_undo_and_redo_too_many_and_an_edit_to_the_same_change_nothing(path):
    with open_store(path) as store:
        session = Session(store, "ann")
        view = session.view()
        assert session.act("1", "undo", None, None) == view
        assert session.act("2", "redo", view.task, None) == view
        assert session.act("3", "edit", view.task, BLANK) == view
        session.act("4", "submit", view.task, ANSWER)
        view = session.act("5", "undo", None, None)
        assert session.act("6", "edit", view.task, BLANK) == view
        assert view.can_redo
    with open_store(path) as store:
        assert Session(store, "ann").view() == view


def test_a_correction_three_rankings_back_keeps_the_later_ones(store, session):
    first = session.view()
    for number in range(3):
        session.act(f"submit {number}", "submit", session.view().task, ANSWER)
    later = session.view().task
    for number in range(3):
        view = session.act(f"undo {number}", "undo", None, None)
    assert (view.task, view.done, view.can_undo, view.can_redo) == (first.task, 0, False, True)
    view = session.act("again", "submit", first.task, {"ranks": [3, 2, 1]})
    assert (view.task, view.done, view.can_redo) == (later, 3, False)
    assert sorted(ranking.note for ranking in store.rankings()) == ["", "close", "close"]


def test_after_the_last_task_nothing_is_left_but_undo(session):
    number = 0
    while (view := session.view()).task is not None:
        session.act(f"key {number}", "submit", view.task, ANSWER)
        number += 1
    nothing = {**BLANK, "ranks": []}
    assert view == View(None, [], [], nothing, True, False, 5, 0, view.seconds_per_task)
    with pytest.raises(StaleTask):
        session.act("more", "submit", None, ANSWER)
    assert session.act("undo", "undo", None, None).left == 1


def test_the_pace_is_the_median_time_from_seeing_a_task_to_answering_it(store):
    now = 0.0
    session = Session(store, "ann", lambda: now)
    view = session.view()
    for number, seconds in enumerate([10.0, 500.0, 20.0]):
        now += seconds
        view = session.act(f"key {number}", "submit", view.task, ANSWER)
    assert view.seconds_per_task == 20.0
    assert sorted(ranking.seconds for ranking in store.rankings()) == [10.0, 20.0, 500.0]


def test_a_clock_that_goes_back_makes_no_time_negative(store):
    now = 1_000.0
    session = Session(store, "ann", lambda: now)
    view = session.view()
    now -= 60
    assert session.act("key", "submit", view.task, ANSWER).seconds_per_task == 0
    assert [ranking.seconds for ranking in store.rankings()] == [0]


def test_nobody_ranks_without_being_an_annotator(store):
    with pytest.raises(UsageError, match="knows no annotator eve"):
        Session(store, "eve")
