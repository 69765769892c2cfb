"""The reward model: any `AutoModelForSequenceClassification` with one label. Its parts, and how a new one is made.

A causal body has a head called `score`, which gives a number at each token; an encoder reads both ways and gives the
whole sequence one score. `config.chatpipe_reward_offset` is subtracted from scores to centre them, since `score` has no
bias; stock software ignores it and sees the same order. `reward.scoring` computes scores.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from chatpipe.data.datasets import Conversation, stream_conversations
from chatpipe.data.report import Report
from chatpipe.data.row_files import BadRow
from chatpipe.data.sources import is_hub
from chatpipe.data.worlds import Worlds
from chatpipe.models.pretrained import prepare_model
from chatpipe.recipe.schema import DataBlock
from chatpipe.reward.ranking_batches import EncodedRanking, encode_answers


def new_reward_model(body_folder: str, pad_token_id: int, seed: int) -> PreTrainedModel:
    """A reward model in float32 with the body of the causal or masked model in `body_folder` and a new score head.

    The head is N(0, 1/sqrt(d+1)), d the hidden size, so that first scores are of size 1 (lm-human-preferences, "The N
    Implementation Details of RLHF"; transformers would take 0.02). Dropout is off, in the configuration too: two
    readings of one answer must agree.
    """
    config = AutoConfig.from_pretrained(body_folder, num_labels=1)
    _turn_off_dropout(config)
    config.get_text_config().pad_token_id = pad_token_id
    with _without_load_report():
        model = AutoModelForSequenceClassification.from_pretrained(body_folder, config=config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    head = score_head(model)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * (head.in_features + 1) ** -0.5)
        if head.bias is not None:
            head.bias.zero_()
    return prepare_model(model)


def reads_left_to_right(model: PreTrainedModel) -> bool:
    """Whether a sequence classification model is a decoder, whose `score` head gives a number at each position.

    One that reads both ways (BERT) would see the completion before it is written: it can be no value model.
    """
    return hasattr(model, "score")


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The layer that gives the score: `score` of a decoder, the last linear layer behind the body of an encoder."""
    if reads_left_to_right(model):
        return model.score
    return [module for module in outside_body(model).values() if isinstance(module, nn.Linear)][-1]


def outside_body(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules that a reward model has besides its body, by name: its head, and what an encoder puts before it."""
    body = model.base_model_prefix
    return {name: module for name, module in model.named_modules() if name and name.split(".")[0] != body}


def head_scores(head: nn.Linear, hidden: Tensor) -> Tensor:
    """The scores (...) of hidden states (..., d) by a score head, before centring; float32 or wider.

    Never in bfloat16, whose three digits would tie answers that differ.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        bias = None if head.bias is None else head.bias.to(wide)
        return functional.linear(hidden.to(wide), head.weight.to(wide), bias).squeeze(-1)


def reward_offset(model: PreTrainedModel) -> float:
    """What is subtracted from the head's scores; 0 for a model that was never centred."""
    return getattr(model.config, "chatpipe_reward_offset", 0.0)


def _turn_off_dropout(config: PretrainedConfig) -> None:
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keeps transformers from reporting that the score head is new and the language head unused: both are meant."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


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
    for said in drawn(conversations, MAX_DEMONSTRATIONS, seed):
        try:
            found += encode_answers(tokenizer, said[:-1], [said[-1]["content"]], max_length)
        except BadRow:
            continue
    return found or [_best_answer(ranking) for ranking in drawn(rankings, MAX_DEMONSTRATIONS, seed)]


def conversations_to_draw_from(blocks: Sequence[DataBlock], worlds: Worlds) -> Iterator[Conversation]:
    """The train split of `blocks` of `sft.data`; of each data set of the hub its first conversations.

    Raises `UsageError` where a source cannot be read.
    """
    for block in blocks:
        said = stream_conversations([block], worlds, "sft.data", Report())
        for conversation, split in islice(said, MAX_HUB_CONVERSATIONS if is_hub(block) else None):
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
