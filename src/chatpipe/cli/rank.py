"""`chatpipe rank`: people rank what models wrote."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatpipe.cli.options import Json
from chatpipe.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chatpipe.ranking.store import Store

EPILOG = "Example: chatpipe rank completions.jsonl"


def rank(
    file: Annotated[Path, typer.Argument(help="A completions file, as chatpipe sample writes it.")],
    store: Annotated[
        Path | None, typer.Option("--store", help="Where rankings are kept; default: FILE with .rankings.db.")
    ] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="Rank in the terminal, not in the browser.")] = False,
    annotator: Annotated[str | None, typer.Option(help="Your name; default: the login name.")] = None,
    annotators: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Several people at once, each at an address of their own.")
    ] = None,
    overlap: Annotated[int, typer.Option(min=1, help="How many people rank each item.")] = 1,
    repeats: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of items that come a second time, hidden among others.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="The order of items and answers; a store keeps its own.")] = 0,
    host: Annotated[
        str, typer.Option(help="The address that others reach this machine at; needs --annotators.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port of the page; 0 takes a free one.")] = 8642,
    json: Json = False,
) -> None:
    """Rank completions in the browser (or --terminal): whole answers side by side, blinded, every step saved."""
    from chatpipe import console
    from chatpipe.ranking.items import read_items
    from chatpipe.ranking.people import login_name, progress_of, read_names
    from chatpipe.ranking.store import Store

    if annotator and annotators:
        raise UsageError("--annotator and --annotators exclude each other.", "Give one of them.")
    if terminal and annotators:
        raise UsageError("--terminal is for one person.", "Give your name alone: --annotator NAME.")
    names = read_names(annotators) if annotators else [annotator or login_name()]
    work = _in_terminal if terminal else _in_browser(host, port, is_team=bool(annotators))
    path = store or file.with_suffix(".rankings.db")
    with Store.create_or_open(path, read_items(file), seed, overlap, repeats) as opened:
        was_stopped = False
        try:
            work(opened, names)
        except KeyboardInterrupt:
            was_stopped = True
        progress = progress_of(opened, names)
    if json:
        console.json_object({"store": str(path), **progress.to_json()})
    done = f"{progress.settled} of {progress.items} items are ranked; the rankings are in {path}."
    if was_stopped and not progress.is_complete:
        raise Interrupted(f"Stopped: {done}", "All that was called saved is kept; the same command goes on.")
    console.note(done)


def _in_terminal(store: "Store", names: "Sequence[str]") -> None:
    from chatpipe.ranking.session import Session
    from chatpipe.ranking.terminal import rank_in_terminal

    [name] = names
    store.add_annotator(name, "person")
    rank_in_terminal(Session(store, name))


def _in_browser(host: str, port: int, is_team: bool) -> "Callable[[Store, Sequence[str]], None]":
    """What serves the page; the port is taken here, before anything is written."""
    try:
        from chatpipe.ranking.web import server
        from chatpipe.ranking.web.security import is_loopback
    except ModuleNotFoundError as problem:
        package = (problem.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn"):
            raise
        raise UsageError(
            f"The ranking page needs the package {package}.",
            "pip install 'chatpipe[web]', or rank in the terminal: --terminal.",
        ) from problem
    if not is_team and not is_loopback(host):
        raise UsageError(
            f"At {host} others reach the page, so each of them needs an address of their own.",
            "Give their names: --annotators ann,ben.",
        )
    listening = server.open_socket(host, port)
    return lambda store, names: server.serve_annotators(store, names, listening, host)
