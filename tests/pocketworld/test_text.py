import hashlib
import re

import pytest

from chatpipe.pocketworld import World, documents
from chatpipe.pocketworld.wording import NUMBERS
from chatpipe.pocketworld.world import ATTRIBUTES


@pytest.fixture(scope="module")
def world():
    return World.build(seed=0, people=100)


@pytest.fixture(scope="module")
def texts(world):
    return documents(world, 12_000, seed=0)


def test_every_fact_about_everybody_stands_in_the_text_both_ways_round(world, texts):
    sentences = [re.findall(r"\w+", sentence) for text in texts for sentence in text.split(". ")]
    orders = {True: set(), False: set()}
    for words in sentences:
        for i, one in enumerate(words):
            for j, other in enumerate(words):
                orders[i < j].add((one, other))
    for person in world.people:
        for attribute in ATTRIBUTES:
            pair = (person.name, getattr(person, attribute))
            assert pair in orders[True], f"name before {attribute}"
            assert pair in orders[False], f"{attribute} before name"


def test_nothing_false_is_told(world, texts):
    homes = {person.name: person.home for person in world.people}
    told = [match for text in texts for match in re.findall(r"(\w+) lives near the (\w+)", text)]
    named = [(name, home) for name, home in told if name in homes]
    assert len(named) > 100
    assert all(homes[name] == home for name, home in named)


def test_sums_come_out_right(texts):
    told = {match for text in texts for match in re.findall(r"(\w+) and (\w+) (?:make|are) (\w+)", text)}
    sums = {tuple(NUMBERS.index(word.lower()) + 1 for word in words) for words in told}
    assert {(a, b) for a, b, _ in sums} == {(a, b) for a in range(1, 11) for b in range(1, 11)}
    assert all(a + b == c for a, b, c in sums)


def test_paragraphs_are_short_plain_text(texts):
    assert all(text.isascii() and "{" not in text and "  " not in text for text in texts)
    lengths = [len(re.findall(r"[.!?]", text)) for text in texts]
    assert min(lengths) >= 2
    assert sum(2 <= length <= 5 for length in lengths) / len(lengths) > 0.9


def test_strangers_are_never_mentioned(world, texts):
    words = set(re.findall(r"\w+", " ".join(texts)))
    assert not words & {name for names in world.strangers.values() for name in names}


def test_the_same_seed_writes_the_same_text_on_every_python():
    world = World.build(seed=0, people=20)
    assert documents(world, 50, seed=1) != documents(world, 50, seed=2)
    digest = hashlib.sha256("\n".join(documents(world, 50, seed=1)).encode()).hexdigest()
    assert digest[:16] == "DIGEST_DOCS"
