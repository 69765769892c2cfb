"""The ranking server: the page's files, what an annotator sees, and what they do.

    GET  /                       the page (rank.css, rank.js and icon.svg beside it)
    GET  /api/view               what there is to rank now
    POST /api/act                one action; answered when it is on the disk, with what there is to rank then

An action is `{"key", "action", "task", "answer", "reason"}`, as in `Session.act`. The page makes up the key and sends
the same one again until it gets an answer, so an action counts once however often it arrives.

    200  done, or done before
    400  the answer or the request is malformed; nothing is stored
    409  the task is not the present one any more (another tab went on); nothing is stored
    503  it could not be stored (disk full); sending it again is right

400 and 409 come with the present view. What is let in at all is the matter of `security`.
"""

import dataclasses
import json
import socket
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chatpipe import console
from chatpipe.errors import UsageError
from chatpipe.ranking.answers import BadAnswer
from chatpipe.ranking.session import Session, StaleTask, View
from chatpipe.ranking.store import StoreConflict
from chatpipe.ranking.web.security import Guard

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FIELDS: dict[str, Any] = {"key": str, "action": str, "task": str | None, "answer": dict | None, "reason": str | None}
MAX_KEY = 64
GRACE_SECONDS = 2
"""How long Ctrl-C waits for answers that are under way."""


def make_app(sessions: Mapping[str, Session], host: str, token_hashes: Mapping[str, str], cookie: str) -> Guard:
    """The application for the annotators in `sessions`, behind its guard."""

    async def view(request: Request) -> Response:
        return await run_in_threadpool(_view, sessions[request.state.annotator])

    async def act(request: Request) -> Response:
        return await run_in_threadpool(_act, sessions[request.state.annotator], request.state.body)

    routes = [_file(path) for path in sorted(STATIC.iterdir())]
    routes += [Route("/api/view", view), Route("/api/act", act, methods=["POST"])]
    return Guard(Starlette(routes=routes), host, token_hashes, cookie)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `UsageError` where the port is taken or the address is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as problem:
        raise UsageError(
            f"It cannot be served at {host}, port {port}: {problem.strerror}.",
            "Another rank may run there. Choose another port with --port (0: any that is free), or another --host.",
        ) from problem


def serve(app: Guard, listening: socket.socket) -> None:
    """Serves until Ctrl-C, which is raised again as `KeyboardInterrupt`."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _file(path: Path) -> Route:
    """The route of one of the page's files, which is read once: no path of a request is ever looked up on the disk."""
    content, media_type = path.read_bytes(), MEDIA_TYPES[path.suffix]

    async def send(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route("/" if path.name == "index.html" else f"/{path.name}", send, methods=["GET"])


def _view(session: Session) -> Response:
    return _json(200, _seen_by(session, session.view()))


def _act(session: Session, body: bytes) -> Response:
    try:
        return _json(200, _seen_by(session, session.act(**read_action(body))))
    except BadAnswer as problem:
        return _json(400, {"error": str(problem), "view": _seen_by(session, session.view())})
    except StoreConflict:
        return _json(400, {"error": "the key has been used for another action", "view": _seen_by(session, session.view())})
    except StaleTask as problem:
        return _json(409, {"error": str(problem), "view": _seen_by(session, session.view())})
    except (sqlite3.Error, OSError) as problem:
        console.warn(f"An action of {session.annotator} could not be stored, and was not acknowledged: {problem}.")
        return _json(503, {"error": str(problem)})


def _seen_by(session: Session, view: View) -> dict[str, Any]:
    return {"annotator": session.annotator, **dataclasses.asdict(view)}


def read_action(body: bytes) -> dict[str, Any]:
    """The arguments of `Session.act` in a request's body. Raises `BadAnswer` for anything else."""
    try:
        action = json.loads(body)
    except (ValueError, RecursionError):
        raise BadAnswer("the request is not JSON") from None
    if not isinstance(action, dict) or set(action) != set(FIELDS):
        raise BadAnswer(f"a request has the fields {', '.join(FIELDS)}")
    for name, kind in FIELDS.items():
        if not isinstance(action[name], kind):
            raise BadAnswer(f"{name} is of the wrong kind")
    if not 0 < len(action["key"]) <= MAX_KEY:
        raise BadAnswer(f"key has 1 to {MAX_KEY} characters")
    return action


def _json(status: int, value: dict[str, Any]) -> Response:
    # Escaped, since a text may hold half a surrogate pair, which UTF-8 cannot say.
    return Response(json.dumps(value), status, media_type="application/json")
