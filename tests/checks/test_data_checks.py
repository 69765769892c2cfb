import numpy as np
import pytest
from chats import said

from chatpipe.checks import data_checks as data
from chatpipe.checks.gate import Finding
from chatpipe.data.chat_template import encode_conversation
from chatpipe.data.rankings import Ranking
from chatpipe.models.tokenizer_training import character_tokenizer


def test_eos_not_learned(tokenizer):
    ids, mask = encode_conversation(tokenizer, said("Who is Mara?", "A baker."))
    hidden = [learn and token != tokenizer.eos_token_id for token, learn in zip(ids, mask, strict=True)]
    good, endless = (ids, mask), (ids, hidden)
    assert data.eos_not_learned(9 * [good] + [endless], tokenizer.eos_token_id) is None
    assert data.eos_not_learned(8 * [good] + 2 * [endless], tokenizer.eos_token_id) == Finding(
        "in 2 of 10 rows the end-of-turn token (id 1) is not trained on.",
        "Use a chat template that ends answers with eos_token, or set eos_token to what ends them.",
    )


def test_nothing_to_learn():
    remedy = "Look at the rows: answers are missing, all the same, all tied, or cut away."
    assert data.nothing_to_learn(0, 5, "sft.data") is None
    assert data.nothing_to_learn(1, 5, "sft.data") == Finding("sft.data: 1 of 5 rows have nothing to train on.", remedy)
    assert data.nothing_to_learn(0, 0, "sft.data") == Finding("sft.data: no row is left to train on.", remedy)
    left_out = {"all responses are tied": 40, "an answer is longer than max_length": 2}
    assert data.nothing_to_learn(0, 0, "rm.data", left_out) == Finding(
        "rm.data: no row is left to train on: all responses are tied (40), an answer is longer than max_length (2).",
        remedy,
    )


def test_prompts_cut():
    assert data.prompts_cut([8, 9], 28, 20) is None
    assert data.prompts_cut([8, 9, 10], 28, 20) == Finding(
        "ppo.data: 2 of 3 prompts looked at leave no room for 20 new tokens in 28.",
        "Lower ppo.response_length, or use models with more positions.",
    )


def test_answers_cut():
    assert data.answers_cut(5, 10, 32, "sft.data", "conversations") is None
    assert data.answers_cut(6, 10, 32, "sft.data", "conversations", max_share=0.6) is None
    assert data.answers_cut(6, 10, 32, "sft.data", "conversations") == Finding(
        "sft.data: 6 of 10 conversations are longer than 32 tokens.",
        "Raise sft.max_length (as far as the model's n_positions), or use shorter conversations.",
    )


def test_held_out_seen():
    train = [f"Question {number}?" for number in range(200)]
    held_out = [f"Other question {number}?" for number in range(99)]
    assert data.held_out_seen(train, [*held_out, "question  7?"], "rm.data") is None  # 1 %
    assert data.held_out_seen(train, [*held_out[:-1], "QUESTION\n7?"], "rm.data") == Finding(
        "rm.data: 1 of 99 held-out texts are trained on too, but for case and spaces: 'QUESTION 7?'.",
        "Remove such doubles from the data.",
    )


@pytest.mark.parametrize("held_out", ["Stra\u00dfe", "STRASSE", "\uff33trasse"])
def test_held_out_seen_in_another_form_of_unicode(held_out):
    assert data.held_out_seen(["strasse"], [held_out], "rm.data") is not None


def test_chosen_is_rejected(tokenizer):
    def pair(chosen, rejected, ranks=(1, 2)):
        return Ranking(said("Who is Mara?"), [chosen, rejected], list(ranks))

    good = 98 * [pair("A baker.", "A cook.")]
    tied = 9 * [pair("A baker.", "A baker.", (1, 1))]
    assert data.chosen_is_rejected(tokenizer, [*good, *tied, pair("A baker.", "Baker.")], 64) is None
    assert data.chosen_is_rejected(tokenizer, [*good, *tied, pair("A baker.", " A baker. ")], 64) == Finding(
        "rm.data: in 1 of 99 rankings looked at, chosen and rejected are the same tokens.",
        "Look at the columns: is one field read as both answers?",
    )


def test_chosen_that_differs_from_rejected_in_what_is_cut_off_does_not_exist(tokenizer):
    """Answers are never cut: one that is too long is left out, not made the same as another."""
    long = [Ranking(said("Who?"), [f"{'baker ' * 30}one", f"{'baker ' * 30}two"], [1, 2])]
    assert data.chosen_is_rejected(tokenizer, long, 16) is None


def test_end_of_text_missing():
    assert data.end_of_text_missing([np.array([5, 6]), np.array([7, 1])], 1) is None
    assert data.end_of_text_missing([np.array([5, 6]), np.array([7, 8, 9])], 1) == Finding(
        "pretrain.data: no end-of-text token (id 1) among 5 tokens looked at.",
        "Delete the stage's tokens folder: it is then tokenised anew, with one behind each document.",
    )


def test_unknown_tokens(tokenizer):
    characters = character_tokenizer(["abcdefgh "], 300, 64)
    rows = [characters(text)["input_ids"] for text in ("abc" * 33, "x")]
    assert data.unknown_tokens(rows, characters, "sft.data") is None  # 1 %
    assert data.unknown_tokens([np.array(characters("abxy")["input_ids"])], characters, "sft.data") == Finding(
        "sft.data: 2 of 4 tokens are '<|unknown|>': the tokenizer does not know the text.",
        "Use a tokenizer made for this text, or a byte-level one, which knows all.",
    )
    tokenizer.unk_token = tokenizer.eos_token  # as in GPT-2
    assert data.unknown_tokens([[tokenizer.eos_token_id]], tokenizer, "sft.data") is None
