"""What a person sees of a stage's data: rows, then a table of what all of them come to."""

from typing import TYPE_CHECKING, Any

from chatpipe import console

if TYPE_CHECKING:
    from chatpipe.run.data_view import DataView

MAX_CHARACTERS = 2000
"""Of a document without a tokenizer, which has no blocks yet."""


def show_data(view: "DataView") -> None:
    """The rows as the model will see them, in colour what is trained; then the summary."""
    if view.tokenizer is None:
        console.note(f"{view.stage}: no model is there yet to read this, so there are no tokens (--model gives one).")
    else:
        console.note(f"{view.stage}: read with the tokenizer of {view.tokenizer}.")
    for number, row in enumerate(view.rows, start=1):
        split = " (validation)" if row.get("split") == "validation" else ""
        tokens = f": {row['tokens']} tokens" if "tokens" in row else ""
        is_cut = "kept_tokens" in row and row["kept_tokens"] < row["tokens"]
        cut = f", {row['kept_tokens']} of them kept" if is_cut else ""
        console.note(f"--- row {number}{split}{tokens}{cut}")
        _show_row(row)
    console.table(f"{view.stage}.data", ("", ""), _summary_rows(view.summary))


def _show_row(row: dict[str, Any]) -> None:
    if row.get("parts"):
        console.marked([(part["text"], part.get("trained", part.get("ends_document"))) for part in row["parts"]])
    elif "messages" in row:
        if "parts" in row:
            console.warn("left out: its last answer, with what was asked, is longer than max_length.")
        _show_messages(row["messages"])
    elif "prompt" in row:
        if "text" in row:
            console.note(row["text"])
        else:
            _show_messages(row["prompt"])
        for answer in row.get("answers", []):
            tokens = f" ({answer['tokens']} tokens)" if "tokens" in answer else ""
            console.note(f"[rank {answer['rank']}]{tokens} {answer['text']}")
    else:
        more = " ..." if len(row["text"]) > MAX_CHARACTERS else ""
        console.note(row["text"][:MAX_CHARACTERS] + more)


def _show_messages(messages: list[dict[str, str]]) -> None:
    for message in messages:
        console.note(f"{message['role']}: {message['content']}")


def _summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [line for source in summary["sources"] for line in _source_rows(source)]
    rows.append(("rows", f"{summary['train_rows']:,} to train on, {summary['validation_rows']:,} for validation"))
    if not summary.get("read_whole", True):
        rows.append(("", "of the beginning of the text"))
    if summary.get("all_tied"):
        rows.append(("all answers tied", f"{summary['all_tied']:,} rows, which teach nothing"))
    lengths = summary["lengths"]
    if summary["measured_rows"]:
        told = (("smallest", "min"), ("median", "median"), ("95 %", "percentile_95"), ("largest", "max"))
        numbers = ", ".join(f"{name} {lengths[key]:,.0f}" for name, key in told)
        rows.append((f"{lengths['unit']} of {summary['measured_rows']:,} rows", numbers))
    if "max_length" in summary:
        rows.append(("max_length", f"{summary['max_length']:,}"))
    shares = (
        ("truncated_share", "longer than that"),
        ("left_out_share", "left out as too long"),
        ("eos_trained_share", "end-of-turn token trained"),
    )
    rows += [(name, f"{summary[key]:.1%}") for key, name in shares if summary.get(key) is not None]
    return rows


def _source_rows(source: dict[str, Any]) -> list[tuple[str, str]]:
    taken_for = " and ".join(source["formats"]) or "nothing that can be used"
    counted = f": {source['rows']:,} rows" if "rows" in source else ""
    rows = [(source["source"], f"read as {taken_for}{counted}")]
    rows += [
        ("  left out", f"{one['rows']:,}: {one['reason']} (first at {one['first']})")
        for one in source.get("left_out", [])
    ]
    if source.get("stops_the_stage"):
        rows.append(("", "more than max_skipped allows: the stage would stop"))
    return rows
