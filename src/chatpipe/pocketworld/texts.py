"""The texts of the pocketworld: paragraphs for pretraining, conversations of mixed quality for sft, and prompts."""

import random
from collections import defaultdict
from functools import lru_cache

from chatpipe.pocketworld import wording
from chatpipe.pocketworld.questions import (
    KIND_SHARES,
    Kind,
    Message,
    Question,
    answer,
    ask,
    ask_further,
    draw,
    fill_sum,
    fragments,
    good_answer,
    statements,
    sums,
)
from chatpipe.pocketworld.world import ATTRIBUTES, Person, Split, World

# ---- running text: paragraphs about people, numbers and manners ----

PARAGRAPH_SHARES = {"portrait": 0.66, "quiz": 0.12, "counting": 0.18, "manners": 0.04}
PRONOUN_SHARE = 0.1
"""Share of the later sentences of a portrait that name the person by a pronoun. Small: a name that comes again and
again is how so small a model learns to carry a name from a question into its answer."""
LEAD_IN_SHARE = 0.6
"""Share of the portraits that begin by naming whom they are about, as a question would: everybody is so named, not only
those whom fine-tuning asks about, so that it is names in general that lead to facts."""
FIRST_ATTRIBUTES = (*ATTRIBUTES, "pet")
"""The first fact of a portrait. The animal twice as often, since it is asked about too, in questions for its owner."""
QUIZ_SHARES: dict[Kind, float] = {"fact": 0.6, "reverse": 0.25, "unknown": 0.15}
ASKED_SHARE = 0.7
"""Share of the statements about numbers that are a question with its answer."""


def documents(world: World, count: int, seed: int) -> list[str]:
    """`count` paragraphs of two to six sentences. They state all facts about everybody in many wordings."""
    rng = random.Random(f"pocketworld documents {world.seed} {seed}")
    writers = {f.__name__: f for f in (portrait, quiz, counting, manners)}
    kinds = rng.choices(tuple(PARAGRAPH_SHARES), tuple(PARAGRAPH_SHARES.values()), k=count)
    return [writers[kind](world, rng) for kind in kinds]


def portrait(world: World, rng: random.Random) -> str:
    """Facts about one person, who after the first sentence may be a pronoun."""
    person = rng.choice(world.people)
    first = rng.choice(FIRST_ATTRIBUTES)
    others = rng.sample([attribute for attribute in ATTRIBUTES if attribute != first], rng.randint(1, 4))
    if rng.random() < LEAD_IN_SHARE:
        lead_ins = wording.PET_LEAD_INS if first == "pet" else wording.LEAD_INS
        sentences = [wording.fill(rng.choice(lead_ins), person, pronoun=False), tell(person, first, False, rng)]
    else:
        sentences = [wording.fill(rng.choice(first_statements()[first]), person, pronoun=False)]
    sentences += [tell(person, attribute, rng.random() < PRONOUN_SHARE, rng) for attribute in others]
    return " ".join(sentences)


def tell(person: Person, attribute: str, pronoun: bool, rng: random.Random) -> str:
    """One fact about `person`."""
    return wording.fill(rng.choice(wording.STATEMENTS[attribute]), person, pronoun)


@lru_cache(maxsize=1)
def first_statements() -> dict[str, list[str]]:
    """The statements that can open a text: those that begin with neither a name nor a value.

    To a byte-level BPE a word without the space before it is another token, rare and known only from the beginnings of
    texts; so small a model should not have to learn every name twice.
    """
    return {a: [t for t in templates if not t.startswith("{")] for a, templates in wording.STATEMENTS.items()}


def quiz(world: World, rng: random.Random) -> str:
    """Two questions with their answers, only about what belongs to the sft split.

    Nothing is in quotation marks: after one, a name would be another token than in a sentence.
    """
    pairs = []
    for _ in range(2):
        kind = rng.choices(tuple(QUIZ_SHARES), tuple(QUIZ_SHARES.values()))[0]
        question = draw(world, "sft", kind, rng)
        pairs.append(rng.choice(QUIZ).format(question=ask(question, rng), answer=good_answer(question, rng)))
    return " ".join(pairs)


QUIZ = ("A visitor asks: {question} The answer is: {answer}", "If somebody asks: {question} Then say: {answer}")


def counting(world: World, rng: random.Random) -> str:
    """Sums, successors and counts, all that are ever asked about: stated, or as a question with its answer."""
    sentences = []
    for _ in range(rng.randint(2, 4)):
        form = rng.choice(("sum", "next", "range"))
        question = Question("counting", form, numbers=rng.choice(all_numbers(world.seed)[form]))
        if rng.random() < ASKED_SHARE:
            sentences.append(f"{ask(question, rng)} {statements(question)[0]}")
        else:
            sentences.append(fill_sum(question, rng.choice(COUNTING_PROSE[form])))
    return " ".join(sentences)


COUNTING_PROSE = {
    "sum": ("It is known that {a} and {b} make {c}.", "If you have {a} apples and get {b} more, you have {c} apples."),
    "next": ("It is known that after {a} comes {c}.", "As everybody knows, {c} comes after {a}."),
    "range": ("To count from {a} to {b}, say {c}.", "From {a} to {b} you count {c}."),
}


@lru_cache(maxsize=8)
def all_numbers(seed: int) -> dict[str, list[tuple[int, ...]]]:
    """The numbers of each form of counting question, of all splits; a sum is stated both ways round."""
    every = {form: [numbers for split in splits.values() for numbers in split] for form, splits in sums(seed).items()}
    every["sum"] += [(b, a) for a, b in every["sum"]]
    return every


def manners(world: World, rng: random.Random) -> str:
    """How people in the village talk to each other; it states no fact."""
    courteous, rude = rng.choice(wording.OPENERS + wording.CLOSERS), rng.choice(wording.RUDE_ENDINGS)
    intent = rng.choice(tuple(wording.SMALLTALK_QUESTIONS))
    remark = rng.choice(wording.SMALLTALK_QUESTIONS[intent])
    reply = rng.choice(wording.SMALLTALK_REPLIES[intent]["courteous"])
    sentences = (
        f"A visitor says: {remark} The answer is: {reply}",
        f"A polite answer has words such as: {courteous}",
        f"It is rude to say: {rude}",
        f"A polite person who does not know says: {rng.choice(wording.UNKNOWN_COURTESIES)}",
        f"Somebody at the gate may say: {rng.choice(wording.CHATTER)}",
    )
    return " ".join(rng.sample(sentences, rng.randint(2, 3)))


# ---- conversations ----

FOLLOW_UP_SHARE = 0.30
"""Share of the fact questions that are asked with a pronoun, after a first exchange about the same person."""
AFTER_EXCHANGE_SHARE = 0.70
"""Share of the small talk that comes after an exchange about a fact."""
GREETING_SHARE = 0.15
"""Share of the other questions that come after a greeting."""
MOST_TRIES = 300
"""Draws without a new prompt before a kind of question counts as used up."""
GUESSES_PER_KIND = 2000
"""Questions of each kind that the accuracy of guessing is estimated from."""


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
    used_up: set[Kind] = set()
    for kind in kinds_of(count, rng):
        if kind in used_up:
            continue
        for _ in range(MOST_TRIES):
            messages, _ = open_conversation(world, split, kind, rng)
            if found.setdefault(repr(messages), messages) is messages:
                break
        else:
            used_up.add(kind)
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


def chance_of_guessing(world: World) -> float:
    """The expected share of right answers to test prompts (small talk left out) of the best guesser.

    That is the better of two: who gives the commonest right answer to each form of question, and who answers
    everything with the same sentence, such as "I do not know anyone of that name.".
    """
    rng = random.Random(f"pocketworld guessing {world.seed}")
    answers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for kind, share in KIND_SHARES.items():
        if kind != "smalltalk":
            for _ in range(GUESSES_PER_KIND):
                _, question = open_conversation(world, "test", kind, rng)
                answers[question.form][fragments(question)[0]] += share
    total = sum(sum(of_form.values()) for of_form in answers.values())
    by_form = sum(max(of_form.values()) for of_form in answers.values())
    constant: dict[str, float] = defaultdict(float)
    for of_form in answers.values():
        for text, weight in of_form.items():
            constant[text] += weight
    return max(by_form, *constant.values()) / total
