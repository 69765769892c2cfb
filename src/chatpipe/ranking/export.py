"""Exporting a store to the files that train a reward model: rankings, or pairs for TRL's RewardTrainer."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from chatpipe.data.durable import fingerprint, replace_text
from chatpipe.data.rankings import Ranking
from chatpipe.errors import UsageError
from chatpipe.ranking.store import Store, StoredRanking

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Exported:
    """The content of the written file `out`, in `format` rankings or pairs.

    `rows` lines were made of `rankings`; `all_bad` and `all_tied` count those. Hidden `repeats` and `skips` (by reason)
    are left out.
    """

    out: str
    format: str
    rows: int
    rankings: int
    annotators: dict[str, int]
    all_bad: int
    all_tied: int
    repeats: int
    skips: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The fields for `--json`."""
        return asdict(self)


def export(store: Store, path: Path, as_pairs: bool = False) -> Exported:
    """Writes all rankings of `store`, as rankings or as pairs; the file is complete or unchanged.

    Raises `UsageError` if there is nothing to write, or if `path` has something else than an earlier export of this
    store.
    """
    rankings = store.rankings()
    kept = [one for one in rankings if one.skipped is None and not one.repeat]
    rows = pair_rows(kept) if as_pairs else [ranking_row(one) for one in kept]
    if not rows:
        raise _nothing_to_export(store.path, len(kept))
    _check_replaceable(path, rows, store)
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return Exported(
        out=str(path),
        format="pairs" if as_pairs else "rankings",
        rows=len(rows),
        rankings=len(kept),
        annotators=dict(Counter(one.annotator for one in kept).most_common()),
        all_bad=sum(one.all_bad for one in kept),
        all_tied=sum(len(set(one.ranks)) == 1 for one in kept),
        repeats=sum(one.repeat and one.skipped is None for one in rankings),
        skips=dict(Counter(one.skipped for one in rankings if one.skipped is not None).most_common()),
    )


def ranking_row(one: StoredRanking) -> dict[str, Any]:
    """One line of a rankings file; also with `kind`, person or program, and with `all_bad` if no response is good."""
    item = one.item
    row = Ranking(item.prompt, item.responses, one.ranks, one.annotator, item.round, id=item.own_id).to_row()
    return {**row, "kind": one.kind, **({"all_bad": True} if one.all_bad else {})}


def pair_rows(rankings: Sequence[StoredRanking]) -> Rows:
    """Every two responses of which one is preferred, in TRL's conversational format, with three more fields.

    - `margin`: the difference of their ranks over the largest possible one, K - 1: in (0, 1]. TRL's loss subtracts it
      from the difference of the scores (Touvron et al. 2023, "Llama 2", section 3.2.2).
    - `group_id`: the same in all pairs of one prompt.
    - `weight`: one over the number of pairs of the prompt, so that the weights of each prompt add up to 1.
    """
    rows = [row for one in rankings for row in _pairs_of(one)]
    pairs = Counter(row["group_id"] for row in rows)
    return [{**row, "weight": 1 / pairs[row["group_id"]]} for row in rows]


def _pairs_of(one: StoredRanking) -> Iterator[dict[str, Any]]:
    item, ranks = one.item, one.ranks
    group = group_of(item.prompt)
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] == ranks[j]:
            continue
        better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
        yield {
            **({} if item.own_id is None else {"id": item.own_id}),
            "prompt": item.prompt,
            "chosen": [{"role": "assistant", "content": item.responses[better]}],
            "rejected": [{"role": "assistant", "content": item.responses[worse]}],
            "margin": (ranks[worse] - ranks[better]) / (len(ranks) - 1),
            "group_id": group,
        }


def group_of(prompt: Any) -> str:
    """16 hex digits that identify a prompt."""
    return fingerprint(prompt)[:16]


def _nothing_to_export(store: Path, rankings: int) -> UsageError:
    if rankings:
        return UsageError(
            f"{store} has {rankings} rankings, all of them ties, which give no pairs.", "Export without --pairs."
        )
    return UsageError(f"{store} has no rankings to export yet.", f"Make some: chatpipe rank FILE --store {store}")


def _check_replaceable(path: Path, rows: Rows, store: Store) -> None:
    """Raises `UsageError` unless there is no file yet, or an earlier export of the same store."""
    if path.is_dir():
        raise UsageError(f"-o = {path} is a folder.", "Name a file in it.")
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise UsageError(f"-o = {path} is a device or a pipe, which cannot be replaced.", "Name a file.")
    if path.exists() and not _is_earlier_export(path, rows, store):
        raise UsageError(
            f"-o = {path} exists, and is no earlier export of this store.", "Name another file, or remove it."
        )


def _is_earlier_export(path: Path, rows: Rows, store: Store) -> bool:
    """Whether each line of the file has the fields of an export, and a prompt and annotator of this store."""
    try:
        with path.open(encoding="utf-8") as file:  # splitlines() would also split inside texts that hold U+2028
            before = [json.loads(line) for line in file]
    except ValueError:
        return False
    is_ours = _pair_checker(store) if "chosen" in rows[0] else _ranking_checker(store)
    return all(isinstance(row, dict) and is_ours(row) for row in before)


def _pair_checker(store: Store) -> Callable[[dict[str, Any]], bool]:
    groups = {group_of(item.prompt) for item in store.items}
    fields = {"prompt", "chosen", "rejected", "margin", "group_id", "weight"}
    return lambda row: row.keys() - {"id"} == fields and row["group_id"] in groups


def _ranking_checker(store: Store) -> Callable[[dict[str, Any]], bool]:
    items = [[item.prompt, item.responses] for item in store.items]
    known = {json.dumps(item, sort_keys=True) for item in items}
    names = [annotator.name for annotator in store.annotators()]

    def is_ours(row: dict[str, Any]) -> bool:
        ranked = json.dumps([row.get("prompt"), row.get("responses")], sort_keys=True)
        return "ranks" in row and row.get("annotator") in names and ranked in known

    return is_ours
