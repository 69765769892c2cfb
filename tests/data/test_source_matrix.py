"""Every kind of source with every format that it can hold: the same rows are read to the same items."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from chatpipe.data.datasets import load_conversations, load_prompts, load_rankings
from chatpipe.data.documents import RawText
from chatpipe.data.rankings import Ranking
from chatpipe.recipe.schema import DataBlock

ROWS = 40
QUESTIONS = [f'Frage {i}: "Größe", ja?\nUnd was [noch]?' for i in range(ROWS)]
ANSWERS = [f"Antwort {i}, 中文." for i in range(ROWS)]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def human(text: str) -> dict:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict:
    return {"from": "gpt", "value": text}


# What a row of each format looks like that asks q, is answered a, and, where there is a second answer, worse by b.
ANSWERED = {
    "messages": lambda q, a, b: {"messages": [user(q), assistant(a)]},
    "sharegpt": lambda q, a, b: {"conversations": [human(q), gpt(a)], "system": ""},
    "alpaca": lambda q, a, b: {"instruction": q, "input": "", "output": a, "history": []},
    "prompt_completion": lambda q, a, b: {"prompt": q, "completion": a},
    "prompt_completion of messages": lambda q, a, b: {"prompt": [user(q)], "completion": [assistant(a)]},
    "question_answer": lambda q, a, b: {"question": q, "answer": a},
}
RANKED = {
    "rankings": lambda q, a, b: {"prompt": [user(q)], "responses": [a, b], "ranks": [1, 2]},
    "pairs": lambda q, a, b: {"prompt": q, "chosen": a, "rejected": b},
    "pairs with the dialogue inside": lambda q, a, b: {
        "chosen": f"\n\nHuman: {q}\n\nAssistant: {a}",
        "rejected": f"\n\nHuman: {q}\n\nAssistant: {b}",
    },
    "pairs of messages": lambda q, a, b: {"chosen": [user(q), assistant(a)], "rejected": [user(q), assistant(b)]},
    "pairs of sharegpt": lambda q, a, b: {"conversations": [human(q)], "chosen": gpt(a), "rejected": gpt(b)},
}
PROMPTS = {
    "prompts": lambda q, a, b: {"prompt": q},
    "prompts of messages": lambda q, a, b: {"prompt": [user(q)]},
}
FORMATS = {**ANSWERED, **RANKED, **PROMPTS}
KINDS = ["json", "jsonl", "csv", "parquet", "json.gz", "jsonl.gz", "csv.gz", "parquet.gz"]
PLACES = [*KINDS, "folder", "pattern", "hub jsonl", "hub csv", "hub parquet"]


def packed(rows: list[dict], kind: str) -> bytes:
    """A file of this kind that holds `rows`; lists in a cell of csv are JSON."""
    if kind.endswith(".gz"):
        return gzip.compress(packed(rows, kind.removesuffix(".gz")), compresslevel=1)
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == "csv":
        table = io.StringIO()
        writer = csv.DictWriter(table, rows[0])
        writer.writeheader()
        writer.writerows(
            {name: cell if isinstance(cell, str) else json.dumps(cell) for name, cell in row.items()} for row in rows
        )
        return table.getvalue().encode()
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def put(rows: list[dict], place: str, folder: Path) -> str:
    """Writes `rows` to such a source; returns its name in a recipe."""
    if place in KINDS:
        path = folder / f"rows.{place}"
        path.write_bytes(packed(rows, place))
        return str(path)
    if place in ("folder", "pattern"):
        for number, kind in enumerate(KINDS):
            path = folder / "all" / f"{number}" / f"rows.{kind}"
            path.parent.mkdir(parents=True)
            path.write_bytes(packed(rows[number::8], kind))
        return str(folder / "all") if place == "folder" else f"{folder}/all/*/rows.*"
    kind = place.removeprefix("hub ")
    (folder / "set").mkdir()
    (folder / "set" / f"train.{kind}").write_bytes(packed(rows, kind))
    return f"hub:{folder / 'set'}"


def read(load, source: str, form: str = "auto") -> list:
    """Both sides, in an order of their own, and every row is there."""
    loaded = load([DataBlock(source=source, format=form)], {}, "k")
    assert loaded.skipped == {}
    assert sum(said.rows for said in loaded.report.sources) == ROWS
    return sorted(map(repr, loaded.train + loaded.validation))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMATS)
def test_rows_are_read_to_the_same_items_from_any_place(form, place, tmp_path):
    rows = [FORMATS[form](q, a, f"{a} Oder?") for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    source = put(rows, place, tmp_path)
    asked = [[user(q)] for q in QUESTIONS]
    assert read(load_prompts, source) == sorted(map(repr, asked))
    if form not in PROMPTS:
        said = [[user(q), assistant(a)] for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
        assert read(load_conversations, source, form.split()[0]) == sorted(map(repr, said))
    if form in RANKED:
        ranked = [Ranking([user(q)], [a, f"{a} Oder?"], [1, 2]) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
        assert read(load_rankings, source) == sorted(map(repr, ranked))


@pytest.mark.parametrize("place", [*PLACES, "txt", "txt.gz"])
def test_text_is_read_to_the_same_documents_from_any_place(place, tmp_path):
    if place.startswith("txt"):
        data = "".join(f"{answer}\n" for answer in ANSWERS).encode()
        path = tmp_path / f"a.{place}"
        path.write_bytes(gzip.compress(data) if place == "txt.gz" else data)
        block = DataBlock(source=str(path), document="line")
    else:
        block = DataBlock(source=put([{"text": answer} for answer in ANSWERS], place, tmp_path))
    pieces = list(RawText(block, {}, "k").pieces())
    assert sorted(piece.text for piece in pieces) == sorted(ANSWERS)
