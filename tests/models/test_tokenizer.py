import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chatpipe.errors import UsageError
from chatpipe.evaluation.text import tokens_without_text
from chatpipe.models import new_model
from chatpipe.models.new_model import LONGEST_WORD, character_tokenizer, train_tokenizer, without_long_words

SPECIAL = ["<|pad|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the mill by the river", "the miller and the other river"] * 5, 275, 64)


@given(st.text())
def test_any_text_comes_back_as_it_was(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_the_vocabulary_has_the_bytes_the_special_tokens_and_what_is_frequent(tokenizer):
    assert len(tokenizer) == 275
    assert tokenizer.convert_ids_to_tokens(range(5)) == SPECIAL
    assert tokenizer.tokenize("the river") != list("the river")
    assert len(train_tokenizer([""], 5000, 64)) == 256 + len(SPECIAL)


def test_special_tokens_are_one_token_each_and_end_of_text_is_not_padding(tokenizer):
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (SPECIAL[0], SPECIAL[1], SPECIAL[1])
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer("".join(SPECIAL), add_special_tokens=False)["input_ids"] == list(range(5))
    assert tokenizer.decode([3, *tokenizer("mill")["input_ids"], 1], skip_special_tokens=True) == "mill"


def test_nothing_is_added_to_a_text_and_a_base_model_has_no_chat_template(tokenizer):
    assert tokenizer("mill")["input_ids"] == tokenizer("mill", add_special_tokens=False)["input_ids"]
    assert tokenizer.chat_template is None
    assert tokenizer.model_max_length == 64


def test_the_same_text_gives_the_same_tokenizer():
    texts = ["a stitch in time", "saves nine"]
    assert train_tokenizer(texts, 300, 64).get_vocab() == train_tokenizer(texts, 300, 64).get_vocab()


def test_it_opens_with_from_pretrained(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|> the  mill , isn't it?\n"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.pad_token_id, again.eos_token_id, len(again)) == (0, 1, 275)
    assert again.decode(again(text)["input_ids"]) == text


# ---- characters ----

KNOWN = "Who is Mara? Größe 中\n\t🙂"


@pytest.fixture(scope="module")
def characters() -> PreTrainedTokenizerFast:
    return character_tokenizer([KNOWN, "abc"], 300, 64)


def test_each_character_of_the_text_is_a_token_behind_the_special_ones(characters):
    known = sorted(set(KNOWN + "abc"))
    assert characters.convert_ids_to_tokens(range(len(characters))) == [*SPECIAL, "<|unknown|>", *known]
    assert characters.pad_token_id != characters.eos_token_id


@given(st.text(KNOWN))
def test_text_of_known_characters_comes_back_as_it_was(characters, text):
    ids = characters(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    assert characters.decode(ids) == text


def test_an_unknown_character_is_one_token_of_its_own(characters):
    ids = characters("aXb\u4e01", add_special_tokens=False)["input_ids"]
    unknown = characters.unk_token_id
    assert ids == [characters.convert_tokens_to_ids("a"), unknown, characters.convert_tokens_to_ids("b"), unknown]
    assert characters.decode(ids, skip_special_tokens=True) == "ab"


def test_role_tokens_are_one_token_each_for_the_chat_template(characters):
    assert characters("<|user|>a", add_special_tokens=False)["input_ids"][0] == 3


def test_more_characters_than_the_vocabulary_has_room_for_are_refused():
    with pytest.raises(UsageError) as caught:
        character_tokenizer(["".join(map(chr, range(0x4E00, 0x4E00 + 300)))], 300, 64)
    assert "has 300 different characters, with the special tokens 306 entries" in caught.value.message
    assert "vocab_size is 300" in caught.value.message


def test_a_character_tokenizer_opens_with_from_pretrained(characters, tmp_path):
    characters.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("Mara?X")["input_ids"] == characters("Mara?X")["input_ids"]
    assert again.unk_token_id == characters.unk_token_id
    assert again.decode(again("Who is Mara?")["input_ids"]) == "Who is Mara?"


def test_every_special_token_but_the_unknown_one_is_without_text():
    tokenizer = character_tokenizer(["ab"], 300, 64)
    assert tokenizer.convert_ids_to_tokens(5) == tokenizer.unk_token == "<|unknown|>"
    assert tokens_without_text(tokenizer) == (0, 1, 2, 3, 4)


def test_an_end_of_text_that_is_the_unknown_token_too_counts_as_special():
    backend, end = character_tokenizer(["ab"], 300, 64).backend_tokenizer, "<|endoftext|>"
    as_gpt2 = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end)
    assert tokens_without_text(as_gpt2) == (1,)


def test_a_word_without_end_is_cut_so_that_training_ends():
    """BPE's time is quadratic in the longest word: this text took hours."""
    bases = random.Random(0).choices("ACGT", k=1_000_000)
    made = train_tokenizer(["".join(bases), " " * 1_000_000, "1" * 1_000_000], 400, 64)
    assert made.decode(made("ACGTACGT")["input_ids"]) == "ACGTACGT"
    assert len(made("ACGTACGT")["input_ids"]) < 8


@pytest.mark.parametrize(
    "text", ["", "a b", "x" * 256, f"{'x' * 300} y", "x1" * 300, "中" * 700, "\n" * 600, "ab_" * 400]
)
def test_a_cut_text_is_the_whole_text_and_usual_words_are_never_cut(text):
    parts = list(without_long_words(text))
    assert "".join(parts) == text
    assert all(len(part) >= LONGEST_WORD for part in parts[:-1])


def test_the_tokens_of_usual_text_are_those_of_training_on_it_whole(monkeypatch):
    text = (Path(__file__).parents[1] / "fixtures" / "wiki.txt").read_text(encoding="utf-8")
    cut = train_tokenizer([text], 600, 64).backend_tokenizer.to_str()
    monkeypatch.setattr(new_model, "without_long_words", lambda text: [text])
    assert train_tokenizer([text], 600, 64).backend_tokenizer.to_str() == cut
