"""What one annotator's order of two answers is worth by another's: about the most that a reward model can reach."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from chatpipe.data.datasets import prompt_key
from chatpipe.data.formats import Ranking
from chatpipe.data.judgements import judged_alike
from chatpipe.evaluation.intervals import share_interval
from chatpipe.evaluation.ordering import ordered_alike, ordered_pairs


def agreement(rankings: Sequence[Ranking], seed: int) -> dict[str, Any]:
    """`between_annotators`, `_low`, `_high`, `_pairs`, where several annotators ranked the same answers; else nothing.

    As the accuracy of a reward model: of the pairs that one annotator orders, the share that another one orders alike,
    a tie counting half; its 95 % interval over prompts, and how many pairs there are. Each is judged by each other.
    Rankings that do not say whose they are may all be one person's, and are left out.
    """
    alike, prompts = [], []
    numbers: dict[str, int] = {}
    for group in judged_alike([ranking for ranking in rankings if ranking.annotator is not None]):
        prompt = numbers.setdefault(prompt_key(group[0].prompt), len(numbers))
        for judge, judged in permutations(group, 2):
            if judge.annotator == judged.annotator:
                continue
            pairs = ordered_pairs([[-rank for rank in judge.ranks]])
            alike.append(ordered_alike(pairs, -np.asarray(judged.ranks, dtype=np.float64)))
            prompts.append(np.full(len(alike[-1]), prompt))
    values = np.concatenate(alike) if alike else np.array([])
    if len(values) == 0:
        return {}
    low, high = share_interval(values, np.concatenate(prompts), seed)
    return {
        "between_annotators": float(values.mean()),
        "between_annotators_low": low,
        "between_annotators_high": high,
        "between_annotators_pairs": len(values),
    }
