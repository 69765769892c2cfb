"""What a reward model says of rankings, read as in training."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.rankings import Ranking
from chatpipe.data.row_files import BadRow
from chatpipe.reward.ranking_batches import encode_answers
from chatpipe.reward.scoring import score_sequences


def rankings_that_fit(
    tokenizer: PreTrainedTokenizerBase, rankings: Iterable[Ranking], max_length: int
) -> list[Ranking]:
    """The rankings all answers of which the model can read whole."""
    return [ranking for ranking in rankings if _fits(tokenizer, ranking, max_length)]


def ranking_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking], max_length: int
) -> list[list[float]]:
    """The score of each answer of each ranking, all of which must fit into `max_length` tokens."""
    encoded = [encode_answers(tokenizer, ranking.prompt, ranking.responses, max_length) for ranking in rankings]
    flat = [ids for sequences in encoded for ids in sequences]
    with console.progress("scoring", len(flat)) as bar:
        scores = iter(score_sequences(model, flat, on_scored=bar.update).tolist())
    return [[next(scores) for _ in sequences] for sequences in encoded]


def _fits(tokenizer: PreTrainedTokenizerBase, ranking: Ranking, max_length: int) -> bool:
    try:
        encode_answers(tokenizer, ranking.prompt, ranking.responses, max_length)
    except BadRow:
        return False
    return True
