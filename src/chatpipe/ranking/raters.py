"""Programs that rank in place of people: the oracle of a built-in world, a reward model, or a Python function.

    rank_with_program(store, "pocketworld", seed=0)
    rank_with_program(store, "runs/pocket/rm", seed=0)
    rank_with_program(store, "my_rater:by_length", seed=0)

Each scores the responses, and the scores are ranked, with noise if asked. The rankings go into the same store as those
of people, under annotators marked as programs. Importing this loads no torch.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chatpipe.data.chat_template import Message
from chatpipe.data.durable import fingerprint
from chatpipe.data.worlds import Worlds, is_world, world_named
from chatpipe.errors import UsageError
from chatpipe.models.manifest import checkpoint_id, manifest_of_model
from chatpipe.models.model_folder import check_model
from chatpipe.ranking.history import History, Step
from chatpipe.ranking.items import Answer, Item, Task, blank
from chatpipe.ranking.store import Store
from chatpipe.recipe import load_recipe
from chatpipe.reward.functions import check_function, is_function, source_fingerprint
from chatpipe.training.ranks import shared

KEY = "--rater"
RECIPE = "pocket"
"""The packaged recipe that gives the settings of a world, and the noise of its oracle, where none are given."""
TOO_LONG = "an answer is longer than the reward model reads"
ITEMS_AT_ONCE = 32

Asked = tuple[list[Message], list[str]]
"""A prompt, and the responses to it."""
Scorer = Callable[[Sequence[Asked]], list[list[float] | None]]
"""The score of each response to each prompt, higher is better; None if the responses cannot be read."""


@dataclass(frozen=True)
class Rater:
    """Ranks by `score` with noise of `temperature`; `made_from` identifies the way to score."""

    score: Scorer
    made_from: str
    temperature: float
    seed: int

    @property
    def fingerprint(self) -> str:
        """The fingerprint of everything that decides the ranks."""
        return fingerprint([self.made_from, self.temperature, self.seed])

    def rank(self, asked: Sequence[Asked]) -> list[list[int] | None]:
        """The ranks of the responses to each prompt (`draw_ranks`); None if they cannot be read.

        The noise depends on the seed, the prompt and the responses alone, not on other prompts.
        """
        return [
            None if scores is None else draw_ranks(scores, one[1], self._noise(one), self.temperature)
            for one, scores in zip(asked, self.score(asked), strict=True)
        ]

    def _noise(self, asked: Asked) -> random.Random:
        return random.Random(json.dumps([self.seed, *asked]))


@dataclass(frozen=True)
class Ranked:
    """How many items a program `ranked` and `skipped` (by reason), and how many it had ranked or skipped `before`."""

    annotator: str
    ranked: int
    before: int
    skipped: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The fields for `--json`."""
        return asdict(self)


def check_rater(name: str, key: str = KEY) -> None:
    """Raises `UsageError` naming `key` if `name` is no rater, as far as files show it without torch."""
    if is_world(name):
        return
    if is_function(name):
        check_function(name, key)
    else:
        check_model(name, "reward", key)


def rater_fingerprint(name: str, key: str = KEY) -> str:
    """What differs between raters of the same name: a model's weights, a function's source."""
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
    """Has a program rank all items of `store` that it has not ranked before under the same name.

    Args:
        store: Open for writing.
        rater: A built-in world, a reward model's folder or hub id, or `module:function` as in `ppo.reward`.
        seed: Of the noise.
        temperature: The noise in units of the scores, 0 for none; default: a world's from the recipe `pocket`, else 0.
        worlds: The settings of the worlds; default: those of the recipe `pocket`.
        annotator: The name in the store; default: `rater`.
        on_ranked: Called with the number of items that are done.
        key: The option or recipe key that errors name.

    Raises `UsageError` if the rater cannot be used, or has ranked here under this name with other settings.
    """
    check_rater(rater, key)
    program = load_rater(rater, seed, temperature, worlds, key)
    annotator = annotator or rater
    store.add_annotator(annotator, "program", program.fingerprint)
    before = {task.item for task in store.tasks(annotator)}
    left = [item for item in store.items if item.id not in before]
    skipped: Counter[str] = Counter()
    for start in range(0, len(left), ITEMS_AT_ONCE):
        items = left[start : start + ITEMS_AT_ONCE]
        ranked = program.rank([(item.prompt, item.responses) for item in items])
        with store.together():
            for item, ranks in zip(items, ranked, strict=True):
                _record(History(store, annotator), item, ranks)
        skipped.update(TOO_LONG for ranks in ranked if ranks is None)
        if on_ranked is not None:
            on_ranked(len(before) + start + len(items))
    return Ranked(annotator, len(left) - skipped.total(), len(before), dict(skipped))


def _record(history: History, item: Item, ranks: list[int] | None) -> None:
    task, k = Task(item.id, False), len(item.responses)
    history.show(task, list(range(k)))
    if ranks is None:
        history.record(Step(f"skip {item.id}", "skip", task, blank(k), TOO_LONG))
    else:
        history.record(Step(f"submit {item.id}", "submit", task, Answer([*ranks])))


def load_rater(
    name: str, seed: int, temperature: float | None = None, worlds: Worlds | None = None, key: str = KEY
) -> Rater:
    """The rater of that name; the arguments are those of `rank_with_program`."""
    if is_world(name):
        recipe = load_recipe(RECIPE).recipe
        oracle = world_named(name, worlds or recipe.worlds).oracle()
        noise = recipe.rank.temperature if temperature is None else temperature
        return Rater(
            lambda asked: [[oracle.rate(prompt, text).score for text in texts] for prompt, texts in asked],
            oracle.made_from,
            noise,
            seed,
        )
    scorer = function_scorer(name, key) if is_function(name) else shared(model_scorer(name, key))
    return Rater(scorer, rater_fingerprint(name, key), temperature or 0.0, seed)


def function_scorer(name: str, key: str) -> Scorer:
    """The scores of a function as `ppo.reward` takes them: one finite number for each response."""
    from chatpipe.reward.functions import load_function
    from chatpipe.reward.rewards import CheckedFunction

    function = CheckedFunction(load_function(name, key))

    def score(asked: Sequence[Asked]) -> list[list[float] | None]:
        prompts: list[str | list[Message]] = [prompt for prompt, texts in asked for _ in texts]
        responses = [text for _, texts in asked for text in texts]
        given = iter(function(prompts, responses, [True] * len(responses)).tolist())
        return [[next(given) for _ in texts] for _, texts in asked]

    return score


def model_scorer(name: str, key: str) -> Scorer:
    """The scores of a reward model, a folder or a hub id; it reads responses as it did in training.

    Raises `UsageError` naming `key` if there is no reward model and, when it scores, if a score is not finite.
    """
    from chatpipe.checks.model_checks import embeddings_too_few
    from chatpipe.data.chat_template import add_chat_template
    from chatpipe.data.row_files import BadRow
    from chatpipe.models.pretrained import load_reward_model, load_tokenizer
    from chatpipe.models.properties import UNLIMITED, longest_sequence
    from chatpipe.reward.reward_model import score_sequences
    from chatpipe.reward.training_data import encode_answers

    tokenizer, model = load_tokenizer(name), load_reward_model(name, frozen=True)
    add_chat_template(tokenizer)
    finding = embeddings_too_few(tokenizer, {key: model})
    if finding is not None:
        raise UsageError(finding.what, "Give a reward model whose tokenizer has a chat template and a pad token.")
    manifest = manifest_of_model(name)
    trained_on = manifest.settings.get("rm.max_length") or UNLIMITED if manifest else UNLIMITED
    max_length = min(trained_on, longest_sequence(model, tokenizer))  # longer prompts lose their beginning

    def encoded(asked: Asked) -> list[list[int]] | None:
        try:
            return encode_answers(tokenizer, *asked, max_length)
        except BadRow:
            return None

    def score(asked: Sequence[Asked]) -> list[list[float] | None]:
        sequences = [encoded(one) for one in asked]
        scores = score_sequences(model, [ids for some in sequences for ids in some or ()]).tolist()
        if not all(map(math.isfinite, scores)):
            raise UsageError(
                f"{key} = {name} gives NaN or infinity for an answer.", "Its weights are broken: train it again."
            )
        given = iter(scores)
        return [None if some is None else [next(given) for _ in some] for some in sequences]

    return score


def draw_ranks(
    scores: Sequence[float], completions: Sequence[str], rng: random.Random, temperature: float
) -> list[int]:
    """Ranks of `completions`, 1 for the best: a draw from the Plackett-Luce model of `scores` / `temperature`.

    Each different text gets its score / temperature plus Gumbel noise, so equal texts tie, and any other two are
    ordered as in the Bradley-Terry model: P(i before j) = sigmoid((score_i - score_j) / temperature). `temperature` 0
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
