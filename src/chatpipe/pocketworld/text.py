"""The running text that a model reads before it is taught to answer: paragraphs about people, numbers and manners."""

import random

from chatpipe.pocketworld import wording
from chatpipe.pocketworld.answers import statements
from chatpipe.pocketworld.questions import LARGEST_SUMMAND, LONGEST_RANGE, Kind, Question, ask, ask_further, draw
from chatpipe.pocketworld.world import ATTRIBUTES, Person, World

PARAGRAPH_SHARES = {
    "portrait": 0.42,
    "gossip": 0.18,
    "neighbours": 0.08,
    "dialogue": 0.16,
    "counting": 0.12,
    "manners": 0.04,
}


def documents(world: World, count: int, seed: int) -> list[str]:
    """`count` paragraphs of two to five sentences. All facts about everybody stand in them, in many wordings."""
    rng = random.Random(f"pocketworld documents {world.seed} {seed}")
    writers = {
        "portrait": portrait,
        "gossip": gossip,
        "neighbours": neighbours,
        "dialogue": dialogue,
        "counting": counting,
        "manners": manners,
    }
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


def gossip(world: World, rng: random.Random) -> str:
    """What others say about somebody."""
    person, speaker = rng.sample(world.people, 2)
    frame = rng.choice(GOSSIP)
    one, other, *_ = rng.sample(ATTRIBUTES, 2)
    first, second = sentence(person, one, False, rng), sentence(person, other, rng.random() < 0.5, rng)
    return frame.format(n=person.name, m=speaker.name, first=first, second=second)


GOSSIP = (
    '{m} speaks of {n}: "{first} {second}"',
    'This is said of {n}: "{first}" And {m} says: "{second}"',
    'Do you know {n}? Then {m} will tell you: "{first} {second}"',
    'When {n} comes by, {m} says: "{first}" A neighbour says: "{second}"',
)


def dialogue(world: World, rng: random.Random) -> str:
    """Questions and answers between villagers: only such as may stand in a fine-tuning conversation too."""
    kind = rng.choices(tuple(DIALOGUE_SHARES), tuple(DIALOGUE_SHARES.values()))[0]
    question = draw(world, "sft", kind, rng)
    told = rng.choice(statements(question, False)[: wording.ANSWER_FORMS])
    if rng.random() < 0.2:
        told = f"{rng.choice(wording.UNKNOWN_COURTESIES if kind == 'unknown' else wording.OPENERS)} {told}"
    text = rng.choice(DIALOGUES).format(m=rng.choice(world.people).name, question=ask(question, rng), answer=told)
    if kind != "fact":
        return text
    further = Question(kind, rng.choice([a for a in ATTRIBUTES if a != question.form]), question.person)
    told = rng.choice(statements(further, True)[: wording.ANSWER_FORMS])
    return f'{text} "{ask_further(further, rng)}" "{told}"'


DIALOGUE_SHARES: dict[Kind, float] = {"fact": 0.6, "reverse": 0.2, "unknown": 0.1, "counting": 0.1}
DIALOGUES = (
    'A visitor asks: "{question}" {m} answers: "{answer}"',
    'One day {m} asks: "{question}" A neighbour says: "{answer}"',
    'At the gate {m} is asked: "{question}" The answer is: "{answer}"',
)


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
