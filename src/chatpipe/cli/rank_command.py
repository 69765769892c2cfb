"""`chatpipe rank`: people, or a program, rank what models wrote."""

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatpipe.cli.options import Json
from chatpipe.errors import Interrupted, UsageError, less_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chatpipe.ranking.store import Store

EPILOG = "Example: chatpipe rank completions.jsonl"
LOCAL, PORT = "127.0.0.1", 8642
Host = Annotated[
    str | None,
    typer.Option(
        help=f"The address to serve the page on; default: {LOCAL}, any other than localhost needs --annotators."
    ),
]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help=f"The port of the page; default: {PORT}, 0 takes a free one.")
]


def rank(
    file: Annotated[Path, typer.Argument(help="A completions file, as chatpipe sample writes it.")],
    store: Annotated[
        Path | None,
        typer.Option("--store", help="The database of the rankings; default: FILE with the ending .rankings.db."),
    ] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="Rank in the terminal, not in the browser.")] = False,
    rater: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Let a program rank: pocketworld, a reward model, or module:function."),
    ] = None,
    annotator: Annotated[
        str | None, typer.Option(help="Your name; default: the login name, or the rater's.", show_default=False)
    ] = None,
    annotators: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Names of several people; each gets their own address.")
    ] = None,
    overlap: Annotated[int, typer.Option(min=1, help="How many people rank each item.")] = 1,
    repeats: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of items that are shown twice, to measure consistency.")
    ] = 0.05,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the order, which an existing store keeps, and of a --rater's noise."),
    ] = 0,
    host: Host = None,
    port: Port = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Noise of the --rater; default: 0.3 for pocketworld, 0 for others.")
    ] = None,
    json: Json = False,
) -> None:
    """Rank completions in the browser or the terminal. Annotators see no model names; every step is saved."""
    from chatpipe.ranking.items import Item, read_items
    from chatpipe.ranking.store import Store, check_name
    from chatpipe.ranking.terminal import check_input

    path = store or _store_beside(file)

    def open_store(items: list[Item]) -> Store:
        return Store.create_or_open(path, items, seed, overlap, repeats)

    _check_options(rater, terminal, annotator, annotators, temperature)
    _check_page_options(host, port, has_page=rater is None and not terminal)
    if rater is not None:
        if annotator is not None:
            check_name(annotator)
        _rank_by_program(lambda: open_store(read_items(file)), file, rater, seed, temperature, annotator, json)
        return
    names = _names(annotator, annotators)
    for name in names:
        check_name(name)
    if terminal:
        check_input()
    else:
        _check_page(host or LOCAL, is_team=annotators is not None)
    items = read_items(file)
    front = _in_terminal if terminal else _in_browser(host or LOCAL, PORT if port is None else port)
    _rank_by_people(lambda: open_store(items), front, names, json)


def _check_options(
    rater: str | None, terminal: bool, annotator: str | None, annotators: str | None, temperature: float | None
) -> None:
    """Raises `UsageError` where options exclude each other."""
    if rater is not None and (terminal or annotators is not None):
        raise UsageError("--rater is a program: it excludes --terminal and --annotators.", "Give one of them.")
    if rater is None and temperature is not None:
        raise UsageError("--temperature is the noise of a --rater.", "Leave it out.")
    if annotators is not None and (annotator is not None or terminal):
        what = "--terminal is for one person" if terminal else "--annotator is one person"
        raise UsageError(f"{what}, --annotators are several.", "Give one of them.")


def _check_page_options(host: str | None, port: int | None, has_page: bool) -> None:
    if not has_page and (host is not None or port is not None):
        raise UsageError("--host and --port are those of the page, and none is served here.", "Leave them out.")


def _names(annotator: str | None, annotators: str | None) -> list[str]:
    """Who ranks: --annotators, or --annotator, or the login name."""
    if annotators is None and annotator is not None:
        return [annotator]
    if annotators is None:
        try:
            return [getpass.getuser()]
        except (OSError, KeyError, ImportError) as problem:
            raise UsageError("The system knows no login name.", "Give your name: --annotator NAME.") from problem
    names = [name.strip() for name in annotators.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise UsageError(
            f"--annotators {annotators!r}: a name is empty or given twice.", "Give names with commas between: ann,ben."
        )
    return names


def _store_beside(file: Path) -> Path:
    if not file.name:  # `.` and `/`
        raise UsageError(f"{file} is a folder.", "Give a completions file, or name the store with --store.")
    return file.with_suffix(".rankings.db")


def _rank_by_program(
    open_store: "Callable[[], Store]",
    file: Path,
    rater: str,
    seed: int,
    temperature: float | None,
    annotator: str | None,
    json: bool,
) -> None:
    from chatpipe import console
    from chatpipe.data.worlds import is_world
    from chatpipe.ranking.completions import worlds_of_answers
    from chatpipe.ranking.raters import check_rater, rank_with_program
    from chatpipe.reward.functions import is_function

    check_rater(rater)
    if not is_world(rater) and not is_function(rater):
        from chatpipe.training.machine import prepare_process

        prepare_process()
    with open_store() as store:
        total = len(store.items)
        worlds = worlds_of_answers(file) if is_world(rater) else None
        remedy = "Rank shorter answers (chatpipe sample --max-new-tokens N), or give a smaller reward model."
        with less_memory(remedy), console.progress("rank", total) as bar:
            done = rank_with_program(
                store,
                rater,
                seed=seed,
                temperature=temperature,
                worlds=worlds,
                annotator=annotator,
                on_ranked=bar.update,
            )
    console.note(f"{done.annotator} ranked {done.ranked + done.before} of {total} items, kept in {store.path}.")
    if json:
        console.json_object({"store": str(store.path), "items": total, **done.to_json()})


def _rank_by_people(
    open_store: "Callable[[], Store]",
    front: "Callable[[Store, Sequence[str]], None]",
    names: "Sequence[str]",
    json: bool,
) -> None:
    """Serves until Ctrl-C, which is an interruption only if something is left to rank."""
    from chatpipe import console

    was_stopped = False
    with open_store() as store:
        try:
            front(store, names)
        except KeyboardInterrupt:
            was_stopped = True
        progress = store.progress(names)
    if json:
        console.json_object({"store": str(store.path), **progress.to_json()})
    summary = f"{progress.settled} of {progress.items} items are ranked; the rankings are in {store.path}."
    if was_stopped and not progress.complete:
        raise Interrupted(f"Stopped: {summary}", "Everything shown as saved is kept; the same command continues.")
    console.note(summary)


def _in_terminal(store: "Store", names: "Sequence[str]") -> None:
    from chatpipe.ranking.session import Session
    from chatpipe.ranking.terminal import rank_in_terminal

    [name] = names
    store.add_annotator(name, "person")
    rank_in_terminal(Session(store, name))


def _check_page(host: str, is_team: bool) -> None:
    """Raises `UsageError` if the page cannot be served, as far as that is known before the port is opened."""
    try:
        import chatpipe.ranking.server  # noqa: F401
        from chatpipe.ranking.security import is_loopback
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


def _in_browser(host: str, port: int) -> "Callable[[Store, Sequence[str]], None]":
    """A function that serves the page; the port is opened here, before anything is written."""
    from chatpipe.ranking import server

    opened = server.open_socket(host, port)
    return lambda store, names: server.serve_annotators(store, names, opened, host)
