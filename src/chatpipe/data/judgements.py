"""Rankings that judge the same: the same answers to the same prompt, ranked by several annotators."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from chatpipe.data.datasets import prompt_key
from chatpipe.data.formats import Ranking


def judged_alike(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
    """`rankings` in groups of the same prompt and the same responses, in the order of their first ones.

    Within a group all have the responses in one order, which annotators may have seen differently. A ranking that
    stands there several times, being read so often in an epoch, is in so many groups.
    """
    times: Counter[int] = Counter()
    groups: dict[tuple[str, tuple[str, ...], int], list[Ranking]] = {}
    for ranking in rankings:
        times[id(ranking)] += 1
        key = (prompt_key(ranking.prompt), tuple(sorted(ranking.responses)), times[id(ranking)])
        group = groups.setdefault(key, [])
        group.append(_in_order_of(group[0].responses, ranking) if group else ranking)
    return list(groups.values())


def _in_order_of(responses: list[str], ranking: Ranking) -> Ranking:
    """`ranking` with its responses, the same ones, in the order of `responses`."""
    if ranking.responses == responses:
        return ranking
    places = sorted(range(len(responses)), key=lambda place: responses[place])
    theirs = sorted(range(len(responses)), key=lambda place: ranking.responses[place])
    ranks = dict(zip(places, (ranking.ranks[place] for place in theirs), strict=True))
    return replace(ranking, responses=responses, ranks=[ranks[place] for place in range(len(responses))])
