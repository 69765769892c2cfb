"""`chatpipe rankings`: exports and statistics of a store, also while a server writes to it."""

from pathlib import Path
from typing import Annotated

import typer

from chatpipe.cli.options import Json

app = typer.Typer(help="Export rankings; statistics of annotators.", no_args_is_help=True)

EXPORT_EPILOG = "Example: chatpipe rankings export rankings.db -o rankings.jsonl"
STATS_EPILOG = "Example: chatpipe rankings stats rankings.db"

StoreFile = Annotated[Path, typer.Argument(metavar="STORE", help="The store that `chatpipe rank` wrote.")]


@app.command("export", epilog=EXPORT_EPILOG)
def export(
    store: StoreFile,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")],
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Pairs for TRL, with margin, group_id and weight; default: rankings.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the rankings to a file that `chatpipe rm` reads, without hidden repeats and skips."""
    from chatpipe import console
    from chatpipe.cli.show_rankings import show_export
    from chatpipe.ranking.export import export
    from chatpipe.ranking.store import Store

    with Store.read(store) as opened:
        exported = export(opened, out, as_pairs=pairs)
    show_export(exported)
    if json:
        console.json_object(exported.to_json())


@app.command("stats", epilog=STATS_EPILOG)
def stats(store: StoreFile, json: Json = False) -> None:
    """Show progress, pace, agreement and position effect: of all annotators, and of each."""
    from chatpipe import console
    from chatpipe.cli.show_rankings import show_stats
    from chatpipe.ranking.stats import store_stats
    from chatpipe.ranking.store import Store

    with Store.read(store) as opened:
        found = store_stats(opened)
    if json:
        console.json_object(found)
    else:
        show_stats(found)
