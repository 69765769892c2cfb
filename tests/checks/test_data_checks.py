import numpy as np
import pytest
from chats import names, said

from chatpipe.checks import data_checks as data
from chatpipe.data.chat_template import encode_conversation
from chatpipe.data.rankings import Ranking
from chatpipe.models.new_model import character_tokenizer


def test_eos_not_learned(tokenizer):
    ids, mask = encode_conversation(tokenizer, said("Who is Mara?", "A baker."))
    hidden = [learn and token != tokenizer.eos_token_id for token, learn in zip(ids, mask, strict=True)]
    good, endless = (ids, mask), (ids, hidden)
    assert data.eos_not_learned(9 * [good] + [endless], tokenizer.eos_token_id) is None
    assert names(data.eos_not_learned(8 * [good] + 2 * [endless], tokenizer.eos_token_id), "2", "10", "1", "eos_token")


def test_nothing_to_learn():
    assert data.nothing_to_learn(0, 5, "sft.data") is None
    assert names(data.nothing_to_learn(1, 5, "sft.data"), "sft.data", "1", "5")
    assert names(data.nothing_to_learn(0, 0, "sft.data"), "sft.data")
    left_out = {"all responses are tied": 40, "an answer is longer than max_length": 2}
    assert names(data.nothing_to_learn(0, 0, "rm.data", left_out), "rm.data", "40", "max_length", "2")


def test_prompts_cut():
    assert data.prompts_cut([8, 9], 28, 20) is None
    assert names(data.prompts_cut([8, 9, 10], 28, 20), "ppo.data", "2", "3", "20", "28", "ppo.response_length")


def test_answers_cut():
    assert data.answers_cut(5, 10, 32, "sft.data", "conversations") is None
    assert names(
        data.answers_cut(6, 10, 32, "sft.data", "conversations"),
        "sft.data",
        "6",
        "10",
        "32",
        "sft.max_length",
    )


def test_validation_seen():
    train = [f"Question {number}?" for number in range(200)]
    validation = [f"Other question {number}?" for number in range(99)]
    assert data.validation_seen(train, [*validation, "question  7?"], "rm.data") is None  # 1 %
    assert names(
        data.validation_seen(train, [*validation[:-1], "QUESTION\n7?"], "rm.data"), "rm.data", "1", "99", "QUESTION 7?"
    )


@pytest.mark.parametrize("validation", ["Stra\u00dfe", "STRASSE", "\uff33trasse"])
def test_validation_seen_in_another_form_of_unicode(validation):
    assert data.validation_seen(["strasse"], [validation], "rm.data") is not None


def test_chosen_is_rejected(tokenizer):
    def pair(chosen, rejected, ranks=(1, 2)):
        return Ranking(said("Who is Mara?"), [chosen, rejected], list(ranks))

    good = 98 * [pair("A baker.", "A cook.")]
    tied = 9 * [pair("A baker.", "A baker.", (1, 1))]
    assert data.chosen_is_rejected(tokenizer, [*good, *tied, pair("A baker.", "Baker.")], 64) is None
    assert names(
        data.chosen_is_rejected(tokenizer, [*good, *tied, pair("A baker.", " A baker. ")], 64), "rm.data", "1", "99"
    )


def test_chosen_that_differs_from_rejected_in_what_is_cut_off_does_not_exist(tokenizer):
    """Answers are never cut: one that is too long is left out, not made the same as another."""
    long = [Ranking(said("Who?"), [f"{'baker ' * 30}one", f"{'baker ' * 30}two"], [1, 2])]
    assert data.chosen_is_rejected(tokenizer, long, 16) is None


def test_end_of_text_missing():
    assert data.end_of_text_missing([np.array([5, 6]), np.array([7, 1])], 1) is None
    assert names(data.end_of_text_missing([np.array([5, 6]), np.array([7, 8, 9])], 1), "pretrain.data", "1", "5")


def test_unknown_tokens(tokenizer):
    characters = character_tokenizer(["abcdefgh "], 300, 64)
    rows = [characters(text)["input_ids"] for text in ("abc" * 33, "x")]
    assert data.unknown_tokens(rows, characters, "sft.data") is None  # 1 %
    assert names(
        data.unknown_tokens([np.array(characters("abxy")["input_ids"])], characters, "sft.data"),
        "sft.data",
        "2",
        "4",
        "<|unknown|>",
    )
    tokenizer.unk_token = tokenizer.eos_token  # as in GPT-2
    assert data.unknown_tokens([[tokenizer.eos_token_id]], tokenizer, "sft.data") is None
