"""From rankings to token ids and batches."""

from dataclasses import replace

import pytest

from chatpipe.data.chat_template import add_chat_template, encode_prompt
from chatpipe.data.rankings import Ranking
from chatpipe.models.new_model import train_tokenizer
from chatpipe.reward.training_data import EncodedRanking, Judgement, RankingCollator, encode_rankings


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(["a b c d e f g h"], vocab_size=272, model_max_length=512)
    add_chat_template(tokenizer)
    return tokenizer


def ranking(*responses, ranks=None, prompt="what is it?"):
    return Ranking([{"role": "user", "content": prompt}], list(responses), ranks or [*range(1, len(responses) + 1)])


def encoded_alone(tokenizer, one, max_length):
    """The only element that one ranking makes, and its ranks."""
    [encoded] = encode_rankings(tokenizer, [one], max_length).rankings
    [judgement] = encoded.judgements
    return encoded.sequences, judgement.ranks


def test_each_response_is_prompt_answer_and_end_of_turn(tokenizer):
    one = ranking("a cat", "dogs and cats", ranks=[2, 1])
    sequences, ranks = encoded_alone(tokenizer, one, max_length=100)
    prompt = encode_prompt(tokenizer, one.prompt)
    for sequence, response in zip(sequences, one.responses, strict=True):
        assert sequence[: len(prompt)] == prompt
        assert tokenizer.decode(sequence[len(prompt) :]) == f" {response}{tokenizer.eos_token}"
    assert ranks == [2, 1]


def test_too_long_loses_the_beginning_of_the_prompt_and_all_answers_the_same_part(tokenizer):
    one = ranking("cat", "a longer answer", prompt="0123456789")
    whole, _ = encoded_alone(tokenizer, one, max_length=100)
    longest = max(map(len, whole))
    cut, _ = encoded_alone(tokenizer, one, max_length=longest - 4)
    assert max(map(len, cut)) == longest - 4
    assert cut == [sequence[4:] for sequence in whole]


def test_an_answer_is_never_cut(tokenizer):
    one = ranking("0123456789", "cat")
    answer = len(tokenizer(" 0123456789").input_ids) + 1
    kept, _ = encoded_alone(tokenizer, one, max_length=answer)
    assert tokenizer.decode(kept[0]) == " 0123456789" + tokenizer.eos_token
    refused = encode_rankings(tokenizer, [one], max_length=answer - 1)
    assert (refused.rankings, refused.skipped) == ([], {"an answer is longer than max_length": 1})


def test_equal_responses_are_tied_at_their_mean_rank(tokenizer):
    assert encoded_alone(tokenizer, ranking("same", "other", "same", "last"), 100)[1] == [1, 1, 1, 2]
    assert encoded_alone(tokenizer, ranking("same", "same", "other"), 100)[1] == [1, 1, 2]


def test_what_teaches_nothing_or_does_not_fit_is_counted(tokenizer):
    rankings = [
        ranking("cat", "dog"),
        ranking("cat", "dog", ranks=[1, 1]),
        ranking("cat", "cat"),
        ranking("cat", "x" * 200),
    ]
    encoded = encode_rankings(tokenizer, rankings, max_length=100)
    assert len(encoded.rankings) == 1
    assert encoded.skipped == {"all responses are tied": 2, "an answer is longer than max_length": 1}


def test_rankings_of_the_same_answers_by_several_annotators_are_one_element(tokenizer):
    rankings = [
        ranking("cat", "dog", "cow", ranks=[1, 2, 3]),
        ranking("hen", "pig"),
        ranking("cow", "cat", "dog", ranks=[1, 2, 2]),  # shown in another order
        ranking("cat", "dog", "cow", ranks=[1, 1, 1]),  # prefers nothing, and takes no weight
        ranking("cat", "dog", "cow", prompt="another one?"),
    ]
    encoded = encode_rankings(tokenizer, rankings, max_length=100)
    assert [one.judgements for one in encoded.rankings] == [
        [Judgement([1, 2, 3], 0.5), Judgement([2, 2, 1], 0.5)],
        [Judgement([1, 2])],
        [Judgement([1, 2, 3])],
    ]
    assert len(encoded) == 4
    assert encoded.skipped == {"all responses are tied": 1}


def test_a_ranking_that_an_epoch_reads_twice_weighs_twice(tokenizer):
    one, other = ranking("cat", "dog"), ranking("cat", "dog", ranks=[2, 1])
    encoded = encode_rankings(tokenizer, [one, one, other], max_length=100)
    assert [one.judgements for one in encoded.rankings] == [
        [Judgement([1, 2], 0.5), Judgement([2, 1], 0.5)],
        [Judgement([1, 2])],
    ]


def test_a_rows_own_weight_and_margin_are_kept(tokenizer):
    one = replace(ranking("cat", "dog"), weight=0.25, margin=2.0)
    [encoded] = encode_rankings(tokenizer, [one], max_length=100).rankings
    assert encoded.judgements == [Judgement([1, 2], 0.25, 2.0)]


def test_a_weight_that_is_given_is_not_divided_by_the_annotators(tokenizer):
    given, other = replace(ranking("cat", "dog"), weight=0.25), ranking("cat", "dog", ranks=[2, 1])
    [encoded] = encode_rankings(tokenizer, [given, replace(other, weight=1.0)], max_length=100).rankings
    assert encoded.judgements == [Judgement([1, 2], 0.25), Judgement([2, 1], 1.0)]
    [mixed] = encode_rankings(tokenizer, [given, other], max_length=100).rankings
    assert mixed.judgements == [Judgement([1, 2], 0.25), Judgement([2, 1], 0.5)]


def test_a_batch_has_a_row_for_each_response_padded_on_the_right():
    batch = RankingCollator()(
        [
            EncodedRanking([[5, 1], [6, 7, 1]], [Judgement([2, 1], 0.5), Judgement([1, 2], 0.5, 3.0)]),
            EncodedRanking([[1], [8, 1], [9, 1]], [Judgement([1, 3, 2])]),
        ]
    )
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 1, 0], [6, 7, 1], [1, 0, 0], [8, 1, 0], [9, 1, 0]],
        "attention_mask": [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0]],
        "rows": [[0, 1, 0], [0, 1, 0], [2, 3, 4]],
        "ranks": [[2, 1, 0], [1, 2, 0], [1, 3, 2]],
        "weights": [0.5, 0.5, 1.0],
        "margins": [0.0, 3.0, 0.0],
        "rankings": [0, 0, 1],
    }
