"""Requests that do not come from the page of an annotator with a token: refused, and nothing is stored."""

import contextlib
import json
import socket

import pytest

from chatpipe.ranking import security
from chatpipe.ranking.security import is_loopback

TOKEN = "token-of-ann-0123456789"
COOKIE = f"chatpipe-rank-test={TOKEN}"

# What is changed in a request that would be taken; None leaves the header out. {host} is the server's own.
FORGED = {
    "rebound name": {"Host": "evil.example:8642", "Origin": "http://evil.example:8642"},
    "rebound name without origin": {"Host": "evil.example", "Origin": None, "Sec-Fetch-Site": None},
    "rebound name that begins like ours": {"Host": "127.0.0.1.evil.example", "Origin": "http://127.0.0.1.evil.example"},
    "rebound name that ends like ours": {"Host": "evil-localhost", "Origin": "http://evil-localhost"},
    "another address of the machine": {"Host": "192.168.1.20:8642", "Origin": "http://192.168.1.20:8642"},
    "address of all": {"Host": "0.0.0.0:8642", "Origin": "http://0.0.0.0:8642"},
    "address as a number": {"Host": "2130706433", "Origin": "http://2130706433"},
    "name with a user": {"Host": "127.0.0.1@evil.example", "Origin": "http://127.0.0.1@evil.example"},
    "name with a dot behind": {"Host": "localhost.", "Origin": "http://localhost."},
    "forged host before ours (gradio #13594)": {"Host": "localhost", "Origin": "http://evil.example"},
    "empty host": {"Host": ""},
    "foreign origin": {"Origin": "http://evil.example"},
    "foreign origin with our port": {"Origin": "http://evil.example:{port}"},
    "null origin": {"Origin": "null"},
    "null origin of a sandboxed frame": {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    "no origin": {"Origin": None},
    "origin at another port": {"Origin": "http://127.0.0.1:1"},
    "origin by another name of ours": {"Origin": "http://localhost:{port}"},
    "origin over another scheme": {"Origin": "https://{host}"},
    "origin with a path": {"Origin": "http://{host}/"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "typed address": {"Sec-Fetch-Site": "none"},
    "unknown site": {"Sec-Fetch-Site": "same-origin, cross-site"},
    "text/plain": {"Content-Type": "text/plain"},
    "text/plain that names JSON": {"Content-Type": "text/plain; application/json"},
    "form": {"Content-Type": "application/x-www-form-urlencoded"},
    "multipart form": {"Content-Type": "multipart/form-data; boundary=application/json"},
    "no content type": {"Content-Type": None},
    "two content types in one": {"Content-Type": "application/json, text/plain"},
    "no token": {"Cookie": None},
    "empty token": {"Cookie": "chatpipe-rank-test="},
    "wrong token": {"Cookie": "chatpipe-rank-test=token-of-ann-0123456788"},
    "token cut short": {"Cookie": COOKIE[:-1]},
    "cookie of another server": {"Cookie": COOKIE.replace("-test", "-8642")},
    "cookie under another name": {"Cookie": f"token={TOKEN}"},
    "two tokens": {"Cookie": f"{COOKIE}; chatpipe-rank-test=other"},
    "same token twice": {"Cookie": f"{COOKIE}; {COOKIE}"},
    "token in a header": {"Cookie": None, "Authorization": f"Bearer {TOKEN}"},
}


def submit(server) -> bytes:
    """A submit that would be taken."""
    step = {"annotator": "ann", "key": "forged-key", "action": "submit", "reason": None, "task": server.view()["task"]}
    return json.dumps(step | {"answer": {"ranks": [1, 2, 3]}}).encode()


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_request_is_refused_and_stores_nothing(server, name):
    body = submit(server)
    changes = {key: value and value.format(host=server.host, port=server.port) for key, value in FORGED[name].items()}
    reply = server.ask("POST", "/api/act", server.headers(**changes), body)
    is_other_host = changes.get("Host", server.host) != server.host
    assert reply.status in ((400, 403) if is_other_host else (403,)), reply.body
    assert reply.headers.get("access-control-allow-origin") is None
    assert server.steps() == []
    assert server.ask("POST", "/api/act", server.headers(), body).status == 200


@pytest.mark.parametrize("name", ["Host", "Origin", "Cookie", "Content-Type", "Sec-Fetch-Site"])
def test_a_header_that_decides_may_not_come_twice(server, name):
    body = submit(server)
    for second in (dict(server.headers())[name], "evil"):
        reply = server.ask("POST", "/api/act", [*server.headers(), (name, second)], body)
        assert reply.status == (400 if name == "Host" else 403)  # the HTTP parser itself takes one Host alone
    with contextlib.suppress(ConnectionResetError):  # the server hangs up, perhaps before its answer is read
        assert server.ask("POST", "/api/act", [*server.headers(), ("Content-Length", "5")], body).status == 400
    assert server.steps() == []


@pytest.mark.parametrize("path", ["/api/act?token={token}", "/api/act?chatpipe-rank-test={token}", "/?token={token}"])
def test_a_token_in_the_address_of_a_post_is_none(server, path):
    body = submit(server)
    reply = server.ask("POST", path.format(token=TOKEN), server.headers(Cookie=None), body)
    assert reply.status == 403
    assert server.steps() == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "HEAD"])
def test_other_methods_are_refused(server, method):
    body = submit(server)
    reply = server.ask(method, "/api/act", server.headers(Access_Control_Request_Method="POST"), body)
    assert reply.status in (403, 405)
    assert server.ask("GET", "/api/act", server.headers()).status == 405
    assert [name for name in reply.headers if name.startswith("access-control")] == []
    assert server.steps() == []


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_no_header_makes_another_method_of_a_get(server, name):
    """A GET needs no `Origin` and no JSON, so it must never act."""
    headers = [*server.headers(), (name, "POST"), ("Content-Length", str(len(submit(server))))]
    assert server.ask("GET", "/api/act", headers, submit(server)).status == 405
    assert server.steps() == []


def test_a_body_that_is_too_long_is_refused_by_its_length_or_as_it_comes(server):
    body = submit(server) + b" " * security.MAX_BODY
    assert server.ask("POST", "/api/act", server.headers(), body).status == 413
    assert server.ask("POST", "/api/act", server.headers(), b"", length=str(1 << 60)).status == 413
    chunked = b"".join(b"10000\r\n" + b" " * 0x10000 + b"\r\n" for _ in range(3)) + b"0\r\n\r\n"
    head = "POST /api/act HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in server.headers())
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunked)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    assert server.steps() == []


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/static/../server.py",
        "/%2e%2e/server.py",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/rank.js/..",
        "/rank.js%00.html",
        "/__init__.py",
        "/rankings.db",
        "http://evil.example/",
    ],
)
def test_nothing_but_the_files_of_the_page_is_served(server, path):
    assert server.ask("GET", path, server.headers(Origin=None)).status == 404


@pytest.mark.parametrize("path", ["/", "/rank.js", "/show.js", "/rank.css", "/icon.svg", "/api/view"])
def test_without_a_token_nothing_is_shown_and_every_reply_has_the_policy(server, path):
    page = server.headers(Origin=None)
    assert server.ask("GET", path, page).status == 200
    for changes in ({"Cookie": None}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}, {"Host": "evil.example"}):
        reply = server.ask("GET", path, server.headers(**({"Origin": None} | changes)))
        assert reply.status == (400 if "Host" in changes else 403)
        assert len(reply.body) < 200
    for reply in server.asked:
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; ")
        for rule in ("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"):
            assert rule in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers.get("access-control-allow-origin") is None


def test_the_printed_address_gives_a_cookie_that_no_script_reads_and_no_other_site_sends(server):
    reply = server.ask("GET", f"/?token={TOKEN}", [("Host", server.host)])
    assert reply.status == 200
    name, _, attributes = reply.headers["set-cookie"].partition("=")
    assert name == "chatpipe-rank-test"
    token, *flags = attributes.split("; ")
    assert token == TOKEN
    assert {flag.lower() for flag in flags} == {"httponly", "path=/", "samesite=strict"}
    assert TOKEN.encode() not in reply.body
    assert b'content="0;url=/"' in reply.body


@pytest.mark.parametrize("query", ["token=", "token=wrong", f"token={TOKEN}&token={TOKEN}", f"token={TOKEN}x"])
def test_a_wrong_address_gives_no_cookie(server, query):
    reply = server.ask("GET", f"/?{query}", [("Host", server.host)])
    assert reply.status == 403
    assert reply.headers.get("set-cookie") is None


def test_a_link_on_another_page_opens_the_address_but_no_script_there_does(server):
    clicked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert server.ask("GET", f"/?token={TOKEN}", [("Host", server.host), *clicked.items()]).status == 200
    for change in ({"Sec-Fetch-Mode": "no-cors"}, {"Sec-Fetch-Dest": "iframe"}, {"Origin": "http://evil.example"}):
        headers = [("Host", server.host), *(clicked | change).items()]
        assert server.ask("GET", f"/?token={TOKEN}", headers).status == 403


def test_a_step_with_the_token_of_another_annotator_is_not_theirs(server):
    bens = server.view("ben")["task"]
    step = {"annotator": "ann", "key": "forged-key", "action": "submit", "task": bens, "reason": None}
    step |= {"answer": {"ranks": [1, 2, 3]}}
    assert server.ask("POST", "/api/act", server.headers("ann"), json.dumps(step).encode()).status == 409
    assert server.steps() == []


@pytest.mark.parametrize("bound", ["127.0.0.1", "rank.example"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LocalHost", "[::1]"])
def test_a_server_is_called_by_the_names_of_this_machine(serve, bound, name):
    server = serve(host=bound)
    names = {"Host": f"{name}:80", "Origin": f"http://{name}:80"}
    assert server.ask("POST", "/api/act", server.headers(**names), submit(server)).status == 200


def test_what_only_this_machine_reaches():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "LocalHost", "::1", "0:0:0:0:0:0:0:1")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.20", "rank.example", "localhost.evil.example")))


@pytest.mark.parametrize(
    "bound, name, is_taken",
    [
        ("192.168.1.20", "192.168.1.20", True),
        ("192.168.1.20", "192.168.1.21", False),
        ("192.168.1.20", "evil.example", False),
        ("192.168.1.20", "", False),
        ("0.0.0.0", "192.168.1.21", True),  # a bare address cannot be rebound
        ("0.0.0.0", "[2001:db8::20]", True),
        ("0.0.0.0", socket.gethostname(), True),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", "192.168.1.21.evil.example", False),
        ("0.0.0.0", "192.168.1.21@evil.example", False),
        ("0.0.0.0", "evil.example@192.168.1.21", False),
        ("0.0.0.0", "1.1.1", False),
        ("0.0.0.0", "", False),
    ],
)
def test_a_server_for_a_team_goes_by_its_address_alone(serve, bound, name, is_taken):
    server = serve(host=bound)
    names = {"Host": name, "Origin": f"http://{name}"}
    reply = server.ask("POST", "/api/act", server.headers(**names), submit(server))
    assert reply.status == 200 if is_taken else reply.status in (400, 403)


@pytest.mark.parametrize(
    "host, name", [("rank_box.example", "rank_box.example"), ("2001:db8:0:0:0:0:0:20", "[2001:db8::20]")]
)
def test_a_server_is_found_under_what_a_browser_makes_of_its_name(serve, host, name):
    server = serve(host=host)
    names = {"Host": f"{name}:80", "Origin": f"http://{name}:80"}
    assert server.ask("POST", "/api/act", server.headers(**names), submit(server)).status == 200


def test_a_server_for_a_team_takes_its_own_origin(serve):
    server = serve(host="rank.example")
    body = submit(server)
    names = {"Host": "rank.example:80", "Origin": "http://rank.example:80"}
    assert server.ask("POST", "/api/act", server.headers(**names), body).status == 200
