"""A real `chatpipe rank` for each test, and Debian's chromium to look at it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or "chromium"


@dataclass
class Served:
    """A server that runs: the address of each annotator, and its store."""

    process: subprocess.Popen[str]
    addresses: dict[str, str]
    store: Path
    command: list[str]
    origin: str = field(init=False)

    def __post_init__(self) -> None:
        self.origin = next(iter(self.addresses.values())).partition("/?")[0]

    @property
    def address(self) -> str:
        """The address of the only annotator."""
        [address] = self.addresses.values()
        return address

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """The same command once more, at the same port."""
        port = self.origin.rpartition(":")[2]
        self.process, addresses = start([*self.command, "--port", port])
        assert addresses == self.addresses

    def stop(self) -> str:
        """Sends Ctrl-C; returns what the server printed then."""
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=20)[1]

    def rankings(self) -> list[Any]:
        """The rankings in the store, in the order in which they were made."""
        from chatpipe.ranking.store import Store

        with Store.read(self.store) as store:
            return sorted(store.rankings(), key=lambda ranking: ranking.time)


def start(command: list[str]) -> tuple[subprocess.Popen[str], dict[str, str]]:
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    addresses = {}
    assert process.stderr is not None
    for line in process.stderr:
        if told := re.fullmatch(r"(\S+) ranks at (http://\S+)\n", line):
            addresses[told[1]] = told[2]
        elif line.startswith("Ctrl-C"):
            return process, addresses
    raise AssertionError(f"{command} ended with {process.wait()}")


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[..., Served]]:
    """Serves rows to rank: `serve(rows, "--annotators", "a,b")`."""
    running: list[Served] = []

    def serve(rows: list[dict[str, Any]], *words: str) -> Served:
        file = tmp_path / "completions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [sys.executable, "-m", "chatpipe", "rank", str(file), *words]
        if "--annotators" not in words:
            command += ["--annotator", "ann"]
        process, addresses = start([*command, "--port", "0"])
        running.append(Served(process, addresses, tmp_path / "completions.rankings.db", command))
        return running[-1]

    yield serve
    for served in running:
        served.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Without a sandbox, since in a container it cannot be set up.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which `make browser` fetches."""
    return Path(os.environ["AXE_CORE"]).read_text()


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Page]]:
    """Opens an address in a browser of its own, and holds that nothing but the server is asked, and nothing fails."""
    contexts = []
    asked: list[str] = []
    wrong: list[str] = []
    origins = set()

    def open_page(address: str, **options: Any) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)
        context.set_default_timeout(8000)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        origins.add(address.partition("/?")[0])
        page.goto(address)
        page.wait_for_selector("#controls:not([hidden])")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
    assert {url for url in asked if not url.startswith(tuple(origins))} == set()
