"""The checks of each stage, in the order in which they run: the cheap ones first.

They read a sample of `SAMPLE` rows, or count rows that are already in memory, so that together they take seconds.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.checks import data_checks as data
from chatpipe.checks import model_checks as models
from chatpipe.checks import reward_checks as rewards
from chatpipe.checks import template_checks as template
from chatpipe.checks.gate import Checks, Finding
from chatpipe.data.chat_rows import Rows, RowsNote
from chatpipe.data.chat_template import encode_completion, encode_prompt
from chatpipe.data.datasets import Conversation, Splits
from chatpipe.data.documents import RawText, sample_texts
from chatpipe.data.rankings import Ranking
from chatpipe.data.sequences import padding_id
from chatpipe.data.text_blocks import TrainingText
from chatpipe.data.token_store import TokenStore
from chatpipe.models.pretrained import load_tokenizer
from chatpipe.reward.training_data import TOO_LONG, EncodedRankings

SAMPLE = 256
"""How many rows are rendered or encoded for a check."""

SAMPLE_ROWS = 10_000
"""How many of the rows that are already tokenised are counted."""

FEW = 4
"""How many rows or prompts the models read."""

SAMPLE_TOKENS, SAMPLE_BYTES = 1_000_000, 2_000_000


def pretrain_checks(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, texts: Sequence[RawText], validation: Sequence[str]
) -> Checks:
    """What can be checked before the text is tokenised, which may take hours. `validation`: documents."""
    key = "pretrain.data"

    @cache
    def documents() -> list[str]:
        return list(sample_texts(texts, "train", max_bytes=SAMPLE_BYTES))

    return {
        "embeddings_too_few": lambda: models.embeddings_too_few(tokenizer, {"pretrain.tokenizer": model}),
        "special_tokens_in_text": lambda: template.special_tokens_in_text([tokenizer.eos_token], documents(), key),
        "validation_seen": lambda: data.validation_seen(documents(), validation, key),
    }


def token_checks(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, train: TrainingText) -> Checks:
    """What the tokens of pretraining show: the first tokens of each source, and its last one."""
    key = "pretrain.data"
    stores = [_sample_of(store) for store in train.stores]
    return {
        "token_ids_out_of_range": lambda: models.token_ids_out_of_range(stores, model, key),
        "end_of_text_missing": lambda: data.end_of_text_missing(stores, tokenizer.eos_token_id),
        "unknown_tokens": lambda: data.unknown_tokens(stores, tokenizer, key),
    }


def sft_checks(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    train: Rows,
    validation: Rows,
    note: RowsNote,
    max_length: int,
) -> Checks:
    """What the rows show: the first `SAMPLE_ROWS` to train on, and how many conversations were too long."""
    key = "sft.data"
    conversations, others = train.examples(), validation.examples()
    rows = train.first(SAMPLE_ROWS)
    ids = [ids for ids, _ in rows]
    empty = sum(not any(mask) for _, mask in rows)
    validation_name = "validation conversations"
    cut, cut_validation = note.too_long["train"], note.too_long["validation"]
    return {
        "embeddings_too_few": lambda: models.embeddings_too_few(tokenizer, {"sft.model": model}),
        "answers_cut": lambda: (
            data.answers_cut(cut, cut + note.kept["train"], max_length, key, "conversations")
            or data.answers_cut(
                cut_validation, cut_validation + note.kept["validation"], max_length, key, validation_name
            )
        ),
        "nothing_to_learn": lambda: data.nothing_to_learn(empty, len(rows), key),
        "eos_not_learned": lambda: data.eos_not_learned(rows, tokenizer.eos_token_id),
        "token_ids_out_of_range": lambda: models.token_ids_out_of_range(ids, model, key),
        "unknown_tokens": lambda: data.unknown_tokens(ids, tokenizer, key),
        "validation_seen": lambda: _prompts_seen(
            [turns[:-1] for turns in conversations], [turns[:-1] for turns in others], key
        ),
        **_of_template(tokenizer, conversations[:SAMPLE], key),
    }


def rm_checks(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    rankings: Splits[Ranking],
    train: EncodedRankings,
    max_length: int,
) -> Checks:
    """`train`: the rankings of `rankings.train` that fit into `max_length` tokens."""
    key, scorers = "rm.data", {"rm.model": model}
    sample = [ranking.whole(0) for ranking in rankings.train[:SAMPLE]]
    rows = _few_of_each_length([ranking.sequences[0] for ranking in train.rankings[:SAMPLE]])
    return {
        "embeddings_too_few": lambda: models.embeddings_too_few(tokenizer, scorers),
        "answers_cut": lambda: data.answers_cut(
            train.skipped[TOO_LONG], len(rankings.train), max_length, key, "rankings"
        ),
        "nothing_to_learn": lambda: data.nothing_to_learn(0, len(train.rankings), key, train.skipped),
        "chosen_is_rejected": lambda: data.chosen_is_rejected(tokenizer, rankings.train[:SAMPLE], max_length),
        "validation_seen": lambda: _prompts_seen(
            [ranking.prompt for ranking in rankings.train], [ranking.prompt for ranking in rankings.validation], key
        ),
        **_of_template(tokenizer, sample, key),
        **_of_scores(scorers, rows, tokenizer),
    }


def ppo_checks(
    tokenizer: PreTrainedTokenizerBase,
    policy: PreTrainedModel,
    scorers: Mapping[str, PreTrainedModel],
    prompts: Splits[Conversation],
    context: int,
    response_length: int,
) -> Checks:
    """`scorers`: all reward models by recipe key, the oracle included. `context`: tokens that all can read."""
    key, sample = "ppo.data", prompts.train[:SAMPLE]
    # There are no answers yet, so the question takes the place of the answer in what reward models read.
    answered = [encode_completion(tokenizer, prompt, prompt[-1]["content"])[0] for prompt in sample]
    rows = _few_of_each_length([ids for ids in answered if len(ids) <= context])
    return {
        "embeddings_too_few": lambda: models.embeddings_too_few(tokenizer, {"ppo.model": policy, **scorers}),
        "reward_at_chance": lambda: rewards.reward_at_chance(scorers),
        "new_score_head": lambda: rewards.new_score_head(scorers),
        "prompts_cut": lambda: data.prompts_cut(
            [len(encode_prompt(tokenizer, prompt)) for prompt in sample], context, response_length
        ),
        "validation_seen": lambda: _prompts_seen(prompts.train, prompts.validation, key),
        **_of_template(tokenizer, sample, key),
        "other_template": lambda: template.other_template(
            tokenizer, {name: load_tokenizer(model.name_or_path) for name, model in scorers.items()}, sample
        ),
        **_of_scores(scorers, rows, tokenizer),
    }


def _of_template(tokenizer: PreTrainedTokenizerBase, sample: Sequence[Conversation], key: str) -> Checks:
    """The checks of a chat template on some conversations or prompts."""
    return {
        "double_bos": lambda: template.double_bos(tokenizer, [template.encode(tokenizer, each)[0] for each in sample]),
        "header_not_in_prompt": lambda: template.header_not_in_prompt(tokenizer),
        "date_in_prompt": lambda: template.date_in_prompt(tokenizer),
        "turns_lost": lambda: template.turns_lost(tokenizer, sample),
        "special_tokens_in_text": lambda: template.special_tokens_in_text(
            template.control_tokens(tokenizer), [_text(conversation) for conversation in sample], key
        ),
        "template_not_saved": lambda: template.template_not_saved(tokenizer, template.as_saved(tokenizer), sample),
    }


def _prompts_seen(train: Sequence[Conversation], validation: Sequence[Conversation], key: str) -> Finding | None:
    return data.validation_seen(map(_text, train), list(map(_text, validation)), key)


def _of_scores(
    scorers: Mapping[str, PreTrainedModel], rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> Checks:
    """The checks for which reward models read some answered prompts."""
    pad, eos = padding_id(tokenizer), tokenizer.eos_token_id
    entries = min((model.get_input_embeddings().num_embeddings for model in scorers.values()), default=0)
    rows = [ids for ids in rows if max(ids) < entries]
    if not rows:  # of the rows another check reports why
        found = "no row that a reward model can read" if scorers else "there is no reward model"
        return dict.fromkeys(("score_not_on_eos", "batch_changes_score"), lambda: found)
    return {
        "score_not_on_eos": lambda: rewards.score_not_on_eos(scorers, rows, pad, eos),
        "batch_changes_score": lambda: rewards.batch_changes_score(scorers, rows, pad),
    }


def _few_of_each_length(rows: Sequence[list[int]]) -> list[list[int]]:
    """A few rows, from the shortest to the longest, so that a batch of them needs padding."""
    ordered = sorted(rows, key=len)
    places = np.linspace(0, len(ordered) - 1, min(FEW, len(ordered))).astype(int)
    return [ordered[place] for place in places]


def _sample_of(store: TokenStore) -> np.ndarray:
    """The first tokens of a store and its last token, which ends a document."""
    first = store.read(0, min(SAMPLE_TOKENS, len(store)))
    return np.concatenate([first, store.read(len(store) - 1, 1)])


def _text(conversation: Conversation) -> str:
    return "\n".join(message["content"] for message in conversation)
