"""rank: what people or a program prefer among the answers of a round, as `rankings.jsonl`.

Where `rm.data` names rankings, the file holds these as they were read. The store `rankings.db` keeps every annotator's
rankings; people rank in it while the run waits, and may rank more afterwards.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from chatpipe import console
from chatpipe.data.datasets import load_rankings
from chatpipe.data.durable import replace_text
from chatpipe.errors import ChatpipeError, UsageError, WaitingForRankings
from chatpipe.ranking.database import has_begun
from chatpipe.ranking.export import ranking_row
from chatpipe.ranking.items import Item, read_items
from chatpipe.ranking.raters import model_scorer, rank_with_program
from chatpipe.ranking.store import Store, StoredRanking
from chatpipe.stages.ranking_steps import COMPLETIONS, RANKINGS_FILE, STORE_FILE, RankStep
from chatpipe.stages.step import Outcome
from chatpipe.training.ranks import end_sharing, heeding_parent, help_scoring


def run(step: RankStep) -> Outcome | None:
    """Writes the rankings of the round; the main process returns what came out.

    Raises `WaitingForRankings` while people have not ranked everything.
    """
    with heeding_parent(step.folder):
        if not step.is_main:
            if "rater" in step.models:
                help_scoring(model_scorer(step.models["rater"], "rank.rater"))
            return None
        if step.reads_given_rankings:
            given = load_rankings(step.data["rm.data"], step.recipe.worlds, "rm.data")
            rows = [ranking.to_row() for ranking in [*given.train, *given.validation]]
        else:
            rows = _ranked_rows(step)
    replace_text(step.folder / RANKINGS_FILE, _lines(rows))
    annotators = Counter(row["annotator"] for row in rows if row.get("annotator") is not None)
    metrics = {"rankings": len(rows), "annotators": dict(annotators)}
    return Outcome(metrics, {"status": "pass", "reasons": [f"{len(rows)} rankings by {step.ranked_by}"]})


def note_newer_rankings(step: RankStep) -> None:
    """Prints a note if people have ranked more since the step was done."""
    store, path = step.folder / STORE_FILE, step.folder / RANKINGS_FILE
    if not has_begun(store):
        return
    try:
        with Store.read(store) as opened:
            now = _lines(map(ranking_row, _not_skipped(_first_answers_of_people(opened))))
    except ChatpipeError as problem:  # rm itself does not need the store any more
        console.note(f"rank: {problem.message}")
        return
    if now != path.read_text(encoding="utf-8"):
        again = f"round={step.round} " if step.round > 1 else ""
        console.note(
            f"rank: people have ranked on since round {step.round} was trained; `chatpipe rm ... {again}--fresh` "
            "takes that in."
        )


def _ranked_rows(step: RankStep) -> list[dict[str, Any]]:
    """The rankings of the round as rows of the file."""
    items = read_items(_completions(step))
    rankings = _ranked_by_people(step, items) if step.asks_people else _ranked_by_program(step, items)
    if not rankings:
        raise UsageError(
            f"rank: every prompt of round {step.round} was skipped, which leaves nothing to learn from.",
            f"Rank some with `{_rank_command(step)}` (undo leads back to them), then give this command again."
            if step.asks_people
            else f"See {step.folder / STORE_FILE} (chatpipe rankings stats), or choose another rank.rater.",
        )
    return [ranking_row(ranking) for ranking in rankings]


def _ranked_by_program(step: RankStep, items: Sequence[Item]) -> list[StoredRanking]:
    """The rankings of the program that is the rater; a killed one continues."""
    rank, path = step.recipe.rank, step.folder / STORE_FILE
    with (
        Store.create_or_open(path, items, seed=step.recipe.seed, overlap=1, repeats=0) as store,
        console.progress("rank", len(items)) as bar,
    ):
        rank_with_program(
            store,
            rank.rater,
            seed=step.recipe.seed,
            temperature=rank.temperature,
            worlds=step.recipe.worlds,
            on_ranked=bar.update,
            key="rank.rater",
        )
        if "rater" in step.models:
            end_sharing()
        return _not_skipped(answered for answered in store.rankings() if answered.annotator == rank.rater)


def _ranked_by_people(step: RankStep, items: Sequence[Item]) -> list[StoredRanking]:
    """The rankings of people; raises `WaitingForRankings` while some items have too few."""
    path, overlap = step.folder / STORE_FILE, step.recipe.rank.overlap
    answered: list[StoredRanking] = []
    if has_begun(path):
        with Store.read(path) as store:
            _check_ranks_these(store, items, _completions(step))
            answered = _first_answers_of_people(store)
    answers = Counter(one.item.id for one in answered)
    settled = sum(count >= overlap for count in answers.values())
    if settled < len(items):
        by = f" by {overlap} people" if overlap > 1 else ""
        raise WaitingForRankings(
            f"Round {step.round} waits for people: {settled} of {len(items)} prompts are ranked{by}.",
            f"Rank them with `{_rank_command(step)}`, then give this command again.",
        )
    return _not_skipped(answered)


def _check_ranks_these(store: Store, items: Sequence[Item], completions: Path) -> None:
    if {item.id for item in store.items} != {item.id for item in items}:
        raise UsageError(
            f"{store.path} ranks other answers than {completions}.",
            f"Move it away, and rank these: chatpipe rank {completions} --store {store.path}",
        )


def _rank_command(step: RankStep) -> str:
    """The command with which people rank the answers of the round."""
    words = ["chatpipe", "rank", str(_completions(step)), "--store", str(step.folder / STORE_FILE)]
    words += ["--overlap", str(step.recipe.rank.overlap)] if step.recipe.rank.overlap > 1 else []
    return shlex.join(words)


def _completions(step: RankStep) -> Path:
    return Path(step.data[COMPLETIONS][0].source)


def _first_answers_of_people(store: Store) -> list[StoredRanking]:
    """What each person answered on first seeing an item, skips included."""
    return [answered for answered in store.rankings() if answered.kind == "person" and not answered.repeat]


def _not_skipped(answered: Iterable[StoredRanking]) -> list[StoredRanking]:
    return [one for one in answered if one.skipped is None]


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
