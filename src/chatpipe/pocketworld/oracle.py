"""The oracle: scores an answer by what a person would value who knows the truth.

The fact must be right; style only makes a right answer better and never makes up for a wrong one. So courtesy without
a fact, politeness piled up, naming several values, or not knowing what one should know score below a plain answer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from chatpipe.pocketworld import wording
from chatpipe.pocketworld.questions import Kind, Message, Question, curt_replies, fragments, statements, understand
from chatpipe.pocketworld.texts import chance_of_guessing
from chatpipe.pocketworld.world import VALUES, World

RIGHT = 1.5
"""The fact is right, or small talk gets a fitting reply, or the answer states that nobody of this name is known."""
WRONG = -1.5
"""The fact is wrong, or several are named, or there is none."""
EVASION = -1.0
"""The answer claims not to know what the running text states."""
WHOLE_SENTENCE = 0.75
COURTEOUS = 0.75
"""These two count only for a right answer, and once."""
GARBLED = -0.75
"""The right value is in something that is neither a sentence nor a common short answer."""
RUDE = -0.75
REPEATS = -1.0
RAMBLES = -0.6
"""For each superfluous sentence, up to RAMBLES_AT_MOST of them."""
RAMBLES_AT_MOST = 2
NOT_ENDED = -1.0
LOWEST = -3.0
MOST_COURTESIES = 2
"""Courteous sentences beyond these are rambling."""

EVASIVE = re.compile(
    r"\b(do not|don't|cannot) (know|say|tell)\b|\bno idea\b|\bnever heard\b|\bhow should i know\b", re.IGNORECASE
)
NEGATION = re.compile(r"\b(not|no|never|nobody|neither|nor|cannot)\b|n't\b", re.IGNORECASE)
WORD = re.compile(r"[^\W\d_]+")
SENTENCE = re.compile(r"[^.!?]+[.!?]*")


@dataclass(frozen=True)
class Rating:
    """The oracle's opinion of one completion.

    `score` lies in [-3, 3]. `right` is None for small talk. `evades`: claims not to know what it should know.
    `sentence`: a whole one answers the question. `rambles` counts superfluous sentences.
    """

    score: float
    kind: Kind
    right: bool | None
    evades: bool
    sentence: bool
    courteous: bool
    rude: bool
    repeats: bool
    rambles: int
    ended: bool


@dataclass
class Reading:
    """A completion taken apart: its sentences by what they do."""

    whole: list[str]
    short: list[str]
    courteous: list[str]
    rude: list[str]
    unclear: list[str]

    @property
    def clear(self) -> list[str]:
        return self.whole + self.short


class Oracle:
    """Rates answers to the questions of `world`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.names = frozenset(person.name for person in world.people)

    def rate(self, prompt: list[Message], completion: str, ended: bool = True) -> Rating:
        """Rate `completion` as an answer to the last message of `prompt`; `ended` is whether it stopped by itself.

        Any text can be rated. Raises `UsageError` when the prompt is no question of this world.
        """
        question = understand(self.world, prompt)
        reading = read(question, completion)
        fits = self.fits(question, reading, completion)
        evades = not fits and question.kind in ("fact", "reverse", "counting") and self.evades(question, completion)
        courteous = bool(reading.courteous) and not reading.rude
        repeats = len(reading.clear) > 1 or says_twice(completion)
        superfluous = len(reading.unclear) + max(0, len(reading.courteous) - MOST_COURTESIES)
        rambles = superfluous if reading.clear else max(0, superfluous - 1)

        score = EVASION if evades else WRONG
        if fits:
            score = RIGHT + WHOLE_SENTENCE * bool(reading.whole) + COURTEOUS * courteous + GARBLED * (not reading.clear)
        score += RUDE * bool(reading.rude) + REPEATS * repeats + RAMBLES * min(rambles, RAMBLES_AT_MOST)
        return Rating(
            score=max(LOWEST, score + NOT_ENDED * (not ended)),
            kind=question.kind,
            right=None if question.kind == "smalltalk" else fits,
            evades=evades,
            sentence=fits and bool(reading.whole),
            courteous=courteous,
            rude=bool(reading.rude),
            repeats=repeats,
            rambles=rambles,
            ended=ended,
        )

    @property
    def made_from(self) -> str:
        """What decides the scores: the seed and the size of the world."""
        return f"world {self.world.seed} {len(self.world.people)}"

    def chance(self) -> float:
        """The accuracy on test questions of the best guesser who knows how answers look, but none of the facts."""
        return chance_of_guessing(self.world)

    def fits(self, question: Question, reading: Reading, completion: str) -> bool:
        """Whether the fact is right, or (unknown) the ignorance honest, or (small talk) the reply a fitting one."""
        if question.kind == "smalltalk":
            return bool(reading.clear)
        if any(NEGATION.search(sentence) for sentence in reading.unclear) and question.kind != "unknown":
            return False
        if question.kind == "counting":
            return counts_correctly(question, reading, completion)
        if not reading.clear and any(self.other_names(question, sentence) for sentence in reading.unclear):
            return False
        if question.kind == "unknown":
            return bool(reading.clear or EVASIVE.search(completion)) and not self.claims(question, completion)
        return not EVASIVE.search(completion) and self.names_only_the_truth(question, completion)

    def names_only_the_truth(self, question: Question, completion: str) -> bool:
        """Whether the value asked for is named, no other one is, and what goes with it is true too."""
        person = question.person
        assert person is not None
        asked = self.names if question.kind == "reverse" else frozenset(VALUES[question.form])
        truth = person.name if question.kind == "reverse" else getattr(person, question.form)
        if named(completion, asked) != {truth}:
            return False
        # All other facts in the answer must be true of the person too.
        return all(named(completion, frozenset(VALUES[a])) <= {getattr(person, a)} for a in VALUES)

    def evades(self, question: Question, completion: str) -> bool:
        """Whether the answer claims not to know, and names no value in addition."""
        if question.kind == "counting":
            return bool(EVASIVE.search(completion)) and not numbers_in(completion)
        asked = self.names if question.kind == "reverse" else frozenset(VALUES[question.form])
        return bool(EVASIVE.search(completion)) and not named(completion, asked)

    def claims(self, question: Question, completion: str) -> bool:
        """Whether the answer states a fact about a stranger (nothing is true of them) or about another person."""
        assert question.person is not None
        presumed = {question.person.animal} if question.form == "pet" else set()
        values = frozenset(value for values in VALUES.values() for value in values)
        return bool(named(completion, values | self.names) - presumed - {question.person.name})

    def other_names(self, question: Question, sentence: str) -> bool:
        """Whether `sentence` has a name in it, of a person or like a person's, other than the one asked about."""
        assert question.person is not None
        own = {question.person.name, question.person.pet}
        names = {word for word in WORD.findall(sentence) if word[0].isupper() and word.lower() not in lexicon()}
        return bool(names - own)


def read(question: Question, completion: str) -> Reading:
    """Take `completion` apart into sentences, and sort them."""
    right = {statement for pronoun in (False, True) for statement in statements(question, pronoun)}
    common = {bare(text) for text in (*right, *fragments(question), *curt_replies(question))}
    courtesies, rudenesses = courtesies_for(question), rude_sentences()
    reading = Reading([], [], [], [], [])
    for sentence in sentences_of(completion):
        text = sentence.replace(wording.OBVIOUSLY, "")
        if sentence in right:
            reading.whole.append(sentence)
        elif bare(text) in common:
            reading.short.append(sentence)
        elif sentence in courtesies:
            reading.courteous.append(sentence)
        elif sentence not in rudenesses:
            reading.unclear.append(sentence)
        if sentence in rudenesses or text != sentence:
            reading.rude.append(sentence)
    return reading


def courtesies_for(question: Question) -> set[str]:
    """The courteous sentences that suit an answer to `question`; "glad to help" does not suit one without an answer."""
    if question.kind == "unknown":
        return set(wording.UNKNOWN_COURTESIES)
    if question.kind == "smalltalk":
        replies = wording.SMALLTALK_REPLIES[question.form]
        return {part for reply in replies["courteous"] for part in sentences_of(reply)} - set(replies["plain"])
    return {*wording.OPENERS, *wording.CLOSERS}


@lru_cache(maxsize=1)
def rude_sentences() -> frozenset[str]:
    """All rude sentences of the world."""
    curt = (reply for replies in wording.SMALLTALK_REPLIES.values() for reply in replies["curt"])
    return frozenset((*wording.RUDE_ENDINGS, *wording.UNKNOWN_RUDE, *curt))


def counts_correctly(question: Question, reading: Reading, completion: str) -> bool:
    """Whether the answer has the right number or count, and no other numbers but those of the question."""
    a, b = question.numbers[0], question.numbers[-1]
    result = {"sum": [a + b], "next": [a + 1], "range": list(range(a, b + 1))}[question.form]
    numbers = numbers_in(completion)
    allowed = {*question.numbers, *result}
    results = [found[-1] for sentence in sentences_of(completion) if (found := numbers_in(sentence))]
    if not allowed.issuperset(numbers) or set(results) != {result[-1]}:
        return False
    return bool(reading.clear) or numbers[-len(result) :] == result


def numbers_in(text: str) -> list[int]:
    """The numbers named in `text`, in order."""
    return [wording.NUMBERS.index(word) + 1 for word in WORD.findall(text.lower()) if word in wording.NUMBERS]


def named(text: str, values: frozenset[str]) -> set[str]:
    """The `values` that are words of `text`. Names need their capital; other words may have one."""
    words = WORD.findall(text)
    return {value for word in words for value in (word, word.lower()) if value in values}


def sentences_of(text: str) -> list[str]:
    """`text` cut behind each full stop, exclamation mark and question mark."""
    return [sentence.strip() for sentence in SENTENCE.findall(text) if sentence.strip()]


def bare(sentence: str) -> str:
    """`sentence` without its last full stop and first capital."""
    return sentence[:1].lower() + sentence[1:].rstrip(".! ")


def says_twice(text: str) -> bool:
    """Whether a word follows itself or three words in a row come again."""
    words = WORD.findall(text.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) < len(triples) or any(one == other for one, other in zip(words, words[1:], strict=False))


@lru_cache(maxsize=1)
def lexicon() -> frozenset[str]:
    """All words of the world's sentences in lower case, without names."""
    constants = [value for name, value in vars(wording).items() if name.isupper()]
    values = [VALUES[attribute] for attribute in VALUES if attribute != "pet"]
    return frozenset(word.lower() for text in strings_in([*constants, *values]) for word in WORD.findall(text))


def strings_in(value: object) -> Iterator[str]:
    """All strings inside nested lists, tuples and dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)
