"""Two processes share what one evaluates alone, and all of them know the same numbers."""

import json

import pytest
from evaluated_by_a_rank import write_evaluation

from forked import run_ranks


def written(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_one_and_two_processes_find_the_same(tmp_path):
    (tmp_path / "two").mkdir()
    write_evaluation(tmp_path)
    [alone] = written(tmp_path)
    run_ranks(write_evaluation, tmp_path / "two")
    ranks = written(tmp_path / "two")
    assert len(ranks) == 2
    for of_rank in ranks:
        assert of_rank["chat"].pop("ids") == alone["chat"]["ids"]
        for name, metrics in of_rank.items():
            expected = {key: value for key, value in alone[name].items() if key != "ids"}
            assert metrics.pop("length_rule", None) == expected.pop("length_rule", None)
            assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-6), name
