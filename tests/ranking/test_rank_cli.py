import io
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from http.cookies import SimpleCookie

import pytest
from transformers.utils import logging

from chatpipe.ranking.server import own_address
from chatpipe.ranking.store import Store


@pytest.fixture
def completions(work):
    rows = ({"prompt": f"Question {i}?", "responses": [f"Yes {i}.", f"No {i}."]} for i in range(4))
    (work / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "c.jsonl"


@pytest.fixture
def refused(work, listing, chatpipe):
    """Runs a command that must be refused, and returns its message: short, with nothing written."""

    def refused(*words):
        before = listing()
        said = chatpipe(*words)
        assert said.code == 2, said.err
        assert said.out == ""
        assert 1 < len(said.err.splitlines()) <= 8
        assert listing() == before
        return said.err

    return refused


def test_a_terminal_session_leaves_its_store_next_to_the_file(chatpipe, completions, work, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 2\n2 1\nquit\n"))
    said = chatpipe("rank", completions, "--terminal", "--annotator", "ann", "--repeats", 0, "--json")
    assert said.object == {
        "store": "c.rankings.db",
        "items": 4,
        "settled": 2,
        "complete": False,
        "done": {"ann": 2},
    }
    assert "2 of 4 items are ranked; the rankings are in c.rankings.db." in said.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("bad\nskip unclear\n"))
    said = chatpipe("rank", completions, "--terminal", "--annotator", "ann", "--repeats", 0, "--json")
    assert said.object["complete"]


def test_a_wrong_line_of_a_pipe_is_an_error_that_names_it(chatpipe, completions, work, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 2\n1 3\n2 1\n"))
    said = chatpipe("rank", completions, "--terminal", "--annotator", "ann", "--repeats", 0, "--json")
    assert (said.code, said.out) == (2, "")
    assert "error: Line 2 of the input, '1 3', cannot be used: the answers are 1 to 2." in said.err
    with Store.read(work / "c.rankings.db") as store:
        assert len(store.rankings()) == 1


def test_a_closed_input_and_a_folder_as_store_are_reported(refused, completions, monkeypatch, work):
    (work / "folder").mkdir()
    assert "The store folder would be a file" in refused("rank", completions, "--terminal", "--store", "folder")
    monkeypatch.setattr(sys, "stdin", None)
    assert "There is no input to read rankings from" in refused("rank", completions, "--terminal")


def test_ctrl_c_in_the_terminal_keeps_what_was_ranked(chatpipe, completions, monkeypatch):
    lines = iter(["1 2"])

    def type_line(prompt):
        for line in lines:
            return line
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", type_line)
    said = chatpipe("rank", completions, "--terminal", "--json")
    assert said.code == 130
    assert json.loads(said.out)["settled"] == 1
    assert said.err.endswith(
        "error: Stopped: 1 of 4 items are ranked; the rankings are in c.rankings.db.\n"
        "Everything shown as saved is kept; the same command continues.\n"
    )


@pytest.mark.parametrize(
    "words, says",
    [
        (["--annotator", "ann", "--annotators", "ann,ben"], "--annotator is one person, --annotators are several"),
        (["--annotators", "ann,,ben"], "a name is empty or given twice"),
        (["--annotators", "ann,ann"], "a name is empty or given twice"),
        (["--annotators", "ann,b\tc", "--port", 0], "'b\\tc' cannot be an annotator's name"),
        (["--annotator", "b\tc", "--terminal"], "'b\\tc' cannot be an annotator's name"),
        (["--annotator", "b\tc", "--rater", "pocketworld"], "'b\\tc' cannot be an annotator's name"),
        (["--annotator", ""], "'' cannot be an annotator's name"),  # as of a shell variable that is not set
        (["--annotator", "", "--rater", "pocketworld"], "'' cannot be an annotator's name"),
        (["--annotators", ""], "a name is empty or given twice"),
        (["--annotators", "", "--rater", "pocketworld"], "--rater is a program"),
        (["--annotators", "", "--annotator", "ann"], "--annotator is one person, --annotators are several"),
        (["--terminal", "--annotators", "ann,ben"], "--terminal is for one person"),
        (["--terminal", "--temperature", 1], "--temperature is the noise of a --rater"),
        (["--terminal", "--port", 80], "--host and --port are those of the page"),
        (["--rater", "m:f", "--host", "0.0.0.0"], "--host and --port are those of the page"),
        (["--rater", "pocketworld", "--terminal"], "--rater is a program"),
        (["--rater", "no/such/model"], "no/such/model"),
        (["--host", "0.0.0.0"], "each of them needs an address"),
        (["--host", "192.0.2.1", "--annotators", "ann"], "cannot be served at 192.0.2.1, port 8642"),
    ],
)
def test_a_command_that_does_not_fit_is_refused(refused, completions, words, says):
    assert says in refused("rank", completions, *words)


def test_a_reward_model_is_read_without_the_progress_bars_of_libraries(chatpipe, completions, tiny_run):
    logging.enable_progress_bar()  # as in a process of its own; other tests have turned them off
    said = chatpipe("rank", completions, "--rater", tiny_run.folder / "rm", "--annotator", "rm", "--json")
    assert said.object["ranked"] == 4
    assert said.err == (
        "rank: c.jsonl read as completions: 4 rows, 0 left out\nrm ranked 4 of 4 items, kept in c.rankings.db.\n"
    )


def test_a_folder_without_a_name_needs_a_store_with_one(refused, chatpipe, completions, monkeypatch):
    assert "error: . is a folder." in refused("rank", ".", "--terminal")
    monkeypatch.setattr(sys, "stdin", io.StringIO("quit\n"))
    assert chatpipe("rank", ".", "--store", "r.db", "--terminal", "--json").object["items"] == 4


def test_a_program_ranks_into_the_same_store_and_continues(chatpipe, completions, work, monkeypatch):
    code = "def by_length(prompts, completions): return [len(text) for text in completions]"
    (work / "raters_of_the_test.py").write_text(code)
    monkeypatch.syspath_prepend(work)
    words = ("rank", completions, "--rater", "raters_of_the_test:by_length", "--annotator", "length", "--json")
    expected = {"store": "c.rankings.db", "items": 4, "annotator": "length", "skipped": {}}
    assert chatpipe(*words).object == {**expected, "ranked": 4, "before": 0}
    assert chatpipe(*words).object == {**expected, "ranked": 0, "before": 4}
    with Store.read(work / "c.rankings.db") as store:
        rankings = store.rankings()
    assert {(ranking.annotator, ranking.kind, tuple(ranking.ranks)) for ranking in rankings} == {
        ("length", "program", (1, 2))
    }
    # Next to people, what a program ranked is still to be ranked.
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 2\n"))
    said = chatpipe("rank", completions, "--terminal", "--annotator", "ann", "--json")
    assert (said.object["settled"], said.object["items"]) == (1, 4)


def test_a_port_that_is_taken_is_reported(refused, completions):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("rank", completions, "--port", port)
    assert f"The page cannot be served at 127.0.0.1, port {port}: Address already in use." in said
    assert "--port" in said


def test_a_file_that_is_missing_or_holds_nothing_to_rank_is_reported(refused, work):
    assert "missing.jsonl" in refused("rank", "missing.jsonl", "--port", 0)
    (work / "empty.jsonl").write_text("")
    assert "empty.jsonl" in refused("rank", "empty.jsonl", "--port", 0)
    (work / "one.jsonl").write_text(json.dumps({"prompt": "Q", "responses": ["A"]}) + "\n")
    assert "one.jsonl" in refused("rank", "one.jsonl", "--port", 0)


def test_a_store_of_another_file_is_refused(chatpipe, completions, work, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("quit\n"))
    assert chatpipe("rank", completions, "--terminal").code == 0
    (work / "d.jsonl").write_text(json.dumps({"prompt": "Q", "responses": ["A", "B"]}) + "\n")
    said = chatpipe("rank", "d.jsonl", "--store", "c.rankings.db", "--terminal")
    assert (said.code, said.out) == (2, "")
    assert "c.rankings.db was made from another completions file" in said.err


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_it_names_what_to_install(refused, completions, monkeypatch, missing):
    for name in list(sys.modules):
        if name in ("chatpipe.ranking.server", "chatpipe.ranking.security"):
            monkeypatch.delitem(sys.modules, name)
        elif name.partition(".")[0] == missing:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    said = refused("rank", completions)
    assert f"The ranking page needs the package {missing}." in said
    assert "pip install 'chatpipe[web]'" in said


def ask(address, cookie=None):
    request = urllib.request.Request(address, headers={"Cookie": cookie} if cookie else {})
    return urllib.request.urlopen(request, timeout=10)


# Starts the command line as it is, and prints at the end whether torch was loaded.
PROGRAM = """
import atexit, sys
atexit.register(lambda: print("loaded:", *sorted(sys.modules.keys() & {"torch", "transformers"}), file=sys.stderr))
from chatpipe.cli.app import main
main()
"""


@pytest.fixture
def start(work):
    """Starts the command as a process, and returns it with what it printed until it serves."""
    started = []

    def start(*words):
        command = [sys.executable, "-c", PROGRAM, "rank", *map(str, words)]
        started.append(subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        said = []
        for line in started[-1].stderr:
            said.append(line)
            if line.startswith("Ctrl-C ends"):
                break
        return started[-1], said

    yield start
    for process in started:
        process.kill()
        process.communicate()


def addresses_in(said):
    found = (re.fullmatch(r"(\S+) ranks at (\S+)\n", line) for line in said)
    return {match[1]: match[2] for match in found if match}


def test_it_serves_each_annotator_without_torch_and_ends_with_ctrl_c_at_the_same_address(completions, start):
    words = (completions, "--annotators", "ann,ben", "--json")
    process, said = start(*words, "--port", 0)
    addresses = addresses_in(said)
    assert set(addresses) == {"ann", "ben"}
    base, _, token = addresses["ann"].partition("?token=")
    assert len(token) == 32
    with ask(addresses["ann"]) as reply:
        [(name, morsel)] = SimpleCookie(reply.headers["set-cookie"]).items()
        assert reply.headers["server"] is None
    with ask(f"{base}api/view", f"{name}={morsel.value}") as reply:
        assert json.load(reply)["annotator"] == "ann"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(out) == {
        "store": "c.rankings.db",
        "items": 4,
        "settled": 0,
        "complete": False,
        "done": {"ann": 0, "ben": 0},
    }
    assert err.splitlines()[:2] == [
        "error: Stopped: 0 of 4 items are ranked; the rankings are in c.rankings.db.",
        "Everything shown as saved is kept; the same command continues.",
    ]
    assert err.splitlines()[2] == "loaded:"

    _, said = start(*words, "--port", base.rpartition(":")[2].strip("/"))
    assert addresses_in(said) == addresses


def test_who_listens_on_all_addresses_gets_one_that_needs_no_name(completions, start):
    _, said = start(completions, "--annotators", "ann", "--host", "0.0.0.0", "--port", 0)
    port = addresses_in(said)["ann"].partition("/?")[0].rpartition(":")[2]
    assert addresses_in(said)["ann"].startswith(f"http://{socket.gethostname()}:{port}/?token=")
    notes = [line for line in said if line.startswith("Where the name")]
    address = own_address(socket.AF_INET)
    name = socket.gethostname()
    expected = (
        [] if address is None else [f"Where the name {name} is not known, {address} in its place leads here too.\n"]
    )
    assert notes == expected
