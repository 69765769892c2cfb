"""`chatpipe rankings`: what was ranked, as files to train on and as numbers. Works beside a running server."""

from pathlib import Path
from typing import Annotated

import typer

from chatpipe.cli.options import Json

app = typer.Typer(help="Export rankings, and tell how far annotators agree.", no_args_is_help=True)

EXPORT_EPILOG = "Example: chatpipe rankings export rankings.db -o rankings.jsonl"
STATS_EPILOG = "Example: chatpipe rankings stats rankings.db"

StoreFile = Annotated[Path, typer.Argument(metavar="STORE", help="What `chatpipe rank` wrote, by default rankings.db.")]


@app.command("export", epilog=EXPORT_EPILOG)
def export(
    store: StoreFile,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write, whole or not at all.")],
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Pairs for TRL, with margin, group_id and weight; default: rankings.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the rankings that stand to a file that `chatpipe rm` reads; hidden repeats and skips stay out."""
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
    """Tell progress, pace, agreement and position effect: of all, and of each annotator."""
    from chatpipe import console
    from chatpipe.cli.show_rankings import show_stats
    from chatpipe.ranking.stats import store_stats
    from chatpipe.ranking.store import Store

    with Store.read(store) as opened:
        told = store_stats(opened)
    if json:
        console.json_object(told)
    else:
        show_stats(told)
