"""What `chatpipe rankings stats` tells of a store: how far it is, how quick, how far annotators agree.

Programs stand apart from people. What cannot be told yet is null, with the reason beside it.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from chatpipe.evaluation.intervals import resampled_interval, share_interval
from chatpipe.evaluation.ordering import tau_b
from chatpipe.ranking.agreement import alpha_of, coincidences, kendall_w, pair_agreements
from chatpipe.ranking.items import MAX_RESPONSES, Item
from chatpipe.ranking.position import position_effect
from chatpipe.ranking.store import Store, StoredRanking

PAUSE = 1800.0
"""Seconds; of a task that took longer no more than these count as work."""
LEVELS = np.arange(1.0, MAX_RESPONSES + 1)

Said = StoredRanking
Prompted = tuple[Hashable, np.ndarray]
"""A prompt, and one matrix of ranks, annotators x responses, of an item that has it."""


@dataclass(frozen=True)
class Measure:
    """A measure with its 95 % interval over prompts, and what it was taken over.

    `items` had two rankings at least. `value` or the interval is None where there is not enough to tell; `reason`
    says what is missing.
    """

    value: float | None
    low: float | None
    high: float | None
    items: int
    reason: str | None = None


def store_stats(store: Store) -> dict[str, Any]:
    """All that the store tells, for `--json`: its settings, then `people` and `programs`, each as `group_stats`."""
    said = store.rankings()
    of_kind = {kind: [a.name for a in store.annotators() if a.kind == kind] for kind in ("person", "program")}
    people, programs = (
        group_stats([one for one in said if one.kind == kind], names, store.overlap) for kind, names in of_kind.items()
    )
    return {"items": len(store.items), "overlap": store.overlap, "people": people, "programs": programs}


def group_stats(said: Sequence[Said], names: Sequence[str], overlap: int) -> dict[str, Any]:
    """Of what the annotators called `names` said: all of them together, then each in `annotators`.

    `items_done` have as many rankings as `overlap` asks for; a hidden repeat counts for none.
    """
    answers = Counter(one.item.id for one in said if one.skipped is None and not one.repeat)
    return {
        "items_begun": len(answers),
        "items_done": sum(count >= overlap for count in answers.values()),
        **_told(said),
        "agreement": _agreement(_by_item(said)),
        "annotators": {name: _annotator([one for one in said if one.annotator == name]) for name in names},
    }


def _annotator(said: Sequence[Said]) -> dict[str, Any]:
    return {**_told(said), **_pace(said)}


def _told(said: Sequence[Said]) -> dict[str, Any]:
    """What is told of one annotator as of all."""
    ranked = [one for one in said if one.skipped is None]
    return {
        "rankings": sum(not one.repeat for one in ranked),
        "repeats": sum(one.repeat for one in ranked),
        "skips": dict(Counter(one.skipped for one in said if one.skipped is not None).most_common()),
        "flags": sum(one.flag for one in said),
        "all_bad": sum(one.all_bad for one in ranked),
        "self_agreement": asdict(_pair_agreement(_repeats(ranked))),
        "position_effect": _position_effect(ranked),
    }


def _pace(said: Sequence[Said]) -> dict[str, float | None]:
    """`median_seconds` from showing to ranking, and rankings in an hour of work, pauses left out; of people alone."""
    seconds = [one.seconds for one in said if one.skipped is None and one.kind == "person"]
    worked = sum(min(some, PAUSE) for some in seconds)
    return {
        "median_seconds": median(seconds) if seconds else None,
        "rankings_per_hour": len(seconds) * 3600 / worked if worked else None,
    }


def _position_effect(ranked: Sequence[Said]) -> dict[str, Any]:
    """Of people alone: a program is given all responses at once, in the order of the file."""
    effect = position_effect([[one.ranks[index] for index in one.order] for one in ranked if one.kind == "person"])
    if any(one.kind == "program" for one in ranked):
        effect["reason"] = "programs are shown no order"
    return effect


# ---- agreement ----


def _by_item(said: Iterable[Said]) -> list[Prompted]:
    """The matrix of each item that two ranked at least, without their repeats."""
    return _matrices((one.item.id, one) for one in said if one.skipped is None and not one.repeat)


def _repeats(ranked: Iterable[Said]) -> list[Prompted]:
    """For each item that an annotator ranked twice, both rankings."""
    return _matrices(((one.annotator, one.item.id), one) for one in ranked)


def _matrices(said: Iterable[tuple[Hashable, Said]]) -> list[Prompted]:
    """One matrix for each key that has two rankings at least."""
    together: dict[Hashable, list[Said]] = defaultdict(list)
    for key, one in said:
        together[key].append(one)
    return [
        (_prompt_of(some[0].item), np.array([one.ranks for one in some], dtype=np.float64))
        for some in together.values()
        if len(some) > 1
    ]


def _prompt_of(item: Item) -> str:
    return json.dumps(item.prompt)


def _agreement(items: Sequence[Prompted]) -> dict[str, Any]:
    """Each measure of `agreement.py`, and tau-b: the mean over two annotators each, as `kendall_w` is over items."""
    return {
        "pair_agreement": asdict(_pair_agreement(items)),
        "tau_b": asdict(_mean_over(items, _tau_bs, low=-1)),
        "kendall_w": asdict(_mean_over(items, lambda ranks: [kendall_w(ranks)])),
        "ordinal_alpha": asdict(_alpha(items)),
    }


def _pair_agreement(items: Sequence[Prompted]) -> Measure:
    return _mean_over(items, pair_agreements)


def _tau_bs(ranks: np.ndarray) -> list[float]:
    return [tau_b(first, second) for first, second in combinations(ranks, 2)]


def _mean_over(
    items: Sequence[Prompted], values_of: Callable[[np.ndarray], Iterable[float]], low: float = 0
) -> Measure:
    """The mean of all values in [`low`, 1] that the matrices give; those that are not defined do not count."""
    found = [(prompt, value) for prompt, ranks in items for value in values_of(ranks) if not math.isnan(value)]
    if not found:
        return _nothing(items)
    # As shares, so that what is all alike is not taken for certain.
    shares = [(value - low) / (1 - low) for _, value in found]
    lowest, highest = share_interval(shares, [prompt for prompt, _ in found])
    mean = float(np.mean([value for _, value in found]))
    return Measure(mean, low + lowest * (1 - low), low + highest * (1 - low), len(items))


def _alpha(items: Sequence[Prompted]) -> Measure:
    """The ordinal alpha of all responses to all prompts side by side."""
    of_prompt: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros((len(LEVELS), len(LEVELS))))
    for prompt, ranks in items:
        of_prompt[prompt] += coincidences(ranks, LEVELS)
    totals = np.array(list(of_prompt.values()))
    value = float(alpha_of(totals.sum(0))) if items else math.nan
    if math.isnan(value):
        return _nothing(items)
    low, high = resampled_interval(totals.reshape(len(totals), -1), lambda sums: alpha_of(_square(sums)))
    if not low < high:  # one prompt, or all alike: resampling shows no spread, which is no certainty
        return Measure(value, None, None, len(items), f"{len(totals)} prompts are too few for an interval")
    return Measure(value, low, high, len(items))


def _square(sums: np.ndarray) -> np.ndarray:
    return sums.reshape(-1, len(LEVELS), len(LEVELS))


def _nothing(items: Sequence[Prompted]) -> Measure:
    reason = "all that was ranked twice is tied" if items else "nothing was ranked twice"
    return Measure(None, None, None, len(items), reason)
