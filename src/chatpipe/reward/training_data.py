"""What a reward model learns from, as token ids: rankings, and the demonstrations that its scores are centred on.

K answers to a prompt are one element of a batch, K rows, padded on the right. The rankings of the same answers by
several annotators are one element too: each answer is read once.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from chatpipe.data.chat_template import Message, encode_completion
from chatpipe.data.datasets import Conversation, stream_conversations
from chatpipe.data.rankings import Ranking, group_by_answers
from chatpipe.data.rendering import unreadable
from chatpipe.data.row_files import BadRow
from chatpipe.data.sequences import PADDING_ID, pad_right
from chatpipe.data.sources import Report, is_hub
from chatpipe.data.worlds import Worlds
from chatpipe.recipe.schema import DataBlock

TOO_LONG = "an answer is longer than max_length"
ALL_TIED = "all responses are tied"


@dataclass(frozen=True)
class Judgement:
    """One annotator's ranking of K answers: their ranks (1 is best), its weight, and the margin of its pairs."""

    ranks: list[int]
    weight: float = 1.0
    margin: float = 0.0


@dataclass(frozen=True)
class EncodedRanking:
    """The token ids of K answered prompts, each with its end-of-turn token, and the annotators' judgements."""

    sequences: list[list[int]]
    judgements: list[Judgement]


@dataclass
class EncodedRankings:
    """The rankings that a model can learn from, and the number of rankings left out by reason.

    `rankings` has one element for the same answers to a prompt, however many annotators ranked them.
    """

    rankings: list[EncodedRanking] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        """How many rankings there are, each annotator's counted."""
        return sum(len(ranking.judgements) for ranking in self.rankings)


def encode_rankings(
    tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking], max_length: int
) -> EncodedRankings:
    """All `rankings` as token ids, without those that are all ties or do not fit; these are counted by reason.

    Rankings of the same answers by several annotators become one element of the usual weight: each of n that prefer
    something has the weight 1/n. A ranking with a weight of its own keeps it.
    """
    encoded = EncodedRankings()
    for group in group_by_answers(rankings):
        try:
            sequences = encode_ranking(tokenizer, group[0], max_length)
        except BadRow as reason:
            encoded.skipped[str(reason)] += len(group)
            continue
        ranks = [tie_equal(sequences, ranking.ranks) for ranking in group]
        preferring = [(ranking, own) for ranking, own in zip(group, ranks, strict=True) if len(set(own)) > 1]
        if len(preferring) < len(group):
            encoded.skipped[ALL_TIED] += len(group) - len(preferring)
        if preferring:
            share = 1 / len(preferring)
            judgements = [
                Judgement(own, share if ranking.weight is None else ranking.weight, ranking.margin)
                for ranking, own in preferring
            ]
            encoded.rankings.append(EncodedRanking(sequences, judgements))
    return encoded


def encode_ranking(tokenizer: PreTrainedTokenizerBase, ranking: Ranking, max_length: int) -> list[list[int]]:
    """`encode_answers` of a ranking."""
    return encode_answers(tokenizer, ranking.prompt, ranking.responses, max_length, ranking.turns)


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    answers: Sequence[str],
    max_length: int,
    turns: Sequence[Sequence[Message]] | None = None,
) -> list[list[int]]:
    """Token ids of `prompt` with each of `answers` and its end-of-turn token, at most `max_length` each.

    A sequence that is too long loses the beginning of its prompt, and the other answers lose the same part, so that all
    answer the same prompt. `turns`: of each answer of several turns, what comes between the prompt and its last turn.
    Raises `BadRow` if an answer alone is longer than `max_length`, or if the chat template cannot write the prompt.
    """
    prompts = [[*prompt, *before] for before in turns or [[]] * len(answers)]
    for each in prompts if turns else prompts[:1]:
        reason = unreadable(tokenizer, each)
        if reason is not None:
            raise BadRow(reason)
    encoded = [encode_completion(tokenizer, *asked) for asked in zip(prompts, answers, strict=True)]
    cut = max(0, max(len(ids) for ids, _ in encoded) - max_length)
    if any(cut > prompt_length for _, prompt_length in encoded):
        raise BadRow(TOO_LONG)
    return [ids[cut:] for ids, _ in encoded]


@dataclass(frozen=True)
class RankingCollator:
    """Makes a batch of `EncodedRanking`s for `RewardTrainer`, each of whose answers is a row once.

    `input_ids`, `attention_mask`: (sum K, longest). Judgement by judgement: the row number of each answer, `rows`, and
    its rank, `ranks`, (judgements, max K), both 0 where there are fewer than K answers; `weights`, `margins`, and
    `rankings`, the number of its ranking in the batch, (judgements,).
    """

    def __call__(self, rankings: Sequence[EncodedRanking]) -> dict[str, Tensor]:
        """The batch of `rankings`, their rows in order."""
        input_ids, attention_mask = pad_right([ids for ranking in rankings for ids in ranking.sequences], PADDING_ID)
        rows: list[list[int]] = []
        first = 0
        for ranking in rankings:
            own = range(first, first + len(ranking.sequences))
            rows += [[*own] for _ in ranking.judgements]
            first = own.stop
        judged = [(number, one) for number, ranking in enumerate(rankings) for one in ranking.judgements]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "rows": pad_right(rows, 0)[0],
            "ranks": pad_right([judgement.ranks for _, judgement in judged], 0)[0],
            "weights": torch.tensor([judgement.weight for _, judgement in judged]),
            "margins": torch.tensor([judgement.margin for _, judgement in judged]),
            "rankings": torch.tensor([number for number, _ in judged]),
        }


def tie_equal(sequences: Sequence[Sequence[int]], ranks: Sequence[int]) -> list[int]:
    """Ranks 1, 2, ... in the order of `ranks`, where sequences with the same token ids are tied (OpenRLHF #1311).

    Each of these first gets the mean of their ranks.
    """
    ranks_of: dict[tuple[int, ...], list[int]] = {}
    for sequence, rank in zip(sequences, ranks, strict=True):
        ranks_of.setdefault(tuple(sequence), []).append(rank)
    means = [sum(same) / len(same) for same in (ranks_of[tuple(sequence)] for sequence in sequences)]
    order = sorted(set(means))
    return [order.index(mean) + 1 for mean in means]


# ---- demonstrations ----

MAX_DEMONSTRATIONS = 256
MAX_HUB_CONVERSATIONS = 20_000
"""Read of a data set of the hub: one of gigabytes would be fetched whole for a few hundred."""

Item = TypeVar("Item")


def demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Conversation],
    rankings: Sequence[EncodedRanking],
    max_length: int,
    seed: int,
) -> list[list[int]]:
    """Token ids of up to `MAX_DEMONSTRATIONS` of `conversations`, which end with the assistant, drawn from all of them.

    They are read as answers in training are: a prompt that is too long loses its beginning, and an answer that is
    longer than `max_length` is left out. Where none is left, the best answers of `rankings` take their place.
    """
    found = []
    for turns in drawn(conversations, MAX_DEMONSTRATIONS, seed):
        try:
            found += encode_answers(tokenizer, turns[:-1], [turns[-1]["content"]], max_length)
        except BadRow:
            continue
    return found or [_best_answer(ranking) for ranking in drawn(rankings, MAX_DEMONSTRATIONS, seed)]


def conversations_to_draw_from(blocks: Sequence[DataBlock], worlds: Worlds) -> Iterator[Conversation]:
    """The train split of `blocks` of `sft.data`; of each data set of the hub its first conversations.

    Raises `UsageError` where a source cannot be read.
    """
    for block in blocks:
        turns = stream_conversations([block], worlds, "sft.data", Report())
        for conversation, split in islice(turns, MAX_HUB_CONVERSATIONS if is_hub(block) else None):
            if split == "train":
                yield conversation


def drawn(items: Iterable[Item], count: int, seed: int) -> list[Item]:
    """`count` of `items`, or all if there are no more: each with the same chance, in one pass that keeps no others.

    Reservoir sampling (Vitter 1985, "Random Sampling with a Reservoir", algorithm R).
    """
    chance = random.Random(f"drawn {seed}")
    kept: list[Item] = []
    for number, item in enumerate(items):
        if number < count:
            kept.append(item)
        else:
            place = chance.randrange(number + 1)
            if place < count:
                kept[place] = item
    return kept


def _best_answer(ranking: EncodedRanking) -> list[int]:
    """The answer that the first of its annotators likes best."""
    ranks = ranking.judgements[0].ranks
    return ranking.sequences[ranks.index(min(ranks))]
