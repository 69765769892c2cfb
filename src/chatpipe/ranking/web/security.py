"""What the ranking server lets in: the requests of its own page, made by an annotator with a token.

A port on 127.0.0.1 is no defence. Any page that is open in the same browser can send requests to it, and a name that
its owner points to 127.0.0.1 (DNS rebinding) makes them same-origin. So one layer stands before the application:

1. `Host` is a name of this server; nothing is answered under another one.
2. `Origin` and `Sec-Fetch-Site`, which a page cannot forge, say that the request comes from our page.
3. What changes something is POST with JSON, which no form of another page can send; no CORS header ever allows it.
4. The token of the printed address comes once, in `GET /?token=...`, and becomes a cookie that scripts cannot read
   (HttpOnly) and that requests from other sites do not carry (SameSite=Strict).

Every response carries a content security policy under which only this server's own files run.
"""

import ipaddress
import re
import socket
from collections.abc import Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatpipe.ranking.web.tokens import annotator_of

MAX_BODY = 64 * 1024
"""Bytes of a request's body; a ranking with a long note has one or two thousand."""

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

# Each of these decides something here, so a second one would leave open which counts.
_SINGLE = ("host", "origin", "cookie", "content-type", "content-length", "transfer-encoding", "sec-fetch-site")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.IGNORECASE)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

# A redirect would keep the site that the address was clicked on as its initiator, and a browser would not send the
# new cookie along. A page of ours that goes on by itself is its own initiator.
_ENTER = """<!doctype html>
<html lang="en">
<title>Rank the answers</title>
<link rel="icon" href="/icon.svg">
<meta http-equiv="refresh" content="0;url=/">
<a href="/">Rank the answers</a>
"""


class Refused(Exception):
    """A request that is not let in: the status code and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Guard:
    """The layer before the application `app`, which finds the annotator's name in `request.state.annotator`.

    Args:
        app: Answers what is let in.
        host: The address that the server is bound to.
        tokens: Annotator to token.
        cookie: The cookie's name. Cookies do not tell ports apart, so each server needs one of its own.
    """

    def __init__(self, app: ASGIApp, host: str, tokens: Mapping[str, str], cookie: str) -> None:
        self.app, self.names, self.tokens, self.cookie = app, OwnNames(host), tokens, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through or answers it with what is wrong."""
        if scope["type"] != "http":  # the server opens no WebSocket
            return
        request = Request(scope, receive)
        send = _with_headers(send)
        try:
            check_host(request, self.names)
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


class OwnNames:
    """The names that a server bound to the address `bound` may be called by: `name in OwnNames(bound)`."""

    def __init__(self, bound: str) -> None:
        self._takes_addresses = is_every_address(bound)
        # Asked for once: the second may wait for a name server.
        machine = (socket.gethostname(), socket.getfqdn()) if self._takes_addresses else ()
        self._names = {_canonical(name) for name in (*_LOOPBACK, bound, *machine)}

    def __contains__(self, name: str) -> bool:
        # Rebinding needs a name that the attacker owns, so a bare address is safe under any number.
        return _canonical(name) in self._names or (self._takes_addresses and is_address(name))


def _canonical(name: str) -> str:
    """One way to write a name, or an address of version 6, which has many."""
    return str(ipaddress.ip_address(name)) if is_address(name) else name.lower()


def check_host(request: Request, names: OwnNames) -> None:
    """Refuses a request under a name that is not this server's.

    The port is not looked at: through a tunnel it is another one, and who rebinds a name cannot choose the name anyway.
    """
    if any(len(request.headers.getlist(name)) > 1 for name in _SINGLE):
        raise Refused(403, "A header is given twice.")
    match = _HOST.fullmatch(request.headers.get("host", ""))
    if match is None or match[1].strip("[]") not in names:
        raise Refused(403, "This server does not go by that name. Open the address that chatpipe rank prints.")


def is_address(name: str) -> bool:
    """Whether it is an IP address, not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_every_address(host: str) -> bool:
    """Whether who binds to it listens on all addresses of the machine (0.0.0.0 or ::)."""
    return is_address(host) and ipaddress.ip_address(host).is_unspecified


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


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
    """Refuses what our own page does not send: another origin, another method, a body that is not JSON."""
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
            raise Refused(403, "Only JSON is taken (Content-Type: application/json).")
    else:
        raise Refused(405, "Only GET and POST are known here.")


async def read_body(request: Request) -> bytes:
    """The body, which is refused as soon as it is known to be too long."""
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
    """Sends every response with the headers that each one has to have."""
    ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *ours]
        await send(message)

    return send_with_headers
