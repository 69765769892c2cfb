import json

import numpy as np
import pytest
from ranked import item, items, open_store, said, skip, submit

from chatpipe.console import nan_to_none
from chatpipe.ranking.stats import (
    LEVELS,
    coincidences,
    group_stats,
    kendall_w,
    ordinal_alpha,
    pair_agreements,
    position_effect,
    tau_bs,
)


def test_progress_counts_items_as_often_as_people_ranked_them():
    first, second, third = items(3)
    group = group_stats(
        [
            said(first, "ada", [1, 2, 3]),
            said(first, "bob", [1, 1, 1], all_bad=True),
            said(first, "ada", [1, 2, 3], repeat=True),
            said(second, "ada", [2, 1, 2], flag=True, note="odd"),
            said(second, "bob", [], skipped="I do not know", flag=True),
            said(third, "bob", [], skipped="I do not know"),
        ],
        ["ada", "bob", "cem"],
        overlap=2,
    )
    assert (group["items_begun"], group["items_done"]) == (2, 1)
    assert (group["rankings"], group["repeats"]) == (3, 1)
    assert (group["skips"], group["flags"], group["all_bad"]) == ({"I do not know": 2}, 2, 1)
    ada, bob, cem = (group["annotators"][name] for name in ("ada", "bob", "cem"))
    assert (ada["rankings"], ada["repeats"], ada["flags"], ada["skips"]) == (2, 1, 1, {})
    assert (bob["rankings"], bob["all_bad"], bob["skips"]) == (1, 1, {"I do not know": 2})
    assert (cem["rankings"], cem["median_seconds"], cem["rankings_per_hour"]) == (0, None, None)


def test_pace_is_the_median_and_a_pause_is_no_work():
    took = [10.0, 20.0, 30.0, 100_000.0]
    told = [said(one, "ada", [1, 2, 3], seconds=seconds) for one, seconds in zip(items(4), took, strict=True)]
    ada = group_stats(told, ["ada"], 1)["annotators"]["ada"]
    assert ada["median_seconds"] == 25
    assert ada["rankings_per_hour"] == pytest.approx(4 * 3600 / (60 + 1800))


def test_agreement_is_that_of_the_measures_over_all_items():
    rng = np.random.default_rng(0)
    told, matrices = [], []
    for one in items(30, k=4):
        ranks = np.array([np.unique(row, return_inverse=True)[1] + 1 for row in rng.integers(0, 4, size=(3, 4))])
        told += [said(one, name, row.tolist()) for name, row in zip(("ada", "bob", "cem"), ranks, strict=True)]
        matrices.append(ranks.astype(float))
    agreement = group_stats(told, ["ada", "bob", "cem"], 3)["agreement"]
    expected = {
        "pair_agreement": np.concatenate([pair_agreements(ranks) for ranks in matrices]).mean(),
        "tau_b": np.nanmean([tau for ranks in matrices for tau in tau_bs(ranks)]),
        "kendall_w": np.nanmean([kendall_w(ranks) for ranks in matrices]),
        "ordinal_alpha": ordinal_alpha(coincidences(np.concatenate(matrices, axis=1), LEVELS)),
    }
    for name, value in expected.items():
        assert agreement[name]["value"] == pytest.approx(value, abs=1e-12), name
        assert agreement[name]["low"] < value < agreement[name]["high"]
        assert (agreement[name]["items"], agreement[name]["reason"]) == (30, None)


def test_items_of_different_sizes_and_with_other_annotators_count_together():
    small, large, lonely = item("A?", ["a", "b"]), item("B?", list("abcdefghi")), item("C?", ["a", "b"])
    told = [said(small, "ada", [1, 2]), said(small, "bob", [2, 1]), said(lonely, "ada", [1, 2])]
    told += [said(large, name, list(range(1, 10))) for name in ("bob", "cem")]
    agreement = group_stats(told, ["ada", "bob", "cem"], 2)["agreement"]
    assert agreement["pair_agreement"]["value"] == pytest.approx(36 / 37)
    assert agreement["kendall_w"]["value"] == pytest.approx(1 / 2)
    assert agreement["tau_b"]["value"] == pytest.approx(0)
    assert agreement["pair_agreement"]["items"] == 2


def test_annotators_agree_with_themselves_on_hidden_repeats_alone():
    one, two = items(2)
    told = [
        said(one, "ada", [1, 2, 3]),
        said(one, "ada", [1, 2, 3], repeat=True),
        said(two, "ada", [1, 2, 3]),
        said(two, "ada", [3, 2, 1], repeat=True),
        said(one, "bob", [3, 2, 1]),
        said(two, "bob", [3, 2, 1]),
        said(two, "bob", [], repeat=True, skipped="tired"),
    ]
    group = group_stats(told, ["ada", "bob"], 2)
    assert group["annotators"]["ada"]["self_agreement"]["value"] == 0.5
    assert group["annotators"]["ada"]["self_agreement"]["items"] == 2
    assert group["annotators"]["bob"]["self_agreement"]["value"] is None
    assert group["self_agreement"]["value"] == 0.5
    # Between people the repeats do not count.
    assert group["agreement"]["pair_agreement"]["value"] == 0


def test_equal_values_are_not_certainty():
    told = [said(one, name, [1, 2, 3]) for one in items(5) for name in ("ada", "bob")]
    agreement = group_stats(told, ["ada", "bob"], 2)["agreement"]
    for name in ("pair_agreement", "tau_b", "kendall_w"):
        assert agreement[name]["value"] == agreement[name]["high"] == pytest.approx(1)
        assert agreement[name]["low"] < 0.7
    alpha = agreement["ordinal_alpha"]
    assert (alpha["value"], alpha["low"], alpha["high"]) == (1, None, None)
    assert alpha["reason"]


def test_what_cannot_be_measured_is_null_with_a_reason():
    tied = [said(one, name, [1, 1, 1]) for one in items(3) for name in ("ada", "bob")]
    for told, reason in (([], "nothing was ranked twice"), (tied, "all that was ranked twice is tied")):
        group = group_stats(told, ["ada", "bob"], 2)
        assert nan_to_none(group) == group, "a number is NaN"
        for name in ("tau_b", "kendall_w", "ordinal_alpha"):
            measure = group["agreement"][name]
            assert (measure["value"], measure["low"], measure["reason"]) == (None, None, reason)
        assert group["position_effect"]["p_value"] is None
        assert group["position_effect"]["reason"] == "0 rankings order something; 10 are needed"
        assert group["self_agreement"] == {
            **dict.fromkeys(("value", "low", "high")),
            "items": 0,
            "reason": "nothing was ranked twice",
        }


# ---- the place shown ----


def test_who_prefers_what_is_shown_first_is_found():
    rng = np.random.default_rng(1)
    shown = [[1, *(rng.permutation(3) + 2).tolist()] for _ in range(10)]
    effect = position_effect(shown)
    assert effect["mean_rank"]["4"][0] == 1
    assert effect["p_value"] <= 0.01


def test_who_prefers_the_middle_is_found_too():
    assert position_effect([[2, 1, 2]] * 12)["p_value"] <= 0.01


def test_without_an_effect_it_is_found_as_seldom_as_the_p_value_predicts():
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(120):
        shown = [np.unique(rng.integers(0, 4, 4), return_inverse=True)[1] + 1 for _ in range(12)]
        shown += [rng.permutation(2) + 1 for _ in range(6)]
        found += position_effect([ranks.tolist() for ranks in shown])["p_value"] <= 0.2
    assert 12 <= found <= 36  # 24 expected; the binomial's 99 % interval


def test_ranks_at_each_place_are_reported_for_each_size_and_ties_share_theirs():
    effect = position_effect([[1, 1, 2], [2, 1, 3], [1, 2], [1, 1]])
    assert effect["mean_rank"] == {"2": [1, 2], "3": [1.75, 1.25, 3]}
    assert effect["rankings"] == 3


def test_the_shown_order_decides_which_rank_was_where():
    # Canonical ranks differ, but the answer in the first place always won.
    told = []
    for number, one in enumerate(items(12)):
        order = np.random.default_rng(number).permutation(3).tolist()
        ranks = [0, 0, 0]
        for place, index in enumerate(order):
            ranks[index] = place + 1
        told.append(said(one, "ada", ranks, order=order))
    effect = group_stats(told, ["ada"], 1)["annotators"]["ada"]["position_effect"]
    assert effect["mean_rank"] == {"3": [1, 2, 3]}
    assert effect["p_value"] < 0.001


# ---- the command ----


@pytest.fixture
def ranked_store(work):
    """Two people and a program ranked twelve items; the store is still open for writing."""
    of = items(12)
    with open_store(work / "r.db", of) as store:
        for name, kind in (("ada", "person"), ("bob", "person"), ("robot", "program")):
            store.add_annotator(name, kind)
        for number, one in enumerate(of):
            submit(store, "ada", one.id, [1, 2, 3])
            submit(store, "robot", one.id, [3, 2, 1])
            if number:
                submit(store, "bob", one.id, [1, 3, 2])
        skip(store, "bob", of[0].id, 3, "not my field")
        submit(store, "ada", of[0].id, [1, 2, 3], repeat=True)
        yield store


def test_stats_of_a_store_in_use(chatpipe, ranked_store):
    told = chatpipe("rankings", "stats", "r.db", "--json").object
    assert (told["items"], told["overlap"]) == (12, 2)
    people, programs = told["people"], told["programs"]
    assert people["annotators"].keys() == {"ada", "bob"}
    assert programs["annotators"].keys() == {"robot"}
    assert (people["items_begun"], people["items_done"], people["skips"]) == (12, 11, {"not my field": 1})
    assert people["agreement"]["pair_agreement"]["value"] == pytest.approx(2 / 3)
    assert people["self_agreement"]["value"] == 1
    assert programs["agreement"]["kendall_w"]["value"] is None
    assert programs["position_effect"]["reason"] == "programs are shown no order"


def test_stats_for_people_are_tables_on_stderr(chatpipe, ranked_store):
    said = chatpipe("rankings", "stats", "r.db")
    assert (said.code, said.out) == (0, "")
    assert "people" in said.err
    assert "11 of 12 have 2 rankings, 12 have some" in said.err
    assert "1 (1: not my field)" in said.err
    assert "programs, each" in said.err
    assert "nan" not in said.err


def test_stats_of_a_store_in_which_nobody_ranked_yet(chatpipe, work):
    open_store(work / "r.db", items(2)).close()
    said = chatpipe("rankings", "stats", "r.db", "--json")
    assert said.object["people"]["rankings"] == 0
    assert json.loads(said.out)["people"]["agreement"]["kendall_w"]["value"] is None
    assert "Nobody has ranked here yet." in chatpipe("rankings", "stats", "r.db").err
