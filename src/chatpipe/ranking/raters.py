"""Programs that rank in place of people: the oracle of a built-in world, a reward model, or a Python function.

    rank_with_program(store, "pocketworld", seed=0)
    rank_with_program(store, "runs/pocket/rm", seed=0)
    rank_with_program(store, "my_rater:by_length", seed=0)

Each gives a score to every response, and the scores are ranked. What they say goes into the same store as what people
say, under annotators marked as programs. Importing this loads no torch.
"""

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chatpipe.data.chat_template import Message
from chatpipe.data.worlds import Worlds, WorldSource, is_world, world_named
from chatpipe.models.manifest import checkpoint_id
from chatpipe.models.model_folder import check_model
from chatpipe.ranking.answers import Answer, blank
from chatpipe.ranking.assignment import Task
from chatpipe.ranking.history import History, Step
from chatpipe.ranking.items import Item
from chatpipe.ranking.scoring import Asked, Scorer, model_scorer
from chatpipe.ranking.store import Store
from chatpipe.recipe import load_recipe
from chatpipe.reward.functions import check_function, is_function, source_fingerprint

KEY = "--rater"
RECIPE = "pocket"
"""The packaged recipe whose world and noise stand where none are given."""
TOO_LONG = "an answer is longer than the reward model reads"
ITEMS_AT_ONCE = 32


@dataclass(frozen=True)
class Rater:
    """Ranks by what `score` says, with noise of `temperature`; `made_from` tells one way to score from another."""

    score: Scorer
    made_from: str
    temperature: float
    seed: int

    def rank(self, asked: Sequence[Asked]) -> list[list[int] | None]:
        """The ranks of the responses to each prompt (`draw_ranks`); None where they cannot be read.

        The noise depends on the seed, the prompt and the responses alone, not on what is ranked beside them.
        """
        return [self._ranks(one, scores) for one, scores in zip(asked, self.score(asked), strict=True)]

    @property
    def fingerprint(self) -> str:
        """16 hex digits for everything that decides the ranks."""
        text = json.dumps([self.made_from, self.temperature, self.seed])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _ranks(self, asked: Asked, scores: list[float] | None) -> list[int] | None:
        if scores is None:
            return None
        noise = random.Random(json.dumps([self.seed, *asked]))
        return draw_ranks(scores, asked[1], noise, self.temperature)


@dataclass(frozen=True)
class Ranked:
    """What a program did: how many items it `ranked` and `skipped` (by reason), and how many it had done `before`."""

    annotator: str
    ranked: int
    before: int
    skipped: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The one object of `--json`."""
        return asdict(self)


def check_rater(name: str, key: str = KEY) -> None:
    """Raises `UsageError` naming `key` where `name` is no rater, as far as files tell that without torch."""
    if is_world(name):
        return
    if is_function(name):
        check_function(name, key)
    else:
        check_model(name, "reward", key)


def rater_fingerprint(name: str, key: str = KEY) -> str:
    """What tells one rater from another of the same name: of a model its weights, of a function its source."""
    return source_fingerprint(name, key) if is_function(name) else checkpoint_id(name)


def rank_with_program(
    store: Store,
    rater: str,
    *,
    seed: int,
    temperature: float | None = None,
    worlds: Worlds | None = None,
    annotator: str | None = None,
    on_ranked: Callable[[int], None] | None = None,
    key: str = KEY,
) -> Ranked:
    """Has a program rank all items of `store`, but those that it has ranked before under the same name.

    `rater` is a built-in world, a reward model's folder or hub id, or `module:function` as in `ppo.reward`.
    `temperature` is the noise in units of the scores, 0 for none; without one, a world has that of the recipe `pocket`,
    others none. `worlds` has the settings of the worlds, by default the recipe's too. `annotator` is the name in the
    store, by default `rater`. `on_ranked` hears how many of all items are done. `key` is the option or recipe key that
    errors name.

    Raises `UsageError` where the rater cannot be used, or has ranked here under this name with other settings.
    """
    check_rater(rater, key)
    program = load_rater(rater, seed, temperature, worlds, key)
    annotator = annotator or rater
    store.add_annotator(annotator, "program", program.fingerprint)
    before = {task.item for task in store.tasks(annotator)}
    left = [item for item in store.items if item.id not in before]
    skipped: Counter[str] = Counter()
    done = 0
    for start in range(0, len(left), ITEMS_AT_ONCE):
        items = left[start : start + ITEMS_AT_ONCE]
        ranked = program.rank([(item.prompt, item.responses) for item in items])
        with store.together():
            for item, ranks in zip(items, ranked, strict=True):
                _record(History(store, annotator), item, ranks)
                if ranks is None:
                    skipped[TOO_LONG] += 1
        done += len(items)
        if on_ranked is not None:
            on_ranked(len(before) + done)
    return Ranked(annotator, done - skipped.total(), len(before), dict(skipped))


def load_rater(
    name: str, seed: int, temperature: float | None = None, worlds: Worlds | None = None, key: str = KEY
) -> Rater:
    """The rater of that name, as `rank_with_program` describes it."""
    if is_world(name):
        recipe = load_recipe(RECIPE).recipe
        noise = recipe.rank.temperature if temperature is None else temperature
        return _oracle_rater(world_named(name, worlds or recipe.worlds), seed, noise)
    if is_function(name):
        return Rater(_function_scorer(name, key), rater_fingerprint(name, key), temperature or 0.0, seed)
    return Rater(model_scorer(name, key), rater_fingerprint(name, key), temperature or 0.0, seed)


def _record(history: History, item: Item, ranks: list[int] | None) -> None:
    task, k = Task(item.id, False), len(item.responses)
    history.show(task, list(range(k)))
    if ranks is None:
        history.record(Step(f"skip {item.id}", "skip", task, blank(k), TOO_LONG))
    else:
        history.record(Step(f"submit {item.id}", "submit", task, Answer([*ranks])))


# ---- ways to score, beside a reward model's (scoring) ----


def _oracle_rater(world: WorldSource, seed: int, temperature: float) -> Rater:
    oracle = world.oracle()

    def score(asked: Sequence[Asked]) -> list[list[float] | None]:
        return [[oracle.rate(prompt, response).score for response in responses] for prompt, responses in asked]

    return Rater(score, oracle.made_from, temperature, seed)


def _function_scorer(name: str, key: str) -> Scorer:
    """A function as `ppo.reward` takes them: it is held to one finite number for each response, by its name."""
    from chatpipe.reward.functions import load_function
    from chatpipe.reward.rewards import CheckedFunction

    function = CheckedFunction(load_function(name, key))

    def score(asked: Sequence[Asked]) -> list[list[float] | None]:
        prompts: list[str | list[Message]] = [prompt for prompt, responses in asked for _ in responses]
        responses = [response for _, some in asked for response in some]
        given = iter(function(prompts, responses, [True] * len(responses)).tolist())
        return [[next(given) for _ in some] for _, some in asked]

    return score


# ---- from scores to ranks ----


def draw_ranks(
    scores: Sequence[float], completions: Sequence[str], rng: random.Random, temperature: float
) -> list[int]:
    """Ranks of `completions`, 1 for the best: a draw from the Plackett-Luce model of `scores` / `temperature`.

    Each different text gets its score / temperature plus Gumbel noise, so equal texts tie, and any other two are
    ordered as Bradley and Terry have it: P(i before j) = sigmoid((score_i - score_j) / temperature). `temperature` 0
    ranks exactly; then equal scores tie too. (Yellott 1977, "The relationship between Luce's Choice Axiom, Thurstone's
    Theory of Comparative Judgment, and the double exponential distribution".)
    """
    utilities: dict[str, float] = {}
    for score, text in zip(scores, completions, strict=True):
        if text not in utilities:
            utilities[text] = score / temperature + gumbel(rng) if temperature > 0 else score
    order = sorted(set(utilities.values()), reverse=True)
    return [order.index(utilities[text]) + 1 for text in completions]


def gumbel(rng: random.Random) -> float:
    """A draw from the standard Gumbel distribution."""
    return -math.log(-math.log(rng.random() or 0.5))
