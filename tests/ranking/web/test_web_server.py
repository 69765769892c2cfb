import http.client
import json
import socket

import pytest

from chatpipe.errors import UsageError
from chatpipe.ranking.security import secret_beside, token_for
from chatpipe.ranking.server import open_socket


def answer(*ranks, **more):
    return {"ranks": list(ranks), **more}


def test_a_ranking_is_made_step_by_step_and_stored(server):
    view = server.view()
    assert (view["annotator"], view["done"], view["answer"]["ranks"]) == ("ann", 0, [None] * 3)
    assert server.act(action="edit", answer=answer(None, 1, None)).status == 200
    assert server.view()["answer"] == {"ranks": [None, 1, None], "all_bad": False, "flag": False, "note": ""}
    after = server.act(answer=answer(2, 1, 2, flag=True, note="close")).object
    assert after["done"] == 1
    assert after["task"] != view["task"]
    assert server.act(action="undo").object["task"] == view["task"]
    assert server.view()["answer"] == {"ranks": [None, 1, None], "all_bad": False, "flag": False, "note": ""}
    assert server.act(action="redo").object == after
    assert server.act(action="skip", reason="too long").object["done"] == 2
    assert server.steps() == [("ann", action) for action in ("edit", "submit", "undo", "redo", "skip")]


def test_the_same_key_counts_once_and_another_step_may_not_have_it(server):
    step = {"key": "same-key", "task": server.view()["task"], "answer": answer(1, 2, 3)}
    assert server.act(**step).object == server.act(**step).object
    assert server.steps() == [("ann", "submit")]
    other = server.act(**(step | {"answer": answer(3, 2, 1)}))
    assert (other.status, other.object["error"]) == (400, "the key was used for another action")
    assert server.steps() == [("ann", "submit")]


def test_another_tab_that_continued_gets_the_present_task(server):
    old = server.view()["task"]
    server.act(answer=answer(1, 2, 3))
    reply = server.act(task=old, answer=answer(3, 2, 1))
    assert reply.status == 409
    assert {**reply.object, "error": None} == server.view()
    assert server.steps() == [("ann", "submit")]


@pytest.mark.parametrize(
    "ranks",
    [
        [1, 2],
        [1, 2, 3, 4],
        [1, 3, 3],
        [0, 1, 2],
        [1, 2, -3],
        [1, 2, None],
        [1, 2, "3"],
        [1, 2, 2.0],
        [1, True, 2],
        None,
        {},
    ],
    ids=str,
)
def test_ranks_that_are_none_are_refused(server, ranks):
    reply = server.act(answer={"ranks": ranks})
    assert reply.status == 400
    assert reply.object["error"]
    assert server.steps() == []


GOOD = {
    "annotator": "ann",
    "key": "good-key",
    "action": "submit",
    "task": None,
    "answer": {"ranks": [1, 2, 3]},
    "reason": None,
}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"[" * 60_000,
        json.dumps({}),
        json.dumps({**GOOD, "more": "ben"}),
        json.dumps({**GOOD, "annotator": None}),
        json.dumps({key: value for key, value in GOOD.items() if key != "reason"}),
        json.dumps({**GOOD, "key": ""}),
        json.dumps({**GOOD, "key": "k" * 65}),
        json.dumps({**GOOD, "key": "show me now"}),
        json.dumps({**GOOD, "key": 12345678}),
        json.dumps({**GOOD, "key": "\ud800" * 8}),
        json.dumps({**GOOD, "action": "show"}),
        json.dumps({**GOOD, "action": "\ud800"}),
        json.dumps({**GOOD, "action": ["submit"]}),
        json.dumps({**GOOD, "answer": [1, 2, 3]}),
        json.dumps({**GOOD, "answer": {"ranks": [1, 2, 3], "score": 1}}),
        json.dumps({**GOOD, "answer": {"ranks": [1, 2, 3], "note": "\ud800"}}),
        json.dumps({**GOOD, "answer": {"ranks": [1, 2, 3], "note": 5}}),
        json.dumps({**GOOD, "answer": {"ranks": [1, 2, 3], "all_bad": 1}}),
        json.dumps({**GOOD, "action": "skip"}),
        json.dumps({**GOOD, "action": "skip", "reason": "  "}),
        json.dumps({**GOOD, "action": "skip", "reason": 7}),
        json.dumps({**GOOD, "answer": {"ranks": [float("nan"), 1, 2]}}),
    ],
    ids=range(27),
)
def test_a_body_that_is_no_step_is_refused_and_stores_nothing(server, body):
    task = server.view()["task"]
    body = body if isinstance(body, bytes) else body.replace('"task": null', f'"task": "{task}"').encode()
    reply = server.ask("POST", "/api/act", server.headers(), body)
    assert reply.status == 400
    assert reply.object["error"]
    assert reply.object["task"] == task
    assert server.steps() == []


def test_no_byte_that_is_sent_reveals_model_stage_score_round_item_or_store(server):
    for name in ("ann", "ben"):
        for _ in range(5):
            server.act(name, answer=answer(1, 2, 2))
        server.act(name, action="skip", reason="no")
        server.act(name, action="undo")
        server.act(name, action="redo")
        server.act(name, answer=answer(0, 0, 0))
    server.ask("POST", "/api/act", server.headers(), b"{")
    for path in ("/", "/rank.js", "/rank.css", "/icon.svg", "/missing"):
        server.ask("GET", path, server.headers(Origin=None))
    server.store.path.rename(server.store.path.with_name("moved"))
    assert server.act(action="undo").status == 503
    server.store.path.with_name("moved").rename(server.store.path)
    for reply in server.asked:
        sent = f"{reply.headers}".encode() + reply.body
        assert [text for text in server.hidden() if text.encode() in sent] == []


def test_the_answers_have_another_order_for_each_annotator(server):
    seen = {name: {} for name in ("ann", "ben")}
    for name, responses in seen.items():
        while (view := server.view(name))["task"]:
            responses[view["prompt"][-1]["content"]] = view["responses"]
            server.act(name, answer=answer(1, 2, 3))
    assert seen["ann"].keys() == seen["ben"].keys()
    assert len(seen["ann"]) == 30
    assert 0 < sum(seen["ann"][prompt] == seen["ben"][prompt] for prompt in seen["ann"]) < 30


def test_what_cannot_be_stored_is_not_acknowledged_and_can_be_sent_again(server, capsys):
    step = {"key": "again-key", "task": server.view()["task"], "answer": answer(1, 2, 3)}
    pages = server.store._connection.execute("PRAGMA page_count").fetchone()[0]
    server.store._connection.execute(f"PRAGMA max_page_count = {pages}")
    full = {"note": "x" * 20_000}
    reply = server.act(**(step | {"answer": answer(1, 2, 3, **full)}))
    assert reply.status == 503
    assert reply.object == {"error": "the server could not store it; whoever started chatpipe rank can read why"}
    assert server.act(**(step | {"answer": answer(1, 2, 3, **full)})).status == 503
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert f"Nothing was stored in {server.store.path}: database or disk is full." in said
    assert server.steps() == []
    server.store._connection.execute("PRAGMA max_page_count = 1000000")
    assert server.act(**(step | {"answer": answer(1, 2, 3, **full)})).status == 200
    assert server.steps() == [("ann", "submit")]


def test_small_answers_are_sent_at_once(server):
    """Without TCP_NODELAY, the second part of an answer waits for the browser's delayed acknowledgement (40 ms)."""
    page = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    page.request("GET", "/api/view", headers={"Cookie": dict(server.headers())["Cookie"]})
    assert page.getresponse().status == 200
    [connection] = server.connections
    served = connection.transport.get_extra_info("socket")
    assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    page.close()


@pytest.mark.parametrize("action", ["submit", "undo"])
def test_a_step_of_a_page_whose_browser_belongs_to_another_by_now_is_not_taken(server, action):
    server.act("ben", answer=answer(1, 2, 3))
    theirs = server.view("ben")
    task = theirs["task"] if action == "submit" else None
    reply = server.act("ben", annotator="ann", action=action, task=task, answer=answer(1, 2, 3))
    assert (reply.status, reply.object["error"]) == (409, "this browser belongs to ben now")
    assert {**reply.object, "error": None} == theirs
    assert server.steps() == [("ben", "submit")]


def test_a_port_that_is_held_is_nobody_elses_before_the_server_runs():
    with open_socket("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1, port {port}: Address already in use"):
            open_socket("127.0.0.1", port)


def test_two_servers_on_one_store_are_one_too_many(serve):
    serve()
    with pytest.raises(UsageError, match="Another chatpipe"):
        serve()


def test_a_token_is_the_same_at_every_start(tmp_path):
    secret = secret_beside(tmp_path / "r.db")
    assert secret_beside(tmp_path / "r.db") == secret
    assert (tmp_path / "r.db.key").stat().st_mode & 0o777 == 0o600
    token = token_for(secret, "ann")
    assert len(token) == 32
    assert token != token_for(secret, "ben")
    assert token != token_for(secret_beside(tmp_path / "other.db"), "ann")
    (tmp_path / "r.db.key").write_bytes(b"torn")
    assert secret_beside(tmp_path / "r.db") != secret
