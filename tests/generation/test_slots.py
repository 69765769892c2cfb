"""How prompts are divided into groups, and how large the cache of each is."""

import pytest
from drawing import NEVER, SAMPLED, ids_of
from hypothesis import given
from hypothesis import strategies as st

from chatpipe.generation import generate
from chatpipe.generation.engine import MAX_WASTE, bytes_per_position, plan_groups

UNLIMITED = float("inf")


@pytest.mark.parametrize(
    "lengths, slots, positions, groups",
    [
        ([10, 12, 8], 64, UNLIMITED, [(3, 3, 12)]),  # all together
        ([10] * 100, 64, UNLIMITED, [(100, 64, 10)]),
        ([102] + [3] * 255, 256, UNLIMITED, [(1, 1, 102), (255, 255, 3)]),  # the long one alone
        ([102] + [40] * 255, 256, UNLIMITED, [(256, 256, 102)]),  # 2.5 times what is needed
        ([10] * 100, 64, 205, [(100, 20, 10)]),  # 20 rows fit
        ([100] * 10 + [60] * 10 + [50] * 20 + [10] * 50, 64, 1000, [(20, 10, 100), (20, 20, 50), (50, 50, 10)]),
        ([100, 90], 64, 50, [(2, 1, 100)]),  # not even one fits: it is tried nevertheless
    ],
)
def test_groups(lengths, slots, positions, groups):
    found = plan_groups(lengths, slots, positions)
    assert [(len(group.places), group.slots, group.max_length) for group in found] == groups


@given(
    lengths=st.lists(st.integers(2, 500), min_size=1, max_size=200),
    slots=st.integers(1, 64),
    positions=st.integers(500, 5000),
)
def test_every_prompt_is_in_one_group_that_fits(lengths, slots, positions):
    groups = plan_groups(lengths, slots, positions)
    assert sorted(place for group in groups for place in group.places) == list(range(len(lengths)))
    for group in groups:
        longest_first = [lengths[place] for place in group.places]
        assert longest_first == sorted(longest_first, reverse=True)
        assert group.max_length == longest_first[0]
        assert group.slots * group.max_length <= positions
        assert group.slots * group.max_length <= MAX_WASTE * sum(longest_first[: group.slots])


def test_groups_change_no_token(tiny_model, prompts):
    model = tiny_model("qwen3").double()
    long, counts = [[5] * 48] * 2, []
    mixed = generate(model, [*long, *prompts * 4], SAMPLED, NEVER, seed=2, slots=64, on_finished=counts.append)
    assert ids_of(mixed)[2:] == ids_of(generate(model, prompts * 4, SAMPLED, NEVER, seed=2))
    assert counts == list(range(1, 87))


def test_the_bytes_of_a_position_are_those_of_all_layers(tiny_model):
    """2 layers, keys and values; GPT-2 has 4 heads of 8, Qwen3 2 of 8."""
    assert bytes_per_position(tiny_model("gpt2")) == 2 * 2 * 4 * 8 * 4
    assert bytes_per_position(tiny_model("qwen3").bfloat16()) == 2 * 2 * 2 * 8 * 2
