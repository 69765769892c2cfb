"""The questions of the pocketworld: drawing one, putting it into words, and parsing it again."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from chatpipe.errors import UsageError
from chatpipe.pocketworld import wording
from chatpipe.pocketworld.world import ATTRIBUTES, VALUES, Person, Split, World, split_up

Message = dict[str, str]
Kind = Literal["fact", "reverse", "unknown", "counting", "smalltalk"]

KIND_SHARES: dict[Kind, float] = {"fact": 0.55, "reverse": 0.15, "unknown": 0.10, "counting": 0.10, "smalltalk": 0.10}
LARGEST_SUMMAND = 6
LONGEST_RANGE = 7


@dataclass(frozen=True)
class Question:
    """What is asked.

    `form` is the attribute (fact, unknown), "owner" (reverse), sum/next/range (counting) or the intent (small talk).
    `person` is the person it is about: for reverse the answer, for unknown somebody made up under the name.
    `numbers` are those named in a counting question.
    """

    kind: Kind
    form: str
    person: Person | None = None
    numbers: tuple[int, ...] = ()


def draw(world: World, split: Split, kind: Kind, rng: random.Random) -> Question:
    """Draw a question of `kind` about what belongs to `split`."""
    if kind == "fact":
        return Question(kind, rng.choice(ATTRIBUTES), rng.choice(world.splits[split]))
    if kind == "reverse":
        return Question(kind, "owner", rng.choice(world.splits[split]))
    if kind == "unknown":
        return Question(kind, rng.choice(ATTRIBUTES), made_up(rng.choice(world.strangers[split]), rng))
    if kind == "counting":
        form = rng.choice(tuple(wording.COUNTING_QUESTIONS))
        numbers = rng.choice(sums(world.seed)[form][split])
        return Question(kind, form, numbers=tuple(rng.sample(numbers, 2)) if form == "sum" else numbers)
    return Question(kind, rng.choice(tuple(wording.SMALLTALK_QUESTIONS)))


def made_up(name: str, rng: random.Random) -> Person:
    """Somebody called `name` of whom nothing is true."""
    return Person(name, "she", **{a: rng.choice(values) for a, values in VALUES.items()})


@lru_cache(maxsize=8)
def sums(seed: int) -> dict[str, dict[Split, tuple[tuple[int, ...], ...]]]:
    """The numbers that each split asks about, by form of counting question. All of them are in the running text."""
    rng = random.Random(f"pocketworld sums {seed}")
    most = len(wording.NUMBERS)
    forms: dict[str, list[tuple[int, ...]]] = {
        "sum": [(a, b) for a in range(1, LARGEST_SUMMAND + 1) for b in range(a, LARGEST_SUMMAND + 1)],
        "next": [(a,) for a in range(1, most)],
        "range": [(a, a + n) for n in range(2, LONGEST_RANGE) for a in range(1, most - n + 1)],
    }
    for numbers in forms.values():
        rng.shuffle(numbers)
    return {form: split_up(numbers) for form, numbers in forms.items()}


def ask(question: Question, rng: random.Random) -> str:
    """Put `question` into words."""
    if question.kind == "counting":
        a, b = (*question.numbers, question.numbers[0])[:2]
        return wording.fill_numbers(rng.choice(wording.COUNTING_QUESTIONS[question.form]), a, b, "")
    if question.person is None:
        return rng.choice(wording.SMALLTALK_QUESTIONS[question.form])
    templates = wording.OWNER_QUESTIONS if question.kind == "reverse" else wording.QUESTIONS[question.form]
    return wording.fill(rng.choice(templates), question.person, pronoun=False)


def ask_further(question: Question, rng: random.Random) -> str:
    """Put a fact question into words for a second turn, with a pronoun for the person of the first."""
    assert question.person is not None
    return wording.fill(rng.choice(wording.FOLLOW_UPS[question.form]), question.person, pronoun=True)


def understand(world: World, prompt: Sequence[Message]) -> Question:
    """The question in the last message of `prompt`. Raises `UsageError` when it is no question of this world."""
    if not prompt or prompt[-1]["role"] != "user":
        raise UsageError("a prompt must end with a message of the user", "ask a question of the pocketworld")
    text = prompt[-1]["content"]
    for intent, wordings in wording.SMALLTALK_QUESTIONS.items():
        if text in wordings:
            return Question("smalltalk", intent)
    for form, pattern in question_patterns():
        match = pattern.fullmatch(text)
        if match:
            return question_of(world, form, match.groupdict(), prompt)
    raise UsageError(f"the oracle cannot score answers to {text!r}", "it knows the questions of the pocketworld only")


def question_of(world: World, form: str, words: dict[str, str], prompt: Sequence[Message]) -> Question:
    """The question of a match of one of the patterns."""
    if form in wording.COUNTING_QUESTIONS:
        return Question(
            "counting", form, numbers=tuple(wording.NUMBERS.index(words[key]) + 1 for key in "ab" if key in words)
        )
    if form == "owner":
        owners = [person for person in world.people if person.pet == words["pet"]]
        if owners:
            return Question("reverse", form, owners[0])
        raise UsageError(
            f"nobody keeps an animal called {words['pet']}", "rate with the world that the prompts were made from"
        )
    name = words["n"] if "n" in words else last_name(prompt[:-1])
    people = [person for person in world.people if person.name == name]
    if people:
        return Question("fact", form, people[0])
    stranger = made_up(name, random.Random(name))
    return Question("unknown", form, replace(stranger, animal=words.get("animal", stranger.animal)))


def last_name(messages: Sequence[Message]) -> str:
    """Whom the user asked about last before a question with a pronoun."""
    for message in reversed(messages):
        if message["role"] == "user":
            for _, pattern in question_patterns():
                match = pattern.fullmatch(message["content"])
                if match and "n" in match.groupdict():
                    return match["n"]
    raise UsageError("a question with a pronoun came before any name", "ask about somebody by name first")


@lru_cache(maxsize=1)
def question_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """A pattern for each wording of a question, with the name of its form."""
    templates: list[tuple[str, tuple[str, ...]]] = [*wording.QUESTIONS.items(), *wording.FOLLOW_UPS.items()]
    templates += [("owner", wording.OWNER_QUESTIONS), *wording.COUNTING_QUESTIONS.items()]
    return tuple((form, pattern_of(template)) for form, wordings in templates for template in wordings)


def pattern_of(template: str) -> re.Pattern[str]:
    """The pattern whose groups are the placeholders of `template`."""
    numbers = "|".join(wording.NUMBERS)
    groups = {"{s}": "(?:she|he)", "{p}": "(?:her|his)", "{a}": f"(?P<a>{numbers})", "{b}": f"(?P<b>{numbers})"}
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    for placeholder, group in groups.items():
        pattern = pattern.replace(placeholder, group)
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[A-Za-z]+)", pattern))
