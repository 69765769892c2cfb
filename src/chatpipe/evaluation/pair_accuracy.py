"""How often a reward model orders two answers to a prompt rightly, beside what needs no reward model to do so."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from chatpipe.data.datasets import prompt_key
from chatpipe.data.formats import Ranking
from chatpipe.errors import UsageError
from chatpipe.evaluation.annotators import agreement
from chatpipe.evaluation.calibration import expected_calibration_error, reliability
from chatpipe.evaluation.correlation import mean_tau_b
from chatpipe.evaluation.intervals import bootstrap_interval, share_interval
from chatpipe.evaluation.ordering import Pairs, flat, ordered_alike, ordered_pairs
from chatpipe.evaluation.slices import accuracy_by_length, accuracy_by_margin, accuracy_by_round

Scores = Sequence[Sequence[float]]
"""A number for each response of each ranking; the higher one is the better."""


def pair_metrics(
    rankings: Sequence[Ranking],
    scores: Scores,
    gold: Scores | None = None,
    seed: int = 0,
    words: Scores | None = None,
) -> dict[str, Any]:
    """How well `scores`, the reward model's, order the responses.

    The true order is that of the `gold` scores where they are known, else the annotators'; pairs that are tied in it
    are left out. Shares are over the same pairs all, equal scores count half, and intervals are over prompts, 95 %:

    - `eval_accuracy`, `accuracy_low`, `accuracy_high`: the share ordered rightly; `eval_pairs`: their number.
    - `accuracy_by_margin`, `_by_length`, `_by_round`: the same of parts of the pairs (`slices`).
    - `log_loss`: mean of -log sigmoid(score of the better - score of the worse), in nats. `ece`, `reliability`: whether
      the model is right as often as it says (`calibration`).
    - `kendall_tau`: tau-b of each ranking, averaged.
    - `length_baseline`, `length_rule`: the share for always choosing the "longer" or the "shorter" text in characters,
      whichever is right more often; equal lengths count half.
    - with `words`, what a model that counts words says: `words_baseline`, its share, and `words_lead_low`, `_high`: the
      interval of the reward model's share minus that, pair by pair.
    - with `gold`, `annotator_agreement`, `annotator_agreement_low`: the share for the annotators' ranks, ties counting
      half, and the lower end of its interval.
    - where several annotators ranked the same answers, what one's order is worth by another's (`annotators`).

    Raises `UsageError` when no pair is ordered.
    """
    ranks = [[-rank for rank in ranking.ranks] for ranking in rankings]
    truth = ranks if gold is None else gold
    pairs = ordered_pairs(truth, _prompt_numbers(rankings))
    if len(pairs.prompt) == 0:
        raise UsageError(
            f"None of the {len(rankings)} held-out rankings prefers one answer to another.",
            "Give rankings that are not all ties in rm.data, or raise sample.prompts.",
        )
    flat_scores = flat(scores)
    right = ordered_alike(pairs, flat_scores)
    low, high = share_interval(right, pairs.prompt, seed)
    lead = flat_scores[pairs.better] - flat_scores[pairs.worse]
    lengths = flat([list(map(len, ranking.responses)) for ranking in rankings])
    table = reliability(np.abs(lead), right)
    metrics: dict[str, Any] = {
        "eval_accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "eval_pairs": len(right),
        "accuracy_by_margin": accuracy_by_margin(pairs, right, truth, seed),
        "accuracy_by_length": accuracy_by_length(pairs, right, lengths, seed),
        **accuracy_by_round(pairs, right, rankings, seed),
        "log_loss": float(np.logaddexp(0, -lead).mean()),
        "ece": expected_calibration_error(table),
        "reliability": table,
        "kendall_tau": mean_tau_b(truth, scores),
        **_length_baseline(pairs, lengths),
        **(_words_baseline(pairs, right, words, seed) if words is not None else {}),
        **agreement(rankings, seed),
    }
    if gold is not None:
        by_annotators = ordered_alike(pairs, flat(ranks))
        metrics["annotator_agreement"] = float(by_annotators.mean())
        metrics["annotator_agreement_low"] = share_interval(by_annotators, pairs.prompt, seed)[0]
    return metrics


def _prompt_numbers(rankings: Sequence[Ranking]) -> list[int]:
    """The same number for rankings of the same prompt: several annotators are no independent evidence of others."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(prompt_key(ranking.prompt), len(numbers)) for ranking in rankings]


def _length_baseline(pairs: Pairs, lengths: np.ndarray) -> dict[str, Any]:
    longer = float(ordered_alike(pairs, lengths).mean())
    return {"length_baseline": max(longer, 1 - longer), "length_rule": "longer" if longer >= 0.5 else "shorter"}


def _words_baseline(pairs: Pairs, right: np.ndarray, words: Scores, seed: int) -> dict[str, float]:
    by_words = ordered_alike(pairs, flat(words))
    low, high = bootstrap_interval(right - by_words, pairs.prompt, seed)
    return {"words_baseline": float(by_words.mean()), "words_lead_low": low, "words_lead_high": high}
