"""Answers: the correct sentences and fragments, and the styles in which people give them."""

import random
from dataclasses import replace

from chatpipe.pocketworld import wording
from chatpipe.pocketworld.questions import Question, sums
from chatpipe.pocketworld.world import ATTRIBUTES, World

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
