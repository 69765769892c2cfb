import math
from itertools import count

import numpy as np
import pytest

from chatpipe.data.rankings import Ranking
from chatpipe.errors import UsageError
from chatpipe.evaluation.pair_accuracy import pair_metrics

NUMBERS = count()


def _ranking(responses: list[str], ranks: list[int], prompt: str | None = None, **more) -> Ranking:
    """One of a prompt of its own where none is given."""
    asked = f"Question {next(NUMBERS)}?" if prompt is None else prompt
    return Ranking([{"role": "user", "content": asked}], responses, ranks, **more)


def test_accuracy_counts_ordered_pairs_and_half_for_equal_scores():
    rankings = [_ranking(["a", "bb", "cc"], [1, 2, 2]), _ranking(["dd", "e"], [2, 1])]
    # Ordered pairs: a > bb (right), a > cc (score tied: half), e > dd (wrong); bb and cc are tied.
    metrics = pair_metrics(rankings, [[1.0, 0.0, 1.0], [3.0, 1.0]])
    assert metrics["eval_pairs"] == 3
    assert metrics["eval_accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    losses = [math.log1p(math.exp(-1)), math.log(2), math.log1p(math.exp(2))]
    assert metrics["log_loss"] == pytest.approx(sum(losses) / 3)
    # In all three the better one is shorter.
    assert (metrics["length_baseline"], metrics["length_rule"]) == (1.0, "shorter")
    assert "annotator_agreement" not in metrics


def test_longer_wins_baseline_counts_equal_lengths_half():
    rankings = [_ranking(["long one", "short"], [1, 2]), _ranking(["same", "size"], [1, 2])]
    metrics = pair_metrics(rankings, [[1.0, 0.0], [1.0, 0.0]])
    assert (metrics["length_baseline"], metrics["length_rule"]) == (0.75, "longer")


def test_the_oracle_s_order_decides_and_annotators_are_measured_on_the_same_pairs():
    rankings = [_ranking(["a", "b", "c"], [1, 2, 2])]
    truth = [[0.0, 1.0, 0.5]]  # b > c > a
    metrics = pair_metrics(rankings, [[0.0, 3.0, 2.0]], truth)
    assert metrics["eval_accuracy"] == 1.0
    # The annotator: b > a wrong, c > a wrong, b > c a tie.
    assert metrics["annotator_agreement"] == pytest.approx(0.5 / 3)
    assert metrics["annotator_agreement_low"] <= metrics["annotator_agreement"]


def test_without_ties_accuracy_and_kendalls_tau_agree():
    rng = np.random.default_rng(0)
    truth, scores = rng.normal(size=(2, 6))
    ranks = [int(rank) + 1 for rank in np.argsort(np.argsort(-truth))]
    metrics = pair_metrics([_ranking(list("abcdef"), ranks)], [scores.tolist()])
    signs = np.sign(np.subtract.outer(truth, truth) * np.subtract.outer(scores, scores))
    assert 2 * metrics["eval_accuracy"] - 1 == pytest.approx(signs.sum() / 30)


def test_interval_is_clustered_by_prompt():
    one_pair = [_ranking(["a", "b"], [1, 2]) for _ in range(60)]
    scores = [[1.0, 0.0] if i % 3 else [0.0, 1.0] for i in range(60)]
    # The same 60 judgements, each three times over: no more evidence about other prompts.
    three_pairs = [_ranking(["a", "b", "c", "d"], [1, 2, 2, 2]) for _ in range(60)]
    repeated = [[better, worse, worse, worse] for better, worse in scores]
    narrow, wide = pair_metrics(one_pair, scores), pair_metrics(three_pairs, repeated)
    assert wide["eval_pairs"] == 3 * narrow["eval_pairs"]
    assert (wide["accuracy_low"], wide["accuracy_high"]) == pytest.approx(
        (narrow["accuracy_low"], narrow["accuracy_high"])
    )
    assert 0.5 < narrow["accuracy_low"] < 2 / 3 < narrow["accuracy_high"] < 0.8


def test_random_scores_are_within_chance():
    rng = np.random.default_rng(1)
    rankings = [_ranking(list("abcd"), rng.permutation(4).tolist()) for _ in range(150)]
    metrics = pair_metrics(rankings, rng.normal(size=(150, 4)).tolist())
    assert metrics["accuracy_low"] < 0.5 < metrics["accuracy_high"]
    assert metrics["accuracy_high"] - metrics["accuracy_low"] < 0.15


def test_scores_far_apart_do_not_overflow():
    assert pair_metrics([_ranking(["a", "b"], [1, 2])], [[-1e4, 1e4]])["log_loss"] == pytest.approx(2e4)


def test_rankings_that_are_all_ties_are_refused():
    with pytest.raises(UsageError, match="None of the 1 validation rankings"):
        pair_metrics([_ranking(["a", "b"], [1, 1])], [[1.0, 0.0]])


def test_several_annotators_of_a_prompt_are_no_more_prompts():
    scores = [[1.0, 0.0] if i % 3 else [0.0, 1.0] for i in range(60)]
    alone = [_ranking(["a", "b"], [1, 2], prompt=str(i)) for i in range(60)]
    thrice = [_ranking(["a", "b"], [1, 2], prompt=str(i), annotator=name) for name in "xyz" for i in range(60)]
    one, other = pair_metrics(alone, scores), pair_metrics(thrice, scores * 3)
    assert (other["accuracy_low"], other["accuracy_high"]) == (one["accuracy_low"], one["accuracy_high"])
    assert other["between_annotators"] == 1.0
    assert "between_annotators" not in one


def test_the_interval_of_the_lead_over_words_is_clustered_by_prompt():
    """The same judgements three times over, as pairs of one ranking or by three annotators, are no more evidence."""
    scores, words = ([[1.0, 0.0] if i % step else [0.0, 1.0] for i in range(60)] for step in (10, 3))
    alone = [_ranking(["a", "b"], [1, 2], prompt=str(i)) for i in range(60)]
    once = pair_metrics(alone, scores, words=words)
    four = [_ranking(["a", "b", "c", "d"], [1, 2, 2, 2], prompt=str(i)) for i in range(60)]
    of_four, words_of_four = ([[one, other, other, other] for one, other in told] for told in (scores, words))
    in_one = pair_metrics(four, of_four, words=words_of_four)
    by_three = [_ranking(["a", "b"], [1, 2], prompt=str(i), annotator=name) for name in "xyz" for i in range(60)]
    thrice = pair_metrics(by_three, scores * 3, words=words * 3)
    for more in (in_one, thrice):
        assert more["eval_pairs"] == 3 * once["eval_pairs"]
        for end in ("words_lead_low", "words_lead_high"):
            assert more[end] == pytest.approx(once[end])
    assert once["words_lead_low"] < 0.2 < once["words_lead_high"]


def test_words_are_shown_with_the_interval_of_the_lead():
    rankings = [_ranking(["a", "b"], [1, 2]) for _ in range(100)]
    scores = [[1.0, 0.0] if i % 10 else [0.0, 1.0] for i in range(100)]
    words = [[1.0, 0.0] if i % 2 else [0.0, 1.0] for i in range(100)]
    metrics = pair_metrics(rankings, scores, words=words)
    assert metrics["words_baseline"] == 0.5
    assert 0.2 < metrics["words_lead_low"] < 0.4 < metrics["words_lead_high"] < 0.6
    same = pair_metrics(rankings, scores, words=scores)
    assert (same["words_lead_low"], same["words_lead_high"]) == (0.0, 0.0)
    assert "words_baseline" not in pair_metrics(rankings, scores)


def test_the_length_of_an_answer_is_that_of_all_its_turns():
    """The reward model reads them all: the better answers here are the longer ones, though their last turns are not."""
    asked = {"role": "user", "content": "what?"}
    before = [{"role": "assistant", "content": "a long beginning"}, {"role": "user", "content": "and?"}]
    ranking = [
        Ranking([{**asked, "content": f"what {n}?"}], ["yes", "a dog"], [1, 2], turns=[before, []]) for n in range(20)
    ]
    assert ranking[0].texts() == ["a long beginning\n\nand?\n\nyes", "a dog"]
    metrics = pair_metrics(ranking, [[1.0, 0.0]] * 20)
    assert (metrics["length_baseline"], metrics["length_rule"]) == (1.0, "longer")
