"""What the ranking server accepts: requests of its own page, made by an annotator with a token.

A port on 127.0.0.1 is no defence. Any page that is open in the same browser can send requests to it, and a name that
its owner points to 127.0.0.1 (DNS rebinding) makes them same-origin. So a request must pass these checks:

1. `Host` is a name of this server (starlette's TrustedHostMiddleware).
2. `Origin` and `Sec-Fetch-Site`, which a page cannot forge, name our page as the origin.
3. A request that changes something is a POST with JSON, which no form of another page can send; there are no CORS
   headers.
4. The token of the printed address comes once, in `GET /?token=...`, and becomes a cookie that scripts cannot read
   (HttpOnly) and that requests from other sites do not carry (SameSite=Strict).

Every response has a content security policy under which only this server's own files run.

An annotator's token is derived from their name and a secret next to the store, so it is the same at every start. The
store itself does not contain it and can be handed on. Deleting the secret makes all addresses invalid.
"""

import base64
import hmac
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatpipe.data.durable import PARTIAL, fsync

MAX_BODY = 64 * 1024
"""Bytes of a request's body; a ranking with a long note has one or two thousand."""
SECRET_BYTES = 32
TOKEN_BYTES = 24  # 192 bits

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

# Each of these decides something here; with two of them it would be unclear which one counts.
_SINGLE = ("host", "origin", "cookie", "content-type", "content-length", "transfer-encoding", "sec-fetch-site")
_ADDRESS = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?", re.IGNORECASE)

# A redirect would keep the site on which the address was clicked as its initiator, and a browser would not send the
# new cookie along. A page of ours that opens the next one is the initiator itself.
_ENTER = """<!doctype html>
<html lang="en">
<title>Rank the answers</title>
<link rel="icon" href="/icon.svg">
<meta http-equiv="refresh" content="0;url=/">
<a href="/">Rank the answers</a>
"""


class Refused(Exception):
    """A refused request: the status code and the reason."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Gate:
    """The layer before the application `app`, which finds the annotator's name in `request.state.annotator`.

    Args:
        app: Answers the accepted requests.
        host: The address that the server is bound to.
        tokens: Annotator to token.
        cookie: The cookie's name. Cookies are shared by all ports, so each server needs a name of its own.
    """

    def __init__(self, app: ASGIApp, host: str, tokens: Mapping[str, str], cookie: str) -> None:
        self.app, self.tokens, self.cookie = app, tokens, cookie
        self.of_trusted_host = TrustedHostMiddleware(self._answer, own_names(host), www_redirect=False)
        self.takes_addresses = is_every_address(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers why it is refused."""
        if scope["type"] != "http":  # the server opens no WebSocket
            return
        # Rebinding needs a name that the attacker owns, so a bare address is safe, whichever it is. Ports are not
        # compared: through a tunnel it is another one.
        is_safe = self.takes_addresses and is_bare_address(Request(scope).headers.get("host", ""))
        await (self._answer if is_safe else self.of_trusted_host)(scope, receive, _with_headers(send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            if any(len(request.headers.getlist(name)) > 1 for name in _SINGLE):
                raise Refused(403, "A header is given twice.")
            if is_entrance(request):
                await self._enter(request)(scope, receive, send)
                return
            check_origin(request)
            request.state.annotator = self._annotator(request)
            request.state.body = await read_body(request)
        except Refused as refused:
            await PlainTextResponse(refused.why + "\n", refused.status)(scope, receive, send)
            return
        except ClientDisconnect:  # in the middle of its body
            return
        await self.app(scope, receive, send)

    def _enter(self, request: Request) -> Response:
        """Turns the token of the address into the cookie."""
        [token, *more] = request.query_params.getlist("token")
        if more or annotator_of(token, self.tokens) is None:
            raise Refused(403, "This address is not valid (any more). Open the one that chatpipe rank prints.")
        response = HTMLResponse(_ENTER)
        response.set_cookie(self.cookie, token, path="/", httponly=True, samesite="strict")
        return response

    def _annotator(self, request: Request) -> str:
        pairs = [pair.strip().partition("=") for pair in request.headers.get("cookie", "").split(";")]
        tokens = [value for name, _, value in pairs if name == self.cookie]
        annotator = annotator_of(tokens[0], self.tokens) if len(tokens) == 1 else None
        if annotator is None:
            raise Refused(403, "Open the address with the token that chatpipe rank prints.")
        return annotator


# ---- names of the server ----


def own_names(bound: str) -> list[str]:
    """The names by which a browser may call a server that is bound to the address `bound`, as they are in `Host`."""
    names = ["127.0.0.1", "localhost", "::1", bound]
    if is_every_address(bound):
        names += [socket.gethostname(), socket.getfqdn()]
    return [_in_header(name) for name in names]


def _in_header(name: str) -> str:
    """A browser writes an address in its shortest form, and one of version 6 in brackets."""
    if not is_address(name):
        return name
    address = ipaddress.ip_address(name)
    return f"[{address}]" if address.version == 6 else str(address)


def is_bare_address(host: str) -> bool:
    """Whether a `Host` header has an IP address, not a name."""
    match = _ADDRESS.fullmatch(host)
    return match is not None and is_address(match[1] or match[2])


def is_address(name: str) -> bool:
    """Whether it is an IP address, not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_every_address(host: str) -> bool:
    """Whether a server bound to it listens on all addresses of the machine (0.0.0.0 or ::)."""
    return is_address(host) and ipaddress.ip_address(host).is_unspecified


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


# ---- requests ----


def is_entrance(request: Request) -> bool:
    """Whether somebody opens the printed address, which may be a link on any page, in a chat or in a mail."""
    headers = request.headers
    return (
        request.method == "GET"
        and request.url.path == "/"
        and "token" in request.query_params
        and "origin" not in headers
        and headers.get("sec-fetch-mode", "navigate") == "navigate"
        and headers.get("sec-fetch-dest", "document") == "document"
    )


def check_origin(request: Request) -> None:
    """Refuses a request that our own page does not send: another origin or method, or a body that is not JSON."""
    headers = request.headers
    ours = f"http://{headers['host']}"
    site = headers.get("sec-fetch-site")
    if request.method == "GET":
        if headers.get("origin", ours) != ours or site not in (None, "none", "same-origin"):
            raise Refused(403, "Another site asks. Open the address that chatpipe rank prints.")
    elif request.method == "POST":
        if headers.get("origin") != ours or site not in (None, "same-origin"):
            raise Refused(403, "Another site asks.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(403, "Only JSON is accepted (Content-Type: application/json).")
    else:
        raise Refused(405, "Only GET and POST are accepted.")


async def read_body(request: Request) -> bytes:
    """The body; refused as soon as it is known to be too long."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY:
        raise Refused(413, f"The body is longer than {MAX_BODY} bytes.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Refused(413, f"The body is longer than {MAX_BODY} bytes.")
    return bytes(body)


def _with_headers(send: Send) -> Send:
    """Adds `HEADERS` to every response."""
    ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *ours]
        await send(message)

    return send_with_headers


# ---- tokens ----


def secret_beside(store: Path) -> bytes:
    """The secret in `STORE.key`, made if there is none. Only the process that writes to the store may call this."""
    path = store.with_name(store.name + ".key")
    if path.is_file() and len(secret := path.read_bytes()) == SECRET_BYTES:
        return secret
    secret = secrets.token_bytes(SECRET_BYTES)
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)  # of a start that was killed
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    fsync(partial)
    partial.replace(path)
    fsync(path.parent)
    return secret


def token_for(secret: bytes, annotator: str) -> str:
    """An annotator's token: HMAC-SHA-256 of the name, cut to 192 bits, in URL-safe base64."""
    digest = hmac.digest(secret, annotator.encode(), "sha256")
    return base64.urlsafe_b64encode(digest[:TOKEN_BYTES]).decode()


def annotator_of(token: str, tokens: Mapping[str, str]) -> str | None:
    """Whose token it is among `tokens` (annotator to token); takes the same time for any answer."""
    found = None
    for annotator, known in tokens.items():
        if hmac.compare_digest(token.encode(), known.encode()):
            found = annotator
    return found
