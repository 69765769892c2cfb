"""The real application on a real socket, and requests written header by header."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chatpipe.ranking.items import read_items
from chatpipe.ranking.server import make_app, make_server, open_socket
from chatpipe.ranking.session import Session
from chatpipe.ranking.store import Store

TOKENS = {"ann": "token-of-ann-0123456789", "ben": "token-of-ben-0123456789"}
COOKIE = "chatpipe-rank-test"
SECRETS = ("gpt-oss-secret", "ppo.3-secret", "0.98765", "54321")
"""Models, stages, scores and rounds in the completions file."""


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def object(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A server that runs; `asked` is every reply that it gave, `connections` are those that are open."""

    store: Store
    port: int
    asked: list[Reply]
    connections: set[Any]

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def headers(self, name: str = "ann", **changes: str | None) -> list[tuple[str, str]]:
        """What the page sends for an annotator; None leaves a header out."""
        headers: dict[str, str | None] = {
            "Host": self.host,
            "Origin": f"http://{self.host}",
            "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/json",
            "Cookie": f"{COOKIE}={TOKENS[name]}",
        }
        headers |= {key.replace("_", "-"): value for key, value in changes.items()}
        return [(key, value) for key, value in headers.items() if value is not None]

    def ask(
        self, method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes = b"", length: str | None = None
    ) -> Reply:
        """Sends exactly this, and the length of the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for key, value in headers:
            connection.putheader(key, value)
        if method != "GET":
            connection.putheader("Content-Length", length or str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        self.asked.append(Reply(response.status, response.headers, response.read()))
        connection.close()
        return self.asked[-1]

    def view(self, name: str = "ann") -> Any:
        return self.ask("GET", "/api/view", self.headers(name)).object

    def act(self, name: str = "ann", **fields: Any) -> Reply:
        """A step in the words of the page, of the task at hand where none is given."""
        step = {
            "annotator": name,
            "key": f"key-{len(self.asked):08}",
            "action": "submit",
            "answer": None,
            "reason": None,
        }
        step |= fields
        if "task" not in step:
            step["task"] = self.view(name)["task"]
        return self.ask("POST", "/api/act", self.headers(name), json.dumps(step).encode())

    def hidden(self) -> list[str]:
        """What no annotator may know: of the completions file, of the items, and where the store lies."""
        return [*SECRETS, *(item.id for item in self.store.items), str(self.store.path), self.store.path.name]

    def steps(self) -> list[tuple[str, str]]:
        """What people did: name and action, in order."""
        return self.store.rows("SELECT annotator, action FROM history ORDER BY number")


@pytest.fixture
def completions(tmp_path) -> Path:
    """Thirty prompts with three answers each, and with them what no annotator may know."""
    model, stage, score, made_in = SECRETS
    rows = (
        {
            "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Question {i}?"}],
            "responses": [f"First {i}.", f"Second {i}.", f"Third {i}."],
            "models": [model] * 3,
            "stage": stage,
            "scores": [float(score)] * 3,
            "round": int(made_in),
        }
        for i in range(30)
    )
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def serve(tmp_path, completions) -> Iterator[Callable[..., Server]]:
    """Serves the completions to ann and ben: `serve(host="127.0.0.1")`."""
    with contextmanager(_serving)(tmp_path / "rankings.db", completions) as serve:
        yield serve


def _serving(path: Path, completions: Path) -> Iterator[Callable[..., Server]]:
    ends: list[Callable[[], None]] = []

    def serve(host: str = "127.0.0.1") -> Server:
        store = Store.create_or_open(path, read_items(completions), seed=0, overlap=2, repeats=0.05)
        for name in TOKENS:
            store.add_annotator(name, "person")
        sessions = {name: Session(store, name) for name in TOKENS}
        listening = open_socket("127.0.0.1", 0)
        server = make_server(make_app(sessions, host, TOKENS, COOKIE))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)

        def end() -> None:
            server.should_exit = True
            thread.join()
            store.close()

        ends.append(end)
        return Server(store, listening.getsockname()[1], [], server.server_state.connections)

    yield serve
    for end in ends:
        end()


@pytest.fixture
def server(serve) -> Server:
    return serve()
