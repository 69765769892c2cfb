"""How often a reward model orders two answers to a prompt correctly, and how often simpler rules do."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.intervals import bootstrap_interval, share_interval
from chatpipe.data.messages import prompt_key
from chatpipe.data.rankings import Ranking, group_by_answers
from chatpipe.data.row_files import BadRow
from chatpipe.data.worlds import Oracle
from chatpipe.errors import UsageError
from chatpipe.reward.reward_model import score_sequences
from chatpipe.reward.training_data import encode_ranking
from chatpipe.training.ranks import over_ranks


@dataclass(frozen=True)
class Pairs:
    """Pairs of answers to the same prompt of which one is better: int arrays [pairs].

    `better` and `worse` number the answers of all rankings in a row; `ranking` numbers the rankings, `prompt` the
    prompts.
    """

    prompt: np.ndarray
    ranking: np.ndarray
    better: np.ndarray
    worse: np.ndarray


def ordered_pairs(truth: Sequence[Sequence[float]], prompts: Sequence[int] | None = None) -> Pairs:
    """All pairs of answers of one ranking whose true values differ; the higher value is the better one.

    `prompts`: the number of each ranking's prompt; default: each has its own.
    """
    found = []
    first = 0
    for number, values in enumerate(truth):
        prompt = number if prompts is None else prompts[number]
        for i, j in combinations(range(len(values)), 2):
            if values[i] != values[j]:
                better, worse = (i, j) if values[i] > values[j] else (j, i)
                found.append((prompt, number, first + better, first + worse))
        first += len(values)
    return Pairs(*np.array(found, dtype=np.int64).reshape(-1, 4).T)


def ordered_correctly(pairs: Pairs, values: np.ndarray) -> np.ndarray:
    """For each pair 1 where `values` [answers of all rankings] order it correctly, 0 where not, 0.5 where they tie."""
    return (np.sign(values[pairs.better] - values[pairs.worse]) + 1) / 2


def flat(values: Sequence[Sequence[float]]) -> np.ndarray:
    """The values of all rankings in a row."""
    return np.concatenate([np.asarray(some, dtype=np.float64) for some in values])


def tau_b(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Kendall's tau-b of two rankings [n], or of numbers that order the same n things; NaN is not ranked.

    Between -1 and 1, NaN where one of them ties all (Kendall 1945, "The treatment of ties in ranking problems").
    """
    from scipy.stats import kendalltau  # imported here: it takes half a second

    both = np.array([first, second], dtype=np.float64)
    both = both[:, ~np.isnan(both).any(0)]
    return float(kendalltau(*both).statistic) if both.shape[1] > 1 else math.nan


def mean_tau_b(truth: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]) -> float:
    """The mean of tau-b over rankings, without those whose answers are all tied in truth or by score; 0 of none."""
    found = [tau_b(some, others) for some, others in zip(truth, scores, strict=True)]
    known = [tau for tau in found if not math.isnan(tau)]
    return float(np.mean(known)) if known else 0.0


Scores = Sequence[Sequence[float]]
"""A number for each response of each ranking; the higher one is the better."""


def pair_metrics(
    rankings: Sequence[Ranking],
    scores: Scores,
    oracle: Scores | None = None,
    seed: int = 0,
    words: Scores | None = None,
) -> dict[str, Any]:
    """How well `scores`, the reward model's, order the responses.

    The true order is that of the `oracle`'s scores where there are any, else that of the annotators' ranks; pairs that
    are tied in it are left out. All shares are over the same pairs, equal scores count half, and intervals are over
    prompts, 95 %:

    - `eval_accuracy`, `accuracy_low`, `accuracy_high`: the share ordered correctly; `eval_pairs`: the number of pairs.
    - `log_loss`: mean of -log sigmoid(score of the better - score of the worse), in nats; ln 2 knows nothing.
    - `kendall_tau`: tau-b of each ranking, averaged.
    - `length_baseline`, `length_rule`: the share for always choosing the "longer" or the "shorter" text in characters,
      whichever is correct more often; equal lengths count half.
    - with `words`, the scores of a model that counts words: `words_baseline`, its share, and `words_lead_low`, `_high`:
      the interval of the reward model's share minus that, pair by pair.
    - with `oracle`, `annotator_agreement`, `annotator_agreement_low`: the share for the annotators' ranks, ties
      counting half, and the lower end of its interval.
    - `between_annotators` and its interval, where several annotators ranked the same answers.

    Raises `UsageError` when no pair is ordered.
    """
    ranks = [[-rank for rank in ranking.ranks] for ranking in rankings]
    truth = ranks if oracle is None else oracle
    pairs = ordered_pairs(truth, _prompt_numbers(rankings))
    if len(pairs.prompt) == 0:
        raise UsageError(
            f"None of the {len(rankings)} validation rankings prefers one answer to another.",
            "Give rankings that are not all ties in rm.data, or raise sample.prompts.",
        )
    flat_scores = flat(scores)
    right = ordered_correctly(pairs, flat_scores)
    low, high = share_interval(right, pairs.prompt, seed)
    lead = flat_scores[pairs.better] - flat_scores[pairs.worse]
    lengths = flat([list(map(len, ranking.texts())) for ranking in rankings])
    metrics: dict[str, Any] = {
        "eval_accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "eval_pairs": len(right),
        "log_loss": float(np.logaddexp(0, -lead).mean()),
        "kendall_tau": mean_tau_b(truth, scores),
        **_length_baseline(pairs, lengths),
        **(_words_baseline(pairs, right, words, seed) if words is not None else {}),
        **between_annotators(rankings, seed),
    }
    if oracle is not None:
        by_annotators = ordered_correctly(pairs, flat(ranks))
        metrics["annotator_agreement"] = float(by_annotators.mean())
        metrics["annotator_agreement_low"] = share_interval(by_annotators, pairs.prompt, seed)[0]
    return metrics


def between_annotators(rankings: Sequence[Ranking], seed: int) -> dict[str, Any]:
    """`between_annotators`, `_low`, `_high`, `_pairs`, where several annotators ranked the same answers; else nothing.

    Measured as a reward model's accuracy is: of the pairs that one annotator orders, the share that another one orders
    in the same way, a tie counting half; its 95 % interval over prompts, and the number of pairs. Every annotator is
    compared with every other. Rankings without a name may all be one person's, and are left out.
    """
    agreeing, prompts = [], []
    numbers: dict[str, int] = {}
    for group in group_by_answers([ranking for ranking in rankings if ranking.annotator is not None]):
        prompt = numbers.setdefault(prompt_key(group[0].prompt), len(numbers))
        for one, other in permutations(group, 2):
            if one.annotator == other.annotator:
                continue
            pairs = ordered_pairs([[-rank for rank in one.ranks]])
            agreeing.append(ordered_correctly(pairs, -np.asarray(other.ranks, dtype=np.float64)))
            prompts.append(np.full(len(agreeing[-1]), prompt))
    values = np.concatenate(agreeing) if agreeing else np.array([])
    if len(values) == 0:
        return {}
    low, high = share_interval(values, np.concatenate(prompts), seed)
    return {
        "between_annotators": float(values.mean()),
        "between_annotators_low": low,
        "between_annotators_high": high,
        "between_annotators_pairs": len(values),
    }


def _prompt_numbers(rankings: Sequence[Ranking]) -> list[int]:
    """One number for all rankings of a prompt: several annotators of it are no independent evidence."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(prompt_key(ranking.prompt), len(numbers)) for ranking in rankings]


def _length_baseline(pairs: Pairs, lengths: np.ndarray) -> dict[str, Any]:
    longer = float(ordered_correctly(pairs, lengths).mean())
    return {"length_baseline": max(longer, 1 - longer), "length_rule": "longer" if longer >= 0.5 else "shorter"}


def _words_baseline(pairs: Pairs, right: np.ndarray, words: Scores, seed: int) -> dict[str, float]:
    by_words = ordered_correctly(pairs, flat(words))
    low, high = bootstrap_interval(right - by_words, pairs.prompt, seed)
    return {"words_baseline": float(by_words.mean()), "words_lead_low": low, "words_lead_high": high}


def evaluate_ranker(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Ranking],
    max_length: int,
    seed: int,
    oracle: Scores | None = None,
    words: Scores | None = None,
) -> dict[str, Any]:
    """The metrics of `pair_metrics` for the model's scores of validation `rankings`, all of which must fit.

    `oracle` are the scores that decide the true order, where somebody knows it (`oracle_scores`); `words` are those of
    a model that counts words.
    """
    return pair_metrics(rankings, ranking_scores(model, tokenizer, rankings, max_length), oracle, seed, words)


def ranking_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking], max_length: int
) -> list[list[float]]:
    """The score of each answer of each ranking, all of which must fit into `max_length` tokens.

    All processes share the answers and return all scores.
    """

    def score(sequences: Sequence[list[int]]) -> list[float]:
        with console.progress("scoring", len(sequences)) as bar:
            return score_sequences(model, sequences, on_scored=bar.update).tolist()

    encoded = [encode_ranking(tokenizer, ranking, max_length) for ranking in rankings]
    scores = iter(over_ranks([ids for sequences in encoded for ids in sequences], score, model=model))
    return [[next(scores) for _ in sequences] for sequences in encoded]


def oracle_scores(oracle: Oracle, rankings: Sequence[Ranking]) -> list[list[float]]:
    """The oracle's score of each answer of each ranking."""
    return [[oracle.rate(ranking.prompt, text).score for text in ranking.responses] for ranking in rankings]


def is_ordered(truth: Scores) -> bool:
    """Whether some ranking's answers differ in their true values; without that there is nothing to evaluate on."""
    return any(len(set(values)) > 1 for values in truth)


def rankings_that_fit(
    tokenizer: PreTrainedTokenizerBase, rankings: Iterable[Ranking], max_length: int
) -> list[Ranking]:
    """The rankings all answers of which the model can read whole."""
    return [ranking for ranking in rankings if _fits(tokenizer, ranking, max_length)]


def _fits(tokenizer: PreTrainedTokenizerBase, ranking: Ranking, max_length: int) -> bool:
    try:
        encode_ranking(tokenizer, ranking, max_length)
    except BadRow:
        return False
    return True
