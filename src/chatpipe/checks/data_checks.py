"""Checks of the rows: can the model learn from them, and is validation data separate from them?"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from chatpipe.checks.gate import Finding
from chatpipe.data.chat_template import encode_prompt
from chatpipe.data.datasets import Conversation
from chatpipe.data.rankings import Ranking, normalised
from chatpipe.data.row_files import BadRow
from chatpipe.errors import UsageError
from chatpipe.models.properties import leaves_room
from chatpipe.reward.training_data import encode_ranking

MAX_CUT_SHARE = 0.5
"""Rows left out are always reported; if they are most of the data, a setting is wrong."""

MAX_ENDLESS_SHARE = 0.1
MAX_SEEN_SHARE = 0.01
MAX_SAME_SHARE = 0.01
MAX_UNKNOWN_SHARE = 0.01


def eos_not_learned(rows: Sequence[tuple[Sequence[int], Sequence[int]]], eos_token_id: int) -> Finding | None:
    """The end-of-turn token is not trained on, so the model never stops (trl #1623, #3091; open-r1 #492).

    `rows`: token ids, and the mask of the trained ones. Fails above a tenth of the rows.
    """
    endless = sum(
        not any(learn and token == eos_token_id for token, learn in zip(ids, mask, strict=True)) for ids, mask in rows
    )
    if endless <= MAX_ENDLESS_SHARE * len(rows):
        return None
    return Finding(
        f"in {endless} of {len(rows)} rows the end-of-turn token (id {eos_token_id}) is not trained on.",
        "Use a chat template that ends answers with eos_token, or set eos_token to what ends them.",
    )


def nothing_to_learn(empty: int, rows: int, key: str, left_out: Mapping[str, int] | None = None) -> Finding | None:
    """Some rows have no token (rm: no pair) to train on, or there are no rows: the loss is 0.0 (trl #3927, #6025).

    All rows are counted. `left_out`: numbers of rows left out, by reason.
    """
    if rows > 0 and empty == 0:
        return None
    what = f"{empty} of {rows} rows have nothing to train on" if rows else "no row is left to train on"
    why = ", ".join(f"{reason} ({count})" for reason, count in (left_out or {}).items())
    return Finding(
        f"{key}: {what}{': ' if why else ''}{why}.",
        "Look at the rows: answers are missing, all the same, all tied, or cut away.",
    )


def answers_cut(cut: int, rows: int, max_length: int, key: str, name: str) -> Finding | None:
    """More than half of the rows (`name`: conversations, rankings) under `key` are longer than `max_length`.

    Such rows are left out. trl #3927, #6668; LLaMA-Factory #3995. All rows are counted.
    """
    if cut <= MAX_CUT_SHARE * rows:
        return None
    return Finding(
        f"{key}: {cut} of {rows} {name} are longer than {max_length} tokens.",
        f"Raise {key.split('.')[0]}.max_length (as far as the model reads), or use shorter {name}.",
    )


def prompts_cut(lengths: Sequence[int], context: int, response_length: int) -> Finding | None:
    """Most prompts leave no room for an answer in the context, and only the others would be trained on.

    `lengths`: the tokens of each prompt.
    """
    cut = sum(not leaves_room(length, response_length, context) for length in lengths)
    if cut <= MAX_CUT_SHARE * len(lengths):
        return None
    return Finding(
        f"ppo.data: {cut} of {len(lengths)} prompts leave no room for {response_length} new tokens in {context}.",
        "Lower ppo.response_length, or use models with more positions.",
    )


def validation_seen(train: Iterable[str], validation: Sequence[str], key: str) -> Finding | None:
    """Validation texts (prompts, documents) are in the training data too, up to case, white space and Unicode forms.

    The split puts equal texts on one side, but not near-equal ones (decontamination as in the GPT-3 paper,
    arXiv 2005.14165, appendix C, and in Tulu 3, arXiv 2411.15124). Fails above 1 % of the validation texts.
    """
    normal = [normalised(text) for text in validation]
    unseen = set(normal)
    unseen.difference_update(map(normalised, train))
    seen = [number for number, text in enumerate(normal) if text not in unseen]
    if len(seen) <= MAX_SEEN_SHARE * len(normal):
        return None
    return Finding(
        f"{key}: {len(seen)} of {len(normal)} validation texts are in the training data too, up to case and spaces: "
        f"{' '.join(validation[seen[0]].split())[:40]!r}.",
        "Remove the duplicates from the data.",
    )


def chosen_is_rejected(
    tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking], max_length: int
) -> Finding | None:
    """Answers with different ranks have the same tokens, also after truncation, so there is nothing to prefer.

    OpenRLHF #1311. Fails if all answers are the same in more than 1 % of the rankings with different ranks.
    """
    preferring = [ranking for ranking in rankings if len(set(ranking.ranks)) > 1]
    same = sum(_is_one_answer(tokenizer, ranking, max_length) for ranking in preferring)
    if same <= MAX_SAME_SHARE * len(preferring):
        return None
    return Finding(
        f"rm.data: in {same} of {len(preferring)} rankings, chosen and rejected are the same tokens.",
        "Look at the columns: is one field read as both answers?",
    )


def end_of_text_missing(stores: Sequence[np.ndarray], eos_token_id: int) -> Finding | None:
    """Pretraining reads no end-of-text token, so the model never learns to stop (as in trl #1623).

    `stores`: token ids of the beginning and the end of each source.
    """
    if any((ids == eos_token_id).any() for ids in stores):
        return None
    return Finding(
        f"pretrain.data: no end-of-text token (id {eos_token_id}) among {sum(map(len, stores)):,} tokens read.",
        "Delete the stage's tokens folder, so that its text is tokenised again with an end-of-text token per document.",
    )


def unknown_tokens(
    rows: Iterable[Sequence[int] | np.ndarray], tokenizer: PreTrainedTokenizerBase, key: str
) -> Finding | None:
    """More than 1 % of the tokens are the unknown token: the tokenizer was made for other text.

    "UNKs Everywhere", arXiv 2012.15562. Counts the rows given.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id):  # GPT-2's is its end of text
        return None
    counts = [(int((np.asarray(ids) == unknown).sum()), len(ids)) for ids in rows]
    found, tokens = sum(count for count, _ in counts), sum(length for _, length in counts)
    if found <= MAX_UNKNOWN_SHARE * tokens:
        return None
    return Finding(
        f"{key}: {found:,} of {tokens:,} tokens are {tokenizer.unk_token!r}: the tokenizer does not know the text.",
        "Use a tokenizer made for this text, or a byte-level one, which knows all.",
    )


def _is_one_answer(tokenizer: PreTrainedTokenizerBase, ranking: Ranking, max_length: int) -> bool:
    try:
        sequences = encode_ranking(tokenizer, ranking, max_length)
    except BadRow:  # too long: left out, and counted as that
        return False
    return len(set(map(tuple, sequences))) == 1


def prompts_with_room(
    tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Conversation], context: int, key: str, new_tokens: int
) -> list[Conversation]:
    """The prompts that leave room in `context` tokens for an answer of `new_tokens`, which the recipe's `key` sets.

    Raises UsageError where no prompt does.
    """
    fitting = [prompt for prompt in prompts if leaves_room(len(encode_prompt(tokenizer, prompt)), new_tokens, context)]
    if not fitting:
        raise UsageError(
            f"{key} = {new_tokens}: no prompt leaves room for so many new tokens in a context of {context}.",
            f"Lower {key}, or use a model with more positions.",
        )
    return fitting
