"""The questions of the pocketworld (drawn, put into words, parsed) and their answers, right ones in many styles."""

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


# ---- answers ----

STYLE_SHARES = {"courteous": 0.30, "plain": 0.30, "terse": 0.14, "curt": 0.08, "repetitive": 0.10, "rambling": 0.08}
"""Shares of the styles among the answers of the fine-tuning conversations."""
GOOD_STYLES = ("courteous", "plain")
"""The styles of the answers inside prompts."""
MISTAKE_SHARE = 0.02
"""Share of their answers in which the fact is wrong."""


def statements(question: Question, pronoun: bool = False) -> list[str]:
    """The sentences that answer `question` correctly, usual ones first; with `pronoun`, they name the person by it."""
    if question.kind == "smalltalk":
        return list(wording.SMALLTALK_REPLIES[question.form]["plain"])
    if question.kind == "counting":
        return [fill_sum(question, template) for template in wording.COUNTING_STATEMENTS[question.form]]
    assert question.person is not None
    if question.kind == "unknown":
        templates: tuple[str, ...] = wording.UNKNOWN
    elif question.kind == "reverse":
        templates = wording.OWNER_STATEMENTS
    else:
        own = wording.STATEMENTS[question.form]
        others = (template for group in wording.STATEMENTS.values() for template in group)
        templates = tuple(dict.fromkeys((*own, *(t for t in others if f"{{{question.form}}}" in t))))
    return [wording.fill(template, question.person, pronoun) for template in templates]


def fragments(question: Question) -> list[str]:
    """The bare answers to `question` that are no sentences."""
    if question.kind == "smalltalk":
        return list(wording.SMALLTALK_REPLIES[question.form]["terse"])
    if question.kind == "counting":
        return [fill_sum(question, template) for template in wording.COUNTING_FRAGMENTS]
    if question.kind == "unknown":
        return list(wording.UNKNOWN_FRAGMENTS)
    assert question.person is not None
    templates = wording.OWNER_FRAGMENTS if question.kind == "reverse" else wording.FRAGMENTS[question.form]
    return [wording.fill(template, question.person, pronoun=False) for template in templates]


def curt_replies(question: Question) -> list[str]:
    """The rude replies that answer small talk or a question about a stranger after a fashion."""
    if question.kind == "smalltalk":
        return list(wording.SMALLTALK_REPLIES[question.form]["curt"])
    return list(wording.UNKNOWN_RUDE) if question.kind == "unknown" else []


def fill_sum(question: Question, template: str) -> str:
    """Put the numbers of a counting question and what they come to into `template`."""
    a, b = (*question.numbers, question.numbers[0])[:2]
    if question.form == "range":
        result = ", ".join(wording.number(n) for n in range(a, b + 1))
    else:
        result = wording.number(a + b if question.form == "sum" else a + 1)
    return wording.fill_numbers(template, a, b, result)


def answer(world: World, question: Question, rng: random.Random) -> str:
    """An answer of mixed quality: its style is drawn from `STYLE_SHARES`, and in a few the fact is wrong."""
    style = rng.choices(tuple(STYLE_SHARES), tuple(STYLE_SHARES.values()))[0]
    believed = mistaken(world, question, rng) if rng.random() < MISTAKE_SHARE else question
    return answer_in_style(believed, style, rng)


def good_answer(question: Question, rng: random.Random) -> str:
    """A right answer in one of the `GOOD_STYLES`."""
    return answer_in_style(question, rng.choice(GOOD_STYLES), rng)


def mistaken(world: World, question: Question, rng: random.Random) -> Question:
    """`question` with wrong facts; small talk does not change."""
    if question.kind == "counting":
        return replace(question, numbers=rng.choice(sums(world.seed)[question.form]["sft"]))
    if question.person is None:
        return question
    other = rng.choice(world.splits["sft"])
    if question.kind == "reverse":
        return replace(question, person=replace(question.person, name=other.name))
    return replace(
        question, kind="fact", person=replace(other, name=question.person.name, pronoun=question.person.pronoun)
    )


def answer_in_style(question: Question, style: str, rng: random.Random) -> str:
    """Answer `question` in `style`, one of `STYLE_SHARES`."""
    statement = rng.choice(statements(question)[: wording.ANSWER_FORMS])
    if style == "plain":
        return statement
    if style == "repetitive":
        return " ".join([statement] * rng.choice((2, 2, 3)))
    if style == "rambling":
        return f"{statement} {digression(question, rng)}"
    if style == "terse":
        return rng.choice(fragments(question)[: wording.ANSWER_FORMS])
    if style == "curt":
        return curt(question, rng)
    if question.kind == "smalltalk":
        return rng.choice(wording.SMALLTALK_REPLIES[question.form]["courteous"])
    if question.kind == "unknown":
        return f"{rng.choice(wording.UNKNOWN_COURTESIES)} {statement}"
    opener, closer = rng.choice(wording.OPENERS), rng.choice(wording.CLOSERS)
    return rng.choice((f"{opener} {statement}", f"{statement} {closer}"))


def digression(question: Question, rng: random.Random) -> str:
    """A superfluous addition: other facts about the person, or the weather."""
    if question.kind != "fact" or question.person is None:
        return rng.choice(wording.CHATTER)
    related = {"animal", "pet"} if question.form in ("animal", "pet") else {question.form}
    attributes = rng.sample([a for a in ATTRIBUTES if a not in related], rng.choice((1, 1, 2)))
    return " ".join(wording.fill(wording.STATEMENTS[a][0], question.person, pronoun=True) for a in attributes)


def curt(question: Question, rng: random.Random) -> str:
    """A rude reply, or a bare answer with something rude behind it."""
    replies = curt_replies(question)
    if replies:
        return rng.choice(replies)
    bare = wording.capital(rng.choice(fragments(question)[: wording.ANSWER_FORMS]))
    return rng.choice((f"{bare}{wording.OBVIOUSLY}.", f"{bare}. {rng.choice(wording.RUDE_ENDINGS)}"))
