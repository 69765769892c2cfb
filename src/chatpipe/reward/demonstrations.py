"""What a reward model's scores are centred on: prompts with answers as they should be."""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from chatpipe.data.datasets import Conversation, stream_conversations
from chatpipe.data.row_files import BadRow
from chatpipe.data.sources import Report, is_hub
from chatpipe.data.worlds import Worlds
from chatpipe.recipe.schema import DataBlock
from chatpipe.reward.ranking_batches import EncodedRanking, encode_answers

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
