"""The ranking server: the page's files, what an annotator sees, and what they do.

    GET  /                       the page (with rank.css, rank.js and icon.svg)
    GET  /api/view               what there is to rank now
    POST /api/act                one action; answered when it is on the disk

An action is `{"annotator", "key", "action", "task", "answer", "reason"}`: whose it is, and the arguments of
`Session.act`. The page makes up the key and sends the same one again until it gets an answer, so an action counts once
however often it arrives.

    200  done, or done before
    400  the answer or the request is malformed; nothing is stored
    409  the task is no longer the present one (another tab continued), or the browser belongs to another annotator now
         (whose address was opened in it); nothing is stored
    503  it could not be stored (disk full); sending it again is right. Only the terminal shows why

200, 400 and 409 come with the present view. `security` decides which requests get here.
"""

import dataclasses
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
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
from chatpipe.ranking.database import StoreError
from chatpipe.ranking.history import StoreConflict
from chatpipe.ranking.items import BadAnswer
from chatpipe.ranking.security import Gate, is_every_address, secret_beside, token_for
from chatpipe.ranking.session import Session, StaleTask, View
from chatpipe.ranking.store import Store

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FIELDS: dict[str, Any] = {
    "annotator": str,
    "key": str,
    "action": str,
    "task": str | None,
    "answer": dict | None,
    "reason": str | None,
}
KEY = re.compile("[0-9A-Za-z-]{8,64}")
NOT_STORED = "the server could not store it; whoever started chatpipe rank can read why"
"""For annotators: the reason names the file, and a file's name may reveal whose answers they rank."""
GRACE_SECONDS = 2
"""How long Ctrl-C waits for answers that are under way."""


def serve_annotators(store: Store, names: Sequence[str], opened: socket.socket, host: str) -> None:
    """Prints the address of each annotator, and serves until Ctrl-C (`KeyboardInterrupt`)."""
    secret = secret_beside(store.path)
    tokens = {name: token_for(secret, name) for name in names}
    for name in names:
        store.add_annotator(name, "person")
    sessions = {name: Session(store, name) for name in names}
    port = opened.getsockname()[1]
    for name in names:
        console.note(f"{name} ranks at {address_for(host, port, tokens[name])}")
    if is_every_address(host) and (address := own_address(opened.family)) is not None:
        console.note(f"Where the name {socket.gethostname()} is not known, {address} in its place leads here too.")
    console.note(
        "Ctrl-C ends; what the page shows as saved is kept, and the same command continues at the same address."
    )
    make_server(make_app(sessions, host, tokens, f"chatpipe-rank-{port}")).run(sockets=[opened])


def address_for(host: str, port: int, token: str) -> str:
    """What an annotator opens in the browser."""
    name = socket.gethostname() if is_every_address(host) else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/?token={token}"


def own_address(family: int) -> str | None:
    """The address of this machine in its network; None if it has none. Sends nothing."""
    elsewhere = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"  # for documentation: nobody's
    with socket.socket(family, socket.SOCK_DGRAM) as way:
        try:
            way.connect((elsewhere, 9))
        except OSError:
            return None
        address: str = way.getsockname()[0]
        return f"[{address}]" if family == socket.AF_INET6 else address


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens, so that nobody else gets the port; requests wait until the server runs.

    Raises `UsageError` if the port is taken or the address is not this machine's.
    """
    try:
        # asyncio has small answers sent at once (TCP_NODELAY) only where the socket's protocol is given as TCP.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart gets the port at once
        opened.bind(address)
        opened.listen()  # two may bind, but not listen
        return opened
    except OSError as problem:
        reason = problem.strerror if isinstance(problem, socket.gaierror) else os.strerror(problem.errno or 0)
        raise UsageError(
            f"The page cannot be served at {host}, port {port}: {reason}.",
            "Another chatpipe rank may run there. Choose another port with --port (0: any that is free), or --host.",
        ) from problem


def make_app(sessions: Mapping[str, Session], host: str, tokens: Mapping[str, str], cookie: str) -> Gate:
    """The application for the annotators in `sessions`, behind its `Gate` (see there for the other arguments)."""
    warned: set[str] = set()  # reasons why nothing can be stored, until something can

    async def view(request: Request) -> Response:
        name = request.state.annotator
        return await run_in_threadpool(lambda: _seen(200, name, sessions[name].view()))

    async def act(request: Request) -> Response:
        name = request.state.annotator
        response = await run_in_threadpool(_act, name, sessions[name], request.state.body)
        if response.status_code == 200:
            warned.clear()
        return response

    async def not_stored(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, StoreError)
        if problem.message not in warned:
            warned.add(problem.message)
            console.warn(f"{problem.message} It was not acknowledged; the page tries again. {problem.hint}")
        return _json(503, {"error": NOT_STORED})

    routes = [_file(path) for path in sorted(STATIC.iterdir())]
    routes += [Route("/api/view", view, methods=["GET"]), Route("/api/act", act, methods=["POST"])]
    app = Starlette(routes=routes, exception_handlers={StoreError: not_stored})
    return Gate(app, host, tokens, cookie)


def make_server(app: Gate) -> uvicorn.Server:
    """A server for the application, without a log."""
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
    return uvicorn.Server(config)


def _file(path: Path) -> Route:
    """The route of one of the page's files, which is read once: no path of a request reaches the disk."""
    content, media_type = path.read_bytes(), MEDIA_TYPES[path.suffix]

    async def send(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route("/" if path.name == "index.html" else f"/{path.name}", send, methods=["GET"])


def _act(name: str, session: Session, body: bytes) -> Response:
    try:
        meant_by, action = read_action(body)
        if meant_by != name:
            return _seen(409, name, session.view(), f"this browser belongs to {name} now")
        return _seen(200, name, session.act(**action))
    except BadAnswer as problem:
        return _seen(400, name, session.view(), str(problem))
    except StoreConflict:
        return _seen(400, name, session.view(), "the key was used for another action")
    except StaleTask as problem:
        return _seen(409, name, session.view(), str(problem))


def read_action(body: bytes) -> tuple[str, dict[str, Any]]:
    """Whose action a request's body is, and the arguments of `Session.act`. Raises `BadAnswer`."""
    try:
        action = json.loads(body)
    except (ValueError, RecursionError):
        raise BadAnswer("the request is not JSON") from None
    if not isinstance(action, dict) or set(action) != set(FIELDS):
        raise BadAnswer(f"a request has the fields {', '.join(FIELDS)}")
    for name, kind in FIELDS.items():
        if not isinstance(action[name], kind):
            raise BadAnswer(f"{name} is of the wrong kind")
    if not KEY.fullmatch(action["key"]):
        raise BadAnswer("a key has 8 to 64 letters and digits")
    return action.pop("annotator"), action


def _seen(status: int, name: str, view: View, error: str | None = None) -> Response:
    """The annotator's present view, and what was wrong with their request."""
    return _json(status, {"annotator": name, "error": error, **dataclasses.asdict(view)})


def _json(status: int, value: dict[str, Any]) -> Response:
    # As ASCII: an error may quote half a surrogate pair of the request, which UTF-8 does not have.
    return Response(json.dumps(value), status, media_type="application/json")
