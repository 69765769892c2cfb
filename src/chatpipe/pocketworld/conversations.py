"""Conversations of mixed quality for fine-tuning, and prompts for practice and test."""

import random

from chatpipe.pocketworld import wording
from chatpipe.pocketworld.questions import KIND_SHARES, Kind, Message, Question, ask, ask_further, draw
from chatpipe.pocketworld.right_answers import answer, good_answer
from chatpipe.pocketworld.world import ATTRIBUTES, Split, World

FOLLOW_UP_SHARE = 0.30
"""Share of the fact questions that are asked with a pronoun, after a first exchange about the same person."""
AFTER_EXCHANGE_SHARE = 0.70
"""Share of the small talk that comes after an exchange about a fact."""
GREETING_SHARE = 0.15
"""Share of the other questions that come after a greeting."""


MOST_TRIES = 300
"""Draws without a new prompt before a kind of question counts as used up."""


def conversations(world: World, count: int, seed: int) -> list[list[Message]]:
    """`count` conversations about the people of the sft split; each ends with an answer of the assistant."""
    rng = random.Random(f"pocketworld conversations {world.seed} {seed}")
    kinds = kinds_of(count, rng)
    result = []
    for kind in kinds:
        messages, question = open_conversation(world, "sft", kind, rng)
        result.append([*messages, message("assistant", answer(world, question, rng))])
    return result


def prompts(world: World, split: Split, count: int, seed: int) -> list[list[Message]]:
    """`count` different prompts about what belongs to `split`, fewer where a small world has no more.

    Each ends with a message of the user.
    """
    rng = random.Random(f"pocketworld prompts {split} {world.seed} {seed}")
    found: dict[str, list[Message]] = {}
    for kind in kinds_of(count, rng):
        for _ in range(MOST_TRIES):
            messages, _ = open_conversation(world, split, kind, rng)
            if found.setdefault(repr(messages), messages) is messages:
                break
    return list(found.values())


def kinds_of(count: int, rng: random.Random) -> list[Kind]:
    """`count` kinds of question in their shares, shuffled."""
    kinds: list[Kind] = []
    for kind, share in KIND_SHARES.items():
        kinds += [kind] * round(count * share)
    kinds = (kinds + ["fact"] * count)[:count]
    rng.shuffle(kinds)
    return kinds


def open_conversation(world: World, split: Split, kind: Kind, rng: random.Random) -> tuple[list[Message], Question]:
    """The messages up to and with a question of `kind`, and the question.

    Earlier answers are of mixed quality for sft; elsewhere they are right and well put.
    """
    question = draw(world, split, kind, rng)
    if kind == "fact" and rng.random() < FOLLOW_UP_SHARE:
        other = rng.choice([attribute for attribute in ATTRIBUTES if attribute != question.form])
        first = Question("fact", other, question.person)
        return [*exchange(world, split, first, rng), message("user", ask_further(question, rng))], question
    if kind == "smalltalk":
        if question.form != "hello" and rng.random() < AFTER_EXCHANGE_SHARE:
            first = draw(world, split, "fact", rng)
            return [*exchange(world, split, first, rng), message("user", ask(question, rng))], question
        return [message("user", rng.choice(openings(world, split, question.form)))], question
    messages = [message("user", ask(question, rng))]
    if rng.random() < GREETING_SHARE:
        messages = [*exchange(world, split, Question("smalltalk", "hello"), rng), *messages]
    return messages, question


def exchange(world: World, split: Split, question: Question, rng: random.Random) -> list[Message]:
    """A question and its answer."""
    asked = ask(question, rng)
    reply = answer(world, question, rng) if split == "sft" else good_answer(question, rng)
    return [message("user", asked), message("assistant", reply)]


def openings(world: World, split: Split, intent: str) -> list[str]:
    """The small talk that can open a conversation: all wordings for sft; practice and test have one half each."""
    wordings = list(wording.SMALLTALK_QUESTIONS[intent])
    if split == "sft":
        return wordings
    random.Random(f"pocketworld openings {world.seed} {intent}").shuffle(wordings)
    half = len(wordings) // 2
    return wordings[:half] if split == "practice" else wordings[half:]


def message(role: str, content: str) -> Message:
    """One message."""
    return {"role": role, "content": content}
