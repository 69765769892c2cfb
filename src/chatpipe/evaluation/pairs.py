"""How often a reward model orders two answers to a prompt rightly, beside what needs no reward model to do so."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from chatpipe.data.formats import Ranking
from chatpipe.errors import UsageError
from chatpipe.evaluation.intervals import share_interval


@dataclass(frozen=True)
class Pairs:
    """Pairs of answers to the same prompt of which one is better: three int arrays [pairs].

    `better` and `worse` number the answers of all prompts in a row; `prompt` numbers the prompts.
    """

    prompt: np.ndarray
    better: np.ndarray
    worse: np.ndarray


def pair_metrics(
    rankings: Sequence[Ranking],
    scores: Sequence[Sequence[float]],
    gold: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How well `scores` (the reward model's, for each response of each ranking) order the responses.

    The true order is that of the `gold` scores where they are known, else the annotators'; pairs that are tied in it
    are left out. What is returned, all over the same pairs:

    - `eval_accuracy`, `accuracy_low`, `accuracy_high`: the share ordered rightly (equal scores count half), and its
      95 % interval over prompts; `eval_pairs`: their number.
    - `log_loss`: mean of -log sigmoid(score of the better - score of the worse), in nats.
    - `length_baseline`, `length_rule`: the same share for always choosing the "longer" or the "shorter" text in
      characters, whichever is right more often; equal lengths count half.
    - with `gold`, `annotator_agreement`, `annotator_agreement_low`: the same share for the annotators' ranks, ties
      counting half, and the lower end of its interval.

    Raises `UsageError` when no pair is ordered.
    """
    ranks = [[-rank for rank in ranking.ranks] for ranking in rankings]
    pairs = ordered_pairs(ranks if gold is None else gold)
    if len(pairs.prompt) == 0:
        raise UsageError(
            f"None of the {len(rankings)} held-out rankings prefers one answer to another.",
            "Give rankings that are not all ties in rm.data, or raise sample.prompts.",
        )
    flat_scores = _flat(scores)
    right = ordered_alike(pairs, flat_scores)
    low, high = share_interval(right, pairs.prompt, seed)
    longer = float(ordered_alike(pairs, _flat([list(map(len, ranking.responses)) for ranking in rankings])).mean())
    metrics: dict[str, Any] = {
        "eval_accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "eval_pairs": len(right),
        "log_loss": float(np.logaddexp(0, flat_scores[pairs.worse] - flat_scores[pairs.better]).mean()),
        "length_baseline": max(longer, 1 - longer),
        "length_rule": "longer" if longer >= 0.5 else "shorter",
    }
    if gold is not None:
        agreement = ordered_alike(pairs, _flat(ranks))
        metrics["annotator_agreement"] = float(agreement.mean())
        metrics["annotator_agreement_low"] = share_interval(agreement, pairs.prompt, seed)[0]
    return metrics


def ordered_pairs(truth: Sequence[Sequence[float]]) -> Pairs:
    """All pairs of answers to one prompt whose true values differ; the higher value is the better one."""
    found = []
    first = 0
    for prompt, values in enumerate(truth):
        for i, j in combinations(range(len(values)), 2):
            if values[i] != values[j]:
                better, worse = (i, j) if values[i] > values[j] else (j, i)
                found.append((prompt, first + better, first + worse))
        first += len(values)
    return Pairs(*np.array(found, dtype=np.int64).reshape(-1, 3).T)


def ordered_alike(pairs: Pairs, values: np.ndarray) -> np.ndarray:
    """For each pair 1 where `values` (of all answers in a row) order it rightly, 0 where not, 0.5 where they tie."""
    return (np.sign(values[pairs.better] - values[pairs.worse]) + 1) / 2


def _flat(values: Sequence[Sequence[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(some, dtype=np.float64) for some in values])
