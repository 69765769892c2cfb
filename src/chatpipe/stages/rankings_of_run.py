"""Between a policy and the reward model: the answers that a round samples, who ranks them, and the rankings file.

Beside `rankings/round-N.jsonl` stand the answers (`.completions.jsonl`), the store in which they are ranked (`.db`),
and what the rankings were made from (`.json`). Rankings by programs that were made from something else are made anew;
what people ranked is never deleted.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from chatpipe import console
from chatpipe.data.datasets import Conversation, load_rankings
from chatpipe.data.durable import PARTIAL, replace_text
from chatpipe.data.locking import alone_with
from chatpipe.data.sources import check_sources, data_fingerprints, named_files
from chatpipe.data.worlds import is_world, world_settings
from chatpipe.errors import ChatpipeError, UsageError, WaitingForRankings
from chatpipe.models.manifest import checkpoint_id
from chatpipe.ranking.completions import Sampling, made_from, made_of, make_completions
from chatpipe.ranking.database import has_begun
from chatpipe.ranking.export import ranking_row
from chatpipe.ranking.items import Item, read_items
from chatpipe.ranking.prompts_to_rank import prompts_to_rank
from chatpipe.ranking.raters import check_rater, rank_with_program, rater_fingerprint
from chatpipe.ranking.store import Store, StoredRanking, who_ranked
from chatpipe.recipe.schema import Recipe
from chatpipe.stages.step import (
    PEOPLE,
    answering_model,
    in_round,
    rankings_blocks,
    rankings_file,
    rater_is_model,
    run_ranks,
)

COMPLETE = "complete"
"""In the note beside the rankings: whether they are all there."""
_KEEP = "Keep what they said: `chatpipe rankings export {store} -o FILE`, then rm.data=FILE."


def check_rankings_can_be_made(recipe: Recipe) -> str:
    """Raises `UsageError` where the prompts, the rater or the answering model of the recipe's round cannot be used."""
    if recipe.round > 1 and not rankings_file(recipe).exists() and not Path(answering_model(recipe)).is_dir():
        raise UsageError(
            f"Round {recipe.round} ranks answers of {answering_model(recipe)}, which is not there yet.",
            f"Run `chatpipe ppo ... round={recipe.round - 1}` first.",
        )
    check_sources(recipe.sample.data, "rm.data (or sample.data, to have rankings made)")
    if is_world(recipe.rank.rater):
        for block in recipe.sample.data or []:
            if block.source != recipe.rank.rater:
                raise UsageError(
                    f"sample.data = {block.source}: {recipe.rank.rater} cannot score answers to these prompts.",
                    "Set rank.rater: people, a reward model, or module:function; or give rankings with rm.data=FILE.",
                )
    elif recipe.rank.rater != PEOPLE:
        check_rater(recipe.rank.rater, "rank.rater")
    return f"{recipe.sample.prompts} prompts, {recipe.sample.k} answers each, ranked by {recipe.rank.rater}"


def check_rankings_apart(recipe: Recipe) -> str:
    """The run writes down what it was ranked by: `rm.data` can name neither such a file nor a folder that holds one."""
    rounds = range(1, max(recipe.rounds, recipe.round) + 1)
    written = [rankings_file(in_round(recipe, number)) for number in rounds]
    for block in recipe.rm.data or []:
        for path in (Path(block.source), *named_files(block)):
            found = [file for file in written if file.resolve().is_relative_to(path.resolve())]
            if found:
                raise UsageError(
                    f"rm.data = {block.source} is, or holds, {found[0]}, into which this run writes its rankings.",
                    "Copy what you need to another place and give the copy, or leave rm.data out.",
                )
    return str(rankings_file(recipe))


def check_nobody_ranked(recipe: Recipe) -> None:
    """Raises `UsageError` where people ranked answers in the recipe's round: other models would not have given them."""
    people = who_ranked(_beside(recipe, ".db")) if run_ranks(recipe) else []
    if people:
        raise UsageError(
            f"--fresh makes all models anew, but {_named(people)} ranked answers of these in {_beside(recipe, '.db')}.",
            f"{_KEEP.format(store=_beside(recipe, '.db'))} Or choose another folder with out=.",
        )


def ensure_rankings(recipe: Recipe, may_replace: bool = True) -> None:
    """Makes the rankings file of the recipe's round: sampled and ranked now, or written down as `rm.data` was read.

    Raises `WaitingForRankings` while people have not ranked everything, and `UsageError` where what is there was made
    in another way and must not be replaced: people's rankings, or any without `may_replace`.
    """
    path, note = rankings_file(recipe), _beside(recipe, ".json")
    now, noted = _made_from(recipe), _read_note(note)
    in_the_making, made = {**now, COMPLETE: False}, {**now, COMPLETE: True}
    is_current = path.exists() and noted == made
    by_people = run_ranks(recipe) and recipe.rank.rater == PEOPLE
    if is_current and not (by_people and may_replace):  # people may have ranked more since
        return
    if path.exists() and not (is_current or may_replace):
        raise UsageError(
            f"{path} was made in another way: with another model, rater, seed or other sample.* or rank.*.",
            f"Choose another run with out=, or have it made anew in this one: leave out --out. See {note}.",
        )
    if run_ranks(recipe):
        if not by_people and noted != in_the_making:
            _clear_store(recipe)  # what other settings left in it is gone before the note says what is in the making
        _sample(recipe)
    # From here on, and until they are complete, rankings that are there already are known as those of other settings.
    replace_text(note, json.dumps(in_the_making, indent=2))
    if run_ranks(recipe):
        rankings = _ranked_by_people(recipe) if by_people else _ranked_by_program(recipe)
        if not rankings:
            raise UsageError(
                f"rank: every prompt of round {recipe.round} was skipped, which leaves nothing to learn from.",
                f"Rank some with `{_rank_command(recipe)}` (undo leads back to them), then give this command again."
                if by_people
                else f"See {_beside(recipe, '.db')} (chatpipe rankings stats), or choose another rank.rater.",
            )
        _write(path, map(ranking_row, rankings))
        console.note(f"rank: {len(rankings)} rankings of up to {recipe.sample.k} answers written to {path}")
    else:
        loaded = load_rankings(rankings_blocks(recipe), recipe.worlds, "rm.data")
        _write(path, (ranking.to_row() for ranking in [*loaded.train, *loaded.validation]))
    replace_text(note, json.dumps(made, indent=2))


def tell_newer_rankings(recipe: Recipe) -> None:
    """Says so where people have ranked on since the reward model of the recipe's round was trained."""
    if not run_ranks(recipe) or recipe.rank.rater != PEOPLE or not has_begun(_beside(recipe, ".db")):
        return
    try:
        with Store.read(_beside(recipe, ".db")) as store:
            now = "".join(map(_line, map(ranking_row, _ranked(_said_by_people(store)))))
    except ChatpipeError as problem:  # the stage itself does not need the store any more
        console.note(f"rm: {problem.message}")
        return
    if now != rankings_file(recipe).read_text(encoding="utf-8"):
        again = f"round={recipe.round} " if recipe.round > 1 else ""
        console.note(
            f"rm: people have ranked on since round {recipe.round} was trained; `chatpipe rm ... {again}--fresh` "
            "takes that in."
        )


def forget_rankings(recipe: Recipe) -> None:
    """Deletes what the run sampled and ranked in the recipe's round; what `rm.data` named is only written down anew.

    Answers that people have ranked stay, with what these said of them. Raises `UsageError` where somebody ranks now.
    """
    if not run_ranks(recipe):
        return
    store = _beside(recipe, ".db")
    if store.parent.exists():
        with alone_with(store):  # whoever ranks holds it
            if not who_ranked(store):
                _delete_store(store)
                _delete(_completions(recipe), _completions(recipe).with_suffix(f".jsonl.0-of-1{PARTIAL}"))
            _delete(rankings_file(recipe), _beside(recipe, ".json"))


def _delete_store(store: Path) -> None:
    """All of it but the lock: two that lock it must lock the same file."""
    _delete(*(Path(f"{store}{ending}") for ending in ("", "-wal", "-shm", ".key")))


def _delete(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _sample(recipe: Recipe) -> None:
    """The completions file of the round, going on where it broke off."""
    path, models = _completions(recipe), [answering_model(recipe)]
    settings, prompts = recipe.sample, _prompts(recipe)
    sampling = Sampling(settings.k, recipe.seed, settings.max_new_tokens, settings.temperature)
    if path.exists() and made_of(path) != made_from(models, prompts, sampling, recipe.round):
        _refuse_to_replace_people(recipe, f"{path} was sampled in another way: another model, sample.* or seed")
        forget_rankings(recipe)
    written = make_completions(path, models, prompts, sampling, recipe.round)
    if written is not None and written.left_out:
        console.note(f"sample: {written.left_out} prompts left out: too few different answers that end")


def _refuse_to_replace_people(recipe: Recipe, what: str) -> None:
    """Raises `UsageError` where people have ranked the answers of the round."""
    store = _beside(recipe, ".db")
    people = who_ranked(store)
    if people:
        raise UsageError(
            f"{what}, and {_named(people)} ranked it in {store}.",
            f"Go back to the settings before, or choose another folder with out=. {_KEEP.format(store=store)}",
        )


def _named(people: Sequence[str]) -> str:
    return ", ".join([*people[:5], *(["others"] if len(people) > 5 else [])])


def _prompts(recipe: Recipe) -> list[Conversation]:
    """As many prompts as a round samples; each round takes those behind the ones of the round before, in a circle."""
    prompts = prompts_to_rank(recipe.sample.data or [], recipe.worlds, "sample.data")
    count = min(recipe.sample.prompts, len(prompts))
    first = (recipe.round - 1) * count
    if first + count > len(prompts):
        console.note(f"sample: round {recipe.round} asks prompts of earlier rounds again: there are {len(prompts)}")
    return [prompts[i % len(prompts)] for i in range(first, first + count)]


def _clear_store(recipe: Recipe) -> None:
    """Deletes what programs ranked in the round. Raises `UsageError` where people did, or somebody ranks now."""
    store = _beside(recipe, ".db")
    with alone_with(store):
        rater = recipe.rank.rater
        _refuse_to_replace_people(recipe, f"rank.rater = {rater} would rank {_completions(recipe)} anew")
        _delete_store(store)


def _ranked_by_program(recipe: Recipe) -> list[StoredRanking]:
    """What the rater says of all answers, going on where it was killed."""
    rank = recipe.rank
    items = read_items(_completions(recipe))
    with (
        Store.create_or_open(_beside(recipe, ".db"), items, seed=recipe.seed, overlap=1, repeats=0) as store,
        console.progress("rank", len(items)) as bar,
    ):
        rank_with_program(
            store,
            rank.rater,
            seed=recipe.seed,
            temperature=rank.temperature,
            worlds=recipe.worlds,
            on_ranked=bar.update,
            key="rank.rater",
        )
        return _ranked(said for said in store.rankings() if said.annotator == rank.rater)


def _ranked_by_people(recipe: Recipe) -> list[StoredRanking]:
    path, items = _beside(recipe, ".db"), read_items(_completions(recipe))
    said: list[StoredRanking] = []
    if has_begun(path):
        with Store.read(path) as store:
            _check_ranks_these(store, items, _completions(recipe))
            said = _said_by_people(store)
    answers = Counter(one.item.id for one in said)
    settled = sum(count >= recipe.rank.overlap for count in answers.values())
    if settled < len(items):
        by = f" by {recipe.rank.overlap} people" if recipe.rank.overlap > 1 else ""
        raise WaitingForRankings(
            f"Round {recipe.round} waits for people: {settled} of {len(items)} prompts are ranked{by}.",
            f"Rank them with `{_rank_command(recipe)}`, then give this command again.",
        )
    return _ranked(said)


def _rank_command(recipe: Recipe) -> str:
    """What people type to rank the answers of the round."""
    words = ["chatpipe", "rank", str(_completions(recipe)), "--store", str(_beside(recipe, ".db"))]
    words += ["--overlap", str(recipe.rank.overlap)] if recipe.rank.overlap > 1 else []
    return shlex.join(words)


def _check_ranks_these(store: Store, items: Sequence[Item], completions: Path) -> None:
    if {item.id for item in store.items} != {item.id for item in items}:
        raise UsageError(
            f"{store.path} ranks other answers than {completions}.",
            f"Move it away, and rank these: chatpipe rank {completions} --store {store.path}",
        )


def _said_by_people(store: Store) -> list[StoredRanking]:
    """What people said of each item the first time that they saw it, skips with it."""
    return [said for said in store.rankings() if said.kind == "person" and not said.repeat]


def _ranked(said: Iterable[StoredRanking]) -> list[StoredRanking]:
    return [one for one in said if one.skipped is None]


def _made_from(recipe: Recipe) -> dict[str, Any]:
    """What decides what stands in the rankings file of the round."""
    if not run_ranks(recipe):
        return {"rm.data": data_fingerprints(recipe.rm.data or [], "rm.data")}
    sections = {name: getattr(recipe, name).model_dump(mode="json") for name in ("sample", "rank")}
    worlds = world_settings(recipe.sample.data, recipe.worlds)
    rater = recipe.rank.rater
    who = rater if rater == PEOPLE or is_world(rater) else rater_fingerprint(rater, "rank.rater")
    if rater_is_model(recipe):  # which may be moved
        del sections["rank"]["rater"]
    return {
        "model": checkpoint_id(answering_model(recipe)),
        "prompts": data_fingerprints(recipe.sample.data or [], "sample.data"),
        "rater": who,
        "seed": recipe.seed,
        "worlds": worlds,
        **sections,
    }


def _read_note(note: Path) -> Any:
    """What the rankings were made from; None where that is not known, as of a damaged file."""
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _completions(recipe: Recipe) -> Path:
    return _beside(recipe, ".completions.jsonl")


def _beside(recipe: Recipe, suffix: str) -> Path:
    return rankings_file(recipe).with_suffix(suffix)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    replace_text(path, "".join(map(_line, rows)))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
