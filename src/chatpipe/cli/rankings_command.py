"""`chatpipe rankings`: exports and statistics of a store, also while a server writes to it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatpipe import console
from chatpipe.cli.options import Json

if TYPE_CHECKING:
    from chatpipe.ranking.export import Exported

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
    from chatpipe.ranking.stats import store_stats
    from chatpipe.ranking.store import Store

    with Store.read(store) as opened:
        found = store_stats(opened)
    if json:
        console.json_object(found)
    else:
        show_stats(found)


MEASURES = {
    "pair_agreement": "pair agreement",
    "tau_b": "Kendall tau-b",
    "kendall_w": "Kendall W",
    "ordinal_alpha": "ordinal alpha",
}
NOT_YET = "-"


def show_export(exported: "Exported") -> None:
    """A line about what was written, and one about what was left out."""
    ties = f", {exported.all_tied:,} of them all tied" if exported.all_tied else ""
    console.note(
        f"{exported.rows:,} {exported.format} written to {exported.out}, "
        f"from {exported.rankings:,} rankings by {len(exported.annotators)} annotators{ties}"
    )
    skips = sum(exported.skips.values())
    if exported.repeats or skips:
        console.note(f"left out: {exported.repeats:,} hidden repeats, {skips:,} skips{_reasons(exported.skips)}")


def show_stats(found: dict[str, Any]) -> None:
    """A table of all annotators and one of each: of people, then of programs, if there are any."""
    for kind in ("people", "programs"):
        group = found[kind]
        if group["annotators"]:
            console.table(kind, ("", ""), list(_all_rows(group, found["items"], found["overlap"])))
            console.table(f"{kind}, each", _COLUMNS, [_row(name, one) for name, one in group["annotators"].items()])
    if not found["people"]["annotators"] and not found["programs"]["annotators"]:
        console.note("Nobody has ranked here yet.")


_COLUMNS = ("", "rankings", "skips", "flags", "all bad", "seconds", "an hour", "with themselves", "position effect")


def _all_rows(group: dict[str, Any], items: int, overlap: int) -> Iterator[tuple[str, str]]:
    yield "items", f"{group['items_done']:,} of {items:,} have {overlap} rankings, {group['items_begun']:,} have some"
    yield "rankings", f"{group['rankings']:,}, and {group['repeats']:,} hidden repeats"
    yield "skips", f"{sum(group['skips'].values()):,}{_reasons(group['skips'])}"
    yield "flags, all bad", f"{group['flags']:,}, {group['all_bad']:,}"
    for key, name in MEASURES.items():
        yield name, _measure(group["agreement"][key])
    yield "with themselves", _measure(group["self_agreement"])
    yield "position effect", _position(group["position_effect"])
    for k, means in group["position_effect"]["mean_rank"].items():
        yield f"  mean rank of {k}, by place", "  ".join(f"{mean:.2f}" for mean in means)


def _row(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{one['rankings']:,}",
        f"{sum(one['skips'].values()):,}",
        f"{one['flags']:,}",
        f"{one['all_bad']:,}",
        _number(one["median_seconds"]),
        _number(one["rankings_per_hour"]),
        _measure(one["self_agreement"]),
        _position(one["position_effect"]),
    )


def _measure(measure: dict[str, Any]) -> str:
    if measure["value"] is None:
        return f"{NOT_YET} ({measure['reason']})"
    if measure["low"] is None:
        return f"{measure['value']:.3f} ({measure['reason']})"
    return f"{measure['value']:.3f} ({measure['low']:.3f} to {measure['high']:.3f}, {measure['items']:,} items)"


def _position(effect: dict[str, Any]) -> str:
    if effect["p_value"] is None:
        return f"{NOT_YET} ({effect['reason']})"
    return f"p = {effect['p_value']:.3f} ({effect['rankings']:,} rankings)"


def _number(value: float | None) -> str:
    return NOT_YET if value is None else f"{value:,.1f}"


def _reasons(skips: dict[str, int]) -> str:
    reasons = "; ".join(f"{count}: {reason}" for reason, count in skips.items())
    return f" ({reasons})" if reasons else ""
