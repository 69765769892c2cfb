"""Between a policy and the reward model: the answers that a round samples, who ranks them, and the rankings file.

Beside `rankings/round-N.jsonl` stand the answers (`.completions.jsonl`), the store in which they are ranked (`.db`),
and what the rankings were made from (`.json`); rankings that were made from something else are made anew.
"""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chatpipe import console
from chatpipe.checkpoints import checkpoint_id
from chatpipe.data.load import Conversation, load_prompts, load_rankings
from chatpipe.data.sources import check_sources, data_fingerprints
from chatpipe.durable import replace_text
from chatpipe.errors import UsageError, WaitingForRankings
from chatpipe.ranking.completions import made_of
from chatpipe.ranking.export import ranking_row
from chatpipe.ranking.items import read_items
from chatpipe.ranking.making import Sampling, made_from, make_completions
from chatpipe.ranking.raters import check_rater, rank_with_program, rater_fingerprint
from chatpipe.ranking.standing import StandingRanking, standing_rankings
from chatpipe.ranking.store import Store
from chatpipe.recipe.schema import POCKETWORLD, Recipe
from chatpipe.stages.job import PEOPLE, answering_model, rankings_blocks, rankings_file, run_ranks


def check_rankings_can_be_made(recipe: Recipe) -> str:
    """Raises `UsageError` where the prompts, the rater or the answering model of the recipe's round cannot be used."""
    if recipe.round > 1 and not rankings_file(recipe).exists() and not Path(answering_model(recipe)).is_dir():
        raise UsageError(
            f"Round {recipe.round} ranks answers of {answering_model(recipe)}, which is not there yet.",
            f"Run `chatpipe ppo ... round={recipe.round - 1}` first.",
        )
    check_sources(recipe.sample.data, "rm.data (or sample.data, to have rankings made)")
    if recipe.rank.rater == POCKETWORLD:
        for block in recipe.sample.data or []:
            if block.source != POCKETWORLD:
                raise UsageError(
                    f"sample.data = {block.source}: pocketworld's rater knows nothing of these prompts.",
                    "Set rank.rater: people, a reward model, or module:function; or give rankings with rm.data=FILE.",
                )
    elif recipe.rank.rater != PEOPLE:
        check_rater(recipe.rank.rater, "rank.rater")
    return f"{recipe.sample.prompts} prompts, {recipe.sample.k} answers each, ranked by {recipe.rank.rater}"


def check_rankings_apart(recipe: Recipe) -> str:
    """The run writes down what it was ranked by: that file cannot be what `rm.data` names."""
    written = rankings_file(recipe).resolve()
    if any(Path(block.source).resolve() == written for block in recipe.rm.data or []):
        raise UsageError(
            f"rm.data = {rankings_file(recipe)} is the file into which this run writes its rankings.",
            "Copy it to another place and give the copy, or leave rm.data out.",
        )
    return str(rankings_file(recipe))


def ensure_rankings(recipe: Recipe) -> None:
    """Makes the rankings file of the recipe's round: sampled and ranked now, or written down as `rm.data` was read.

    Raises `WaitingForRankings` while people have not ranked everything.
    """
    path, note = rankings_file(recipe), _beside(recipe, ".json")
    now = _made_from(recipe)
    if path.exists() and note.exists() and json.loads(note.read_text(encoding="utf-8")) == now:
        return
    if run_ranks(recipe):
        _sample(recipe)
        rankings = _ranked_by_people(recipe) if recipe.rank.rater == PEOPLE else _ranked_by_program(recipe)
        _write(path, map(ranking_row, rankings))
        console.note(f"rank: {len(rankings)} rankings of up to {recipe.sample.k} answers written to {path}")
    else:
        loaded = load_rankings(rankings_blocks(recipe), recipe.pocketworld, "rm.data")
        _write(path, (ranking.to_row() for ranking in [*loaded.train, *loaded.held_out]))
    replace_text(note, json.dumps(now, indent=2))


def forget_rankings(recipe: Recipe) -> None:
    """Deletes what the run sampled and ranked in the recipe's round; what `rm.data` named is only written down anew."""
    if run_ranks(recipe):
        for path in rankings_file(recipe).parent.glob(f"round-{recipe.round}.*"):
            path.unlink()


def _sample(recipe: Recipe) -> None:
    """The completions file of the round, going on where it broke off."""
    path, models = _completions(recipe), [answering_model(recipe)]
    settings, prompts = recipe.sample, _prompts(recipe)
    sampling = Sampling(settings.k, recipe.seed, settings.max_new_tokens, settings.temperature)
    if path.exists() and made_of(path) != made_from(models, prompts, sampling, recipe.round):
        if recipe.rank.rater == PEOPLE:
            raise UsageError(
                f"{path} was sampled in another way: by another model, or with other sample.* or seed.",
                "People may have ranked it already: go back to those settings, or choose another folder with out=.",
            )
        forget_rankings(recipe)
    written = make_completions(path, models, prompts, sampling, recipe.round)
    if written is not None and written.left_out:
        console.note(f"sample: {written.left_out} prompts left out: too few different answers that end")


def _prompts(recipe: Recipe) -> list[Conversation]:
    """As many prompts as a round samples; each round takes those behind the ones of the round before."""
    settings = recipe.sample
    loaded = load_prompts(settings.data or [], recipe.pocketworld, "sample.data")
    loaded.report.say()
    count = min(settings.prompts, len(loaded.train))
    first = (recipe.round - 1) * count
    return [loaded.train[i % len(loaded.train)] for i in range(first, first + count)]


def _ranked_by_program(recipe: Recipe) -> list[StandingRanking]:
    rank, store_file = recipe.rank, _beside(recipe, ".db")
    items = read_items(_completions(recipe))
    store_file.unlink(missing_ok=True)  # of a command that was killed, perhaps with another rater; soon made anew
    with (
        Store.create_or_open(store_file, items, seed=recipe.seed, overlap=1, repeats=0) as store,
        console.progress("rank", len(items)) as bar,
    ):
        rank_with_program(
            store,
            rank.rater,
            seed=recipe.seed,
            temperature=rank.temperature,
            world=recipe.pocketworld,
            on_ranked=bar.update,
        )
        return [said for said in standing_rankings(store) if said.skipped is None]


def _ranked_by_people(recipe: Recipe) -> list[StandingRanking]:
    path, needed = _beside(recipe, ".db"), len(read_items(_completions(recipe)))
    done: list[StandingRanking] = []
    if path.exists():
        with Store.read(path) as store:
            done = [said for said in standing_rankings(store) if not said.again]
    answers = [said.item.id for said in done]
    settled = sum(answers.count(item) >= recipe.rank.overlap for item in set(answers))
    if settled < needed:
        words = ["chatpipe", "rank", str(_completions(recipe)), "--store", str(path)]
        words += ["--overlap", str(recipe.rank.overlap)] if recipe.rank.overlap > 1 else []
        raise WaitingForRankings(
            f"Round {recipe.round} waits for people: {settled} of {needed} prompts are ranked.",
            f"Rank them with `{shlex.join(words)}`, then give this command again.",
        )
    return [said for said in done if said.skipped is None]


def _made_from(recipe: Recipe) -> dict[str, Any]:
    """What decides what stands in the rankings file of the round."""
    if not run_ranks(recipe):
        return {"rm.data": data_fingerprints(recipe.rm.data or [], "rm.data")}
    sections = {name: getattr(recipe, name).model_dump(mode="json") for name in ("sample", "rank", "pocketworld")}
    rater = recipe.rank.rater
    who = rater if rater in (POCKETWORLD, PEOPLE) else rater_fingerprint(rater, "rank.rater")
    return {"model": checkpoint_id(answering_model(recipe)), "rater": who, "seed": recipe.seed, **sections}


def _completions(recipe: Recipe) -> Path:
    return _beside(recipe, ".completions.jsonl")


def _beside(recipe: Recipe, suffix: str) -> Path:
    return rankings_file(recipe).with_suffix(suffix)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
