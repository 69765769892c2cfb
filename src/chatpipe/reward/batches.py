"""From rankings to batches: one ranking is one element, its K responses are K rows, padded on the right."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from chatpipe.data.formats import Ranking
from chatpipe.data.padding import pad_right
from chatpipe.data.rows import BadRow
from chatpipe.data.template import Message, encode_completion

TOO_LONG = "an answer is longer than max_length"


@dataclass(frozen=True)
class EncodedRanking:
    """The token ids of K answered prompts, each with its end-of-turn token, and their ranks: 1 is best."""

    sequences: list[list[int]]
    ranks: list[int]


@dataclass
class EncodedRankings:
    """What a model can learn from, and how many rankings were left out for which reason."""

    rankings: list[EncodedRanking] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def encode_rankings(
    tokenizer: PreTrainedTokenizerBase, rankings: Iterable[Ranking], max_length: int
) -> EncodedRankings:
    """All `rankings` as token ids, without those that teach nothing or do not fit; these are counted by reason."""
    encoded = EncodedRankings()
    for ranking in rankings:
        try:
            encoded.rankings.append(encode_ranking(tokenizer, ranking, max_length))
        except BadRow as reason:
            encoded.skipped[str(reason)] += 1
    return encoded


def encode_ranking(tokenizer: PreTrainedTokenizerBase, ranking: Ranking, max_length: int) -> EncodedRanking:
    """One ranking as token ids of at most `max_length` a response.

    Responses that are the same to the model are tied (OpenRLHF #1311): each gets the mean of their ranks, and the
    ranks are numbered anew. Raises `BadRow` if an answer does not fit or no two responses differ in rank.
    """
    sequences = encode_answers(tokenizer, ranking.prompt, ranking.responses, max_length)
    ranks = _tie_equal(sequences, ranking.ranks)
    if len(set(ranks)) == 1:
        raise BadRow("all responses are tied")
    return EncodedRanking(sequences, ranks)


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answers: Sequence[str], max_length: int
) -> list[list[int]]:
    """Token ids of `prompt` with each of `answers` and its end-of-turn token, at most `max_length` each.

    What is too long loses the beginning of its prompt, and all answers the same part of it, so that they answer the
    same prompt. Raises `BadRow` if an answer alone is longer than `max_length`.
    """
    encoded = [encode_completion(tokenizer, prompt, answer) for answer in answers]
    cut = max(0, max(len(ids) for ids, _ in encoded) - max_length)
    if any(cut > prompt_length for _, prompt_length in encoded):
        raise BadRow(TOO_LONG)
    return [ids[cut:] for ids, _ in encoded]


@dataclass(frozen=True)
class RankingCollator:
    """Makes a batch of `EncodedRanking`s for `RewardTrainer`.

    `input_ids`, `attention_mask`: (sum K, longest); `ranks`: (sum K,); `sizes`, the K of each prompt: (prompts,).
    """

    pad_token_id: int

    def __call__(self, rankings: Sequence[EncodedRanking]) -> dict[str, Tensor]:
        """The batch of `rankings`, their rows in order."""
        rows = [ids for ranking in rankings for ids in ranking.sequences]
        input_ids, attention_mask = pad_right(rows, self.pad_token_id)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "ranks": torch.tensor([rank for ranking in rankings for rank in ranking.ranks]),
            "sizes": torch.tensor([len(ranking.sequences) for ranking in rankings]),
        }


def _tie_equal(sequences: Sequence[Sequence[int]], ranks: Sequence[int]) -> list[int]:
    """Ranks 1, 2, ... in the order of `ranks`, equal ones for equal sequences."""
    ranks_of: dict[tuple[int, ...], list[int]] = {}
    for sequence, rank in zip(sequences, ranks, strict=True):
        ranks_of.setdefault(tuple(sequence), []).append(rank)
    means = [sum(same) / len(same) for same in (ranks_of[tuple(sequence)] for sequence in sequences)]
    order = sorted(set(means))
    return [order.index(mean) + 1 for mean in means]
