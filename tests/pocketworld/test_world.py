import re

import pytest

from chatpipe.errors import UsageError
from chatpipe.pocketworld import wording
from chatpipe.pocketworld.oracle import strings_in
from chatpipe.pocketworld.questions import sums
from chatpipe.pocketworld.world import VALUES, World


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_names_and_animals_belong_to_one_person_each(seed):
    world = World.build(seed, 100)
    assert len(world.people) == 100
    assert len({person.name for person in world.people}) == 100
    assert len({person.pet for person in world.people}) == 100


def test_practice_and_test_share_the_people_that_sft_does_not_get():
    world = World.build(seed=3, people=100)
    assert [len(world.splits[split]) for split in ("sft", "practice", "test")] == [70, 15, 15]


def test_strangers_are_nobody_and_differ_between_splits():
    world = World.build()
    strangers = [name for names in world.strangers.values() for name in names]
    assert len(strangers) == len(set(strangers))
    assert not set(strangers) & {person.name for person in world.people}
    assert all(len(names) >= 50 for names in world.strangers.values())


def test_sums_differ_between_splits_in_either_order():
    for form, splits in sums(0).items():
        everything = [tuple(sorted(numbers)) for numbers_of_split in splits.values() for numbers in numbers_of_split]
        assert len(everything) == len(set(everything)), form
        assert all(splits.values())


def test_a_word_identifies_a_value():
    values = [value.lower() for values in VALUES.values() for value in values]
    assert len(values) == len(set(values))
    templates = [value for name, value in vars(wording).items() if name.isupper()]
    fixed = {
        word.lower() for text in strings_in(templates) for word in re.findall(r"\w+", re.sub(r"\{\w+\}", "", text))
    }
    assert not fixed & set(values)
    names = {name for split in World.build(people=8).strangers.values() for name in split}
    names |= {person.name for person in World.build(people=8).people}
    assert not {name.lower() for name in names} & (fixed | set(values))


def test_the_seed_alone_makes_the_world():
    assert World.build(5, 40) == World.build(5, 40)
    assert World.build(5, 40).people != World.build(6, 40).people


@pytest.mark.parametrize("people", [0, 7, 1000])
def test_a_world_too_small_or_too_large_is_a_user_error(people):
    with pytest.raises(UsageError, match=str(people)):
        World.build(people=people)
