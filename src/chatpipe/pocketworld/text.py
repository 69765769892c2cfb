"""The running text that a model reads before it is taught to answer: paragraphs about people, numbers and manners."""

import random
from functools import lru_cache

from chatpipe.pocketworld import wording
from chatpipe.pocketworld.answers import good_answer
from chatpipe.pocketworld.questions import LARGEST_SUMMAND, LONGEST_RANGE, Kind, Question, ask, ask_further, draw
from chatpipe.pocketworld.world import ATTRIBUTES, Person, World

PARAGRAPH_SHARES = {"portrait": 0.48, "neighbours": 0.05, "dialogue": 0.30, "counting": 0.14, "manners": 0.03}
PRONOUN_SHARE = 0.25
"""Share of the later sentences of a portrait that name the person by a pronoun."""
DIALOGUE_SHARES: dict[Kind, float] = {"fact": 0.6, "reverse": 0.2, "unknown": 0.1, "counting": 0.1}


def documents(world: World, count: int, seed: int) -> list[str]:
    """`count` paragraphs of two to five sentences. All facts about everybody stand in them, in many wordings."""
    rng = random.Random(f"pocketworld documents {world.seed} {seed}")
    writers = {f.__name__: f for f in (portrait, neighbours, dialogue, counting, manners)}
    kinds = rng.choices(tuple(PARAGRAPH_SHARES), tuple(PARAGRAPH_SHARES.values()), k=count)
    return [writers[kind](world, rng) for kind in kinds]


def portrait(world: World, rng: random.Random) -> str:
    """Facts about one person, who after the first sentence may be a pronoun."""
    person = rng.choice(world.people)
    first, *others = rng.sample(ATTRIBUTES, rng.randint(2, 5))
    sentences = [wording.fill(rng.choice(openings()[first]), person, pronoun=False)]
    sentences += [tell(person, attribute, rng.random() < PRONOUN_SHARE, rng) for attribute in others]
    return " ".join(sentences)


def neighbours(world: World, rng: random.Random) -> str:
    """Two people side by side, so that a name must be told from another."""
    one, other = rng.sample(world.people, 2)
    first, second = rng.sample(ATTRIBUTES, 2)
    opening = wording.fill(rng.choice(openings()[first]), one, pronoun=False)
    others = ((other, first), (one, second), (other, second))
    return " ".join([opening, *(tell(person, attribute, False, rng) for person, attribute in others)])


def tell(person: Person, attribute: str, pronoun: bool, rng: random.Random) -> str:
    """One fact about `person`."""
    return wording.fill(rng.choice(wording.STATEMENTS[attribute]), person, pronoun)


@lru_cache(maxsize=1)
def openings() -> dict[str, list[str]]:
    """The statements that can open a text: those that begin with neither a name nor a value.

    To a byte-level BPE a word without the space before it is another token, rare and known only from the beginnings of
    texts; so small a model should not have to learn every name twice.
    """
    return {a: [t for t in templates if not t.startswith("{")] for a, templates in wording.STATEMENTS.items()}


def dialogue(world: World, rng: random.Random) -> str:
    """Questions and answers among villagers, only about what belongs to the sft split."""
    kind = rng.choices(tuple(DIALOGUE_SHARES), tuple(DIALOGUE_SHARES.values()))[0]
    question = draw(world, "sft", kind, rng)
    frame, name = rng.choice(DIALOGUES), rng.choice(world.people).name
    text = frame.format(m=name, question=ask(question, rng), answer=good_answer(question, rng))
    if kind != "fact":
        return text
    further = Question(kind, rng.choice([a for a in ATTRIBUTES if a != question.form]), question.person)
    return f'{text} "{ask_further(further, rng)}" "{good_answer(further, rng)}"'


DIALOGUES = (
    'A visitor asks {m}: "{question}" The answer is: "{answer}"',
    'One day {m} asks: "{question}" A neighbour says: "{answer}"',
    'At the gate {m} is asked: "{question}" The answer is: "{answer}"',
)


def counting(world: World, rng: random.Random) -> str:
    """Sums, successors and a count."""
    sentences = []
    for _ in range(rng.randint(2, 4)):
        form = rng.choice(("sum", "sum", "sum", "next", "range"))
        if form == "sum":
            a, b = rng.randint(1, LARGEST_SUMMAND), rng.randint(1, LARGEST_SUMMAND)
            template, c = rng.choice(SUMS), wording.number(a + b)
        elif form == "next":
            a = b = rng.randint(1, len(wording.NUMBERS) - 1)
            template, c = rng.choice(SUCCESSORS), wording.number(a + 1)
        else:
            length = rng.randint(2, LONGEST_RANGE - 1)
            a = rng.randint(1, len(wording.NUMBERS) - length)
            b = a + length
            template, c = rng.choice(COUNTS), ", ".join(wording.number(n) for n in range(a, b + 1))
        sentences.append(wording.fill_numbers(template, a, b, c))
    return " ".join(sentences)


SUMS = (
    "It is known that {a} and {b} make {c}.",
    "We know that {a} and {b} are {c}.",
    "If you have {a} apples and get {b} more, you have {c} apples.",
    "How much is {a} and {b}? That makes {c}.",
)
SUCCESSORS = ("After {a} comes {c}.", "Before {c} comes {a}.", "What comes after {a}? Then comes {c}.")
COUNTS = ("To count from {a} to {b}, say {c}.", "From {a} to {b} you count {c}.", "Now count from {a}: {c}.")


def manners(world: World, rng: random.Random) -> str:
    """How people in the village talk to each other; no fact stands in it."""
    name = rng.choice(world.people).name
    courteous, rude = rng.choice(wording.OPENERS + wording.CLOSERS), rng.choice(wording.RUDE_ENDINGS)
    hello, thanks = rng.choice(wording.SMALLTALK_QUESTIONS["hello"]), rng.choice(wording.SMALLTALK_QUESTIONS["thanks"])
    greeting = rng.choice(wording.SMALLTALK_REPLIES["hello"]["courteous"])
    reply = rng.choice(wording.SMALLTALK_REPLIES["thanks"]["courteous"])
    sentences = (
        f'A visitor says: "{hello}" And {name} answers: "{greeting}"',
        f'A polite answer ends or begins with words like: "{courteous}"',
        f'The visitor says: "{thanks}" And {name} answers: "{reply}"',
        f'It is rude to say: "{rude}"',
        f'A polite person who does not know says: "{rng.choice(wording.UNKNOWN_COURTESIES)}"',
        f'In the evening everyone says: "{rng.choice(wording.SMALLTALK_REPLIES["bye"]["courteous"])}"',
        f"Somebody at the gate may say: {rng.choice(wording.CHATTER)}",
    )
    return " ".join(rng.sample(sentences, rng.randint(2, 3)))
