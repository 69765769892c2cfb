"""How well a reward model orders answers: the evaluation of rm."""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.rankings import Ranking
from chatpipe.data.row_files import BadRow
from chatpipe.data.worlds import Oracle
from chatpipe.evaluation.pair_accuracy import Scores, pair_metrics
from chatpipe.evaluation.sharing import over_ranks
from chatpipe.reward.ranking_batches import encode_answers
from chatpipe.reward.scoring import score_sequences


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

    encoded = [encode_answers(tokenizer, ranking.prompt, ranking.responses, max_length) for ranking in rankings]
    scores = iter(over_ranks([ids for sequences in encoded for ids in sequences], score))
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
        encode_answers(tokenizer, ranking.prompt, ranking.responses, max_length)
    except BadRow:
        return False
    return True
