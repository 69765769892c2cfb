import re

import pytest

from chatpipe.pocketworld import wording
from chatpipe.pocketworld.questions import LARGEST_SUMMAND
from chatpipe.pocketworld.texts import documents
from chatpipe.pocketworld.wording import NUMBERS
from chatpipe.pocketworld.world import ATTRIBUTES, World


@pytest.fixture(scope="module")
def world():
    return World.build(seed=0, people=100)


@pytest.fixture(scope="module")
def texts(world):
    return documents(world, 16_000, seed=0)


def test_every_fact_about_everybody_is_in_the_text_both_ways_round(world, texts):
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


def test_nothing_false_is_stated(world, texts):
    homes = {person.name: person.home for person in world.people}
    told = [match for text in texts for match in re.findall(r"(\w+) lives near the (\w+)", text)]
    named = [(name, home) for name, home in told if name in homes]
    assert len(named) > 100
    assert all(homes[name] == home for name, home in named)


def test_sums_are_in_the_text_and_come_out_right(texts):
    summands = range(1, LARGEST_SUMMAND + 1)
    number = rf"\b({'|'.join(NUMBERS)})\b"
    sum_of_two = re.compile(rf"{number}(?: \w+)? and (?:\w+ )?{number}.*?{number}", re.IGNORECASE)
    told = {match for text in texts for match in sum_of_two.findall(text)}
    sums = {tuple(NUMBERS.index(word.lower()) + 1 for word in words) for words in told}
    assert {tuple(sorted((a, b))) for a, b, _ in sums} == {(a, b) for a in summands for b in summands if a <= b}
    assert all(a + b == c for a, b, c in sums)


def test_paragraphs_are_short_plain_text(texts):
    assert all(text.isascii() and "{" not in text and "  " not in text for text in texts)
    lengths = [len(re.findall(r"[.!?]", text)) for text in texts]
    assert min(lengths) >= 2
    assert sum(2 <= length <= 6 for length in lengths) / len(lengths) > 0.9


def test_strangers_of_practice_and_test_are_never_mentioned(world, texts):
    words = set(re.findall(r"\w+", " ".join(texts)))
    assert not words & {*world.strangers["practice"], *world.strangers["test"]}


def test_no_question_about_the_people_of_practice_and_test_is_in_the_text(world, texts):
    everything = "\n".join(texts)

    def asked(split):
        questions = [
            wording.fill(template, person, pronoun=False)
            for person in world.splits[split]
            for template in (*wording.OWNER_QUESTIONS, *(t for some in wording.QUESTIONS.values() for t in some))
        ]
        return [question for question in questions if question in everything]

    assert asked("sft")
    assert not asked("practice") + asked("test")


def test_everybody_and_every_animal_is_named_where_a_question_would_name_them(world, texts):
    asked = {
        word for text in texts for question in re.findall(r"[^.?]*\?", text) for word in re.findall(r"\w+", question)
    }
    assert {person.name for person in world.people} <= asked
    assert {person.pet for person in world.people} <= asked


def test_the_same_seed_writes_the_same_text_whatever_the_hash_seed(world, run_with_hash_seed):
    program = "from chatpipe.pocketworld.texts import *; print(documents(World.build(0, 20), 50, 1))"
    assert run_with_hash_seed(program, 1) == run_with_hash_seed(program, 2)
    assert documents(world, 50, seed=1) != documents(world, 50, seed=2)
