"""The running text that a model reads before it is taught to answer: paragraphs about people, numbers and manners."""

import random

from chatpipe.pocketworld import wording
from chatpipe.pocketworld.questions import LARGEST_SUMMAND, LONGEST_RANGE
from chatpipe.pocketworld.world import ATTRIBUTES, Person, World

PARAGRAPH_SHARES = {"portrait": 0.70, "neighbours": 0.12, "counting": 0.12, "manners": 0.06}


def documents(world: World, count: int, seed: int) -> list[str]:
    """`count` paragraphs of two to five sentences. All facts about everybody stand in them, in many wordings."""
    rng = random.Random(f"pocketworld documents {world.seed} {seed}")
    writers = {"portrait": portrait, "neighbours": neighbours, "counting": counting, "manners": manners}
    kinds = rng.choices(tuple(PARAGRAPH_SHARES), tuple(PARAGRAPH_SHARES.values()), k=count)
    return [writers[kind](world, rng) for kind in kinds]


def portrait(world: World, rng: random.Random) -> str:
    """Facts about one person, who after the first sentence is mostly a pronoun."""
    person = rng.choice(world.people)
    attributes = rng.sample(ATTRIBUTES, rng.randint(2, 5))
    return " ".join(sentence(person, a, i > 0 and rng.random() < 0.6, rng) for i, a in enumerate(attributes))


def sentence(person: Person, attribute: str, pronoun: bool, rng: random.Random) -> str:
    """One fact about `person`."""
    return wording.fill(rng.choice(wording.STATEMENTS[attribute]), person, pronoun)


def neighbours(world: World, rng: random.Random) -> str:
    """Two people side by side, so that a name must be told from another."""
    one, other = rng.sample(world.people, 2)
    attributes = rng.sample(ATTRIBUTES, 2)
    return " ".join(sentence(person, a, False, rng) for a in attributes for person in (one, other))


def counting(world: World, rng: random.Random) -> str:
    """Sums, successors and a count."""
    sentences = []
    for _ in range(rng.randint(2, 4)):
        form = rng.choice(("sum", "sum", "sum", "next", "range"))
        if form == "sum":
            a, b = rng.randint(1, LARGEST_SUMMAND), rng.randint(1, LARGEST_SUMMAND)
            template, c = rng.choice(wording.COUNTING_STATEMENTS["sum"] + APPLES), wording.number(a + b)
        elif form == "next":
            a = b = rng.randint(1, len(wording.NUMBERS) - 1)
            template, c = rng.choice(wording.COUNTING_STATEMENTS["next"]), wording.number(a + 1)
        else:
            length = rng.randint(2, LONGEST_RANGE - 1)
            a = rng.randint(1, len(wording.NUMBERS) - length)
            b = a + length
            template, c = rng.choice(COUNTS), ", ".join(wording.number(n) for n in range(a, b + 1))
        sentences.append(wording.fill_numbers(template, a, b, c))
    return " ".join(sentences)


APPLES = (
    "If you have {a} apples and get {b} more, you have {c} apples.",
    "How much is {a} and {b}? It is {c}.",
    "{A} stones and {b} stones are {c} stones.",
)
COUNTS = ("{C}.", "To count from {a} to {b}, say {c}.", "From {a} to {b} you count {c}.")


def manners(world: World, rng: random.Random) -> str:
    """How people in the village talk to each other; no fact stands in it."""
    name = rng.choice(world.people).name
    courteous, rude = rng.choice(wording.OPENERS + wording.CLOSERS), rng.choice(wording.RUDE_ENDINGS)
    hello, thanks = rng.choice(wording.SMALLTALK_QUESTIONS["hello"]), rng.choice(wording.SMALLTALK_QUESTIONS["thanks"])
    greeting = rng.choice(wording.SMALLTALK_REPLIES["hello"]["courteous"])
    reply = rng.choice(wording.SMALLTALK_REPLIES["thanks"]["courteous"])
    sentences = (
        f'A visitor says: "{hello}" and {name} answers: "{greeting}"',
        f'A polite answer ends or begins with words like: "{courteous}"',
        f'"{thanks}" says the visitor. "{reply}" says {name}.',
        f'It is rude to say: "{rude}"',
        f'A polite person who does not know says: "{rng.choice(wording.UNKNOWN_COURTESIES)}"',
        f'In the evening everyone says: "{rng.choice(wording.SMALLTALK_REPLIES["bye"]["courteous"])}"',
        f"Somebody at the gate may say: {rng.choice(wording.CHATTER)}",
    )
    return " ".join(rng.sample(sentences, rng.randint(2, 3)))
