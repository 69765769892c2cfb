"""What rewards are centred on: which demonstrations are drawn, how they are read, and what replaces them."""

import json
from collections import Counter

import pytest

from chatpipe.data.chat_template import add_chat_template, encode_conversation
from chatpipe.data.rankings import Ranking
from chatpipe.models.new_model import train_tokenizer
from chatpipe.recipe.schema import DataBlock
from chatpipe.reward import training_data as module
from chatpipe.reward.training_data import (
    MAX_DEMONSTRATIONS,
    EncodedRanking,
    Judgement,
    conversations_to_draw_from,
    demonstrations,
    drawn,
    encode_answers,
    encode_rankings,
)

RANKINGS = [
    EncodedRanking([[5, 1], [6, 1], [7, 1]], [Judgement([2, 3, 1]), Judgement([1, 2, 2])]),
    EncodedRanking([[8, 1], [9, 1]], [Judgement([1, 2])]),
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(["a b c d e f g h"], vocab_size=272, model_max_length=512)
    add_chat_template(tokenizer)
    return tokenizer


def said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_a_long_prompt_loses_its_beginning_and_a_long_answer_is_left_out(tokenizer):
    conversations = [said("0123456789" * 5, "cat"), said("what?", "0123456789" * 5), said("what?", "dog")]
    found = demonstrations(tokenizer, conversations, RANKINGS, max_length=30, seed=0)
    whole = [encode_answers(tokenizer, one[:-1], [one[-1]["content"]], 500)[0] for one in conversations]
    assert len(whole[0]) > 30
    assert found == [whole[0][-30:], whole[2]]


@pytest.mark.parametrize("conversations", [[], [said("what?", "0123456789" * 5)]], ids=["none", "too long"])
def test_where_none_is_left_the_best_answers_of_the_rankings_take_their_place(tokenizer, conversations):
    assert demonstrations(tokenizer, conversations, RANKINGS, max_length=30, seed=0) == [[7, 1], [8, 1]]


def test_those_of_all_sources_are_drawn_and_the_same_ones_each_time(tokenizer):
    """The second source comes behind more conversations than are drawn."""
    conversations = [said(f"{number}?", "cat" if number < 600 else "dog") for number in range(1200)]
    found = demonstrations(tokenizer, conversations, RANKINGS, max_length=100, seed=0)
    assert len(found) == len(set(map(tuple, found))) == MAX_DEMONSTRATIONS
    answers = Counter(tokenizer.decode(ids[-5:]).removesuffix(tokenizer.eos_token)[-3:] for ids in found)
    assert answers.keys() == {"cat", "dog"}
    assert min(answers.values()) > MAX_DEMONSTRATIONS / 3
    assert demonstrations(tokenizer, iter(conversations), RANKINGS, max_length=100, seed=0) == found
    assert demonstrations(tokenizer, conversations, RANKINGS, max_length=100, seed=1) != found


def test_each_item_is_drawn_as_often_as_any_other():
    counts = Counter(item for seed in range(3000) for item in drawn(range(12), 4, seed))
    # Of 3,000 draws each is in a third; the standard deviation is 26.
    assert all(abs(counts[item] - 1000) < 110 for item in range(12))
    assert drawn(range(4), 4, seed=0) == [0, 1, 2, 3]


def test_they_are_drawn_from_all_of_a_file_and_from_the_beginning_of_a_data_set_of_the_hub(tmp_path, monkeypatch):
    pytest.importorskip("datasets")  # what reads the hub
    monkeypatch.setattr(module, "MAX_HUB_CONVERSATIONS", 20)
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        rows = [{"messages": said(f"{name} {number}?", "cat")} for number in range(60)]
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    blocks = [DataBlock(source=f"hub:{tmp_path / 'theirs'}"), DataBlock(source=str(tmp_path / "mine"))]
    asked = [one[0]["content"] for one in conversations_to_draw_from(blocks, {})]
    theirs = [question for question in asked if question.startswith("theirs")]
    validation = [number for number in range(60) if f"theirs {number}?" not in theirs]
    assert validation[0] < 20  # validation rows are read, and left out
    assert theirs == [f"theirs {number}?" for number in range(20) if number not in validation]
    assert "mine 59?" in asked
    assert 45 < len(asked) - len(theirs) < 60


def test_answers_of_several_turns_are_read_whole(tokenizer):
    asked, sure = ({"role": "user", "content": text} for text in ("what?", "really?"))
    turns = [[{"role": "assistant", "content": "a cat"}, sure], []]
    ranking = Ranking([asked], ["yes", "a dog"], [1, 2], turns=turns)
    expected = [encode_conversation(tokenizer, ranking.whole(number))[0] for number in (0, 1)]
    [encoded] = encode_rankings(tokenizer, [ranking], 500).rankings
    assert encoded.sequences == expected
    assert encode_rankings(tokenizer, [ranking], 8).skipped
