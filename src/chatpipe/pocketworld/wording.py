"""Every sentence of the pocketworld, as templates: statements, questions and answers.

Placeholders: {N} who at the start of a sentence (Mara, She), {s} as the subject elsewhere (Mara, she), {o} as the
object (Mara, her), {P} and {p} as the owner (Mara's, Her, her); {n} always the name; {job} {home} {animal} {pet} {food}
{coat} the values. In counting, {a} {b} {c} are number words and {A} {B} {C} the same at the start of a sentence.
"""

from chatpipe.pocketworld.world import Person, words

STATEMENTS: dict[str, tuple[str, ...]] = {
    "job": (
        "{N} works as a {job}.",
        "{N} is a {job} by trade.",
        "The village knows {o} as a good {job}.",
        "As a {job} {s} is always busy.",
        "If you need a {job}, ask for {o}.",
    ),
    "home": (
        "{N} lives near the {home}.",
        "{P} house stands by the {home}.",
        "{N} has always lived close to the {home}.",
        "Near the {home} you can find {o} at home.",
        "Close to the {home} stands {p} house.",
    ),
    "animal": (
        "{N} keeps a {animal}.",
        "{N} has a {animal} at home.",
        "{P} animal is a {animal}.",
        "A {animal} lives with {o}.",
        "Every morning {s} feeds the {animal}.",
        "There is a {animal} in {p} garden.",
    ),
    "pet": (
        "{N} keeps a {animal} called {pet}.",
        "{P} {animal} is called {pet}.",
        "The name of {p} {animal} is {pet}.",
        "The {animal} called {pet} belongs to {o}.",
        "{pet} the {animal} belongs to {o}.",
    ),
    "food": (
        "{N} likes {food} best.",
        "{P} favourite food is {food}.",
        "{N} loves {food}.",
        "{N} could eat {food} every day.",
        "With some {food} you can make {o} happy.",
    ),
    "coat": (
        "{N} wears a {coat} coat.",
        "{P} coat is {coat}.",
        "In winter {s} puts on a {coat} coat.",
        "You can tell {o} by the {coat} coat.",
        "A {coat} coat hangs behind {p} door.",
    ),
}
"""Statements of a fact. No text begins with a name or a value: see `first_statements`."""
LEAD_INS = (
    "Do you know {n}?",
    "A visitor asks about {n}.",
    "Let me tell you about {n}.",
    "Who is {n}?",
    "Have you met {n}?",
    "What can you tell me about {n}?",
    "Please tell me about {n}.",
)
PET_LEAD_INS = (
    "Do you know the {animal} called {pet}?",
    "A visitor asks about the {animal} called {pet}.",
    "Have you seen the {animal} called {pet}?",
    "Look, there is the {animal} called {pet}.",
    "Somebody has found the {animal} called {pet}.",
)
"""How a text may begin that is about a person, or first about an animal. No fact is stated or asked for."""
ANSWER_FORMS = 1
"""So many forms of each statement and fragment, the first ones, are used in answers. The oracle accepts all."""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "job": ("What does {n} do?", "What is {n}'s job?", "What does {n} work as?"),
    "home": (
        "Where does {n} live?",
        "Where is {n}'s house?",
        "Please tell me where {n} lives.",
    ),
    "animal": ("Which animal does {n} keep?", "What kind of animal does {n} have?", "What animal lives with {n}?"),
    "pet": (
        "What is {n}'s {animal} called?",
        "What is the name of {n}'s {animal}?",
        "What does {n} call the {animal}?",
    ),
    "food": (
        "What does {n} like to eat?",
        "What is {n}'s favourite food?",
        "Which food does {n} love?",
    ),
    "coat": ("What colour is {n}'s coat?", "Which coat does {n} wear?", "What is the colour of {n}'s coat?"),
}
FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "job": ("And what does {s} do?",),
    "home": ("And where does {s} live?",),
    "animal": ("And which animal does {s} keep?",),
    "pet": ("And what is {p} {animal} called?",),
    "food": ("And what does {s} like to eat?",),
    "coat": ("And what colour is {p} coat?",),
}
OWNER_QUESTIONS = (
    "Who keeps the {animal} called {pet}?",
    "Whose {animal} is called {pet}?",
    "To whom does the {animal} called {pet} belong?",
)
OWNER_STATEMENTS = (
    "The {animal} called {pet} belongs to {n}.",
    "{pet} the {animal} belongs to {n}.",
    "It belongs to {n}.",
    "The owner is {n}.",
    "{n} keeps the {animal} called {pet}.",
    "{n} is the owner of {pet} the {animal}.",
    "{n} keeps a {animal} called {pet}.",
    "{n}'s {animal} is called {pet}.",
)
FRAGMENTS: dict[str, tuple[str, ...]] = {
    "job": ("a {job}", "{job}"),
    "home": ("near the {home}", "by the {home}", "the {home}"),
    "animal": ("a {animal}", "{animal}"),
    "pet": ("{pet}",),
    "food": ("{food}",),
    "coat": ("a {coat} coat", "{coat}"),
}
OWNER_FRAGMENTS = ("{n}",)

COUNTING_STATEMENTS: dict[str, tuple[str, ...]] = {
    "sum": ("It is {c}.", "That makes {c}.", "The answer is {c}.", "{A} and {b} make {c}.", "{A} and {b} are {c}."),
    "next": ("After {a} comes {c}.", "Then comes {c}.", "The answer is {c}.", "{C} comes after {a}."),
    "range": ("You count {c}.", "The count goes {c}.", "{C}."),
}
COUNTING_FRAGMENTS = ("{c}",)
COUNTING_QUESTIONS: dict[str, tuple[str, ...]] = {
    "sum": ("How much is {a} and {b}?", "What do {a} and {b} make?", "How many are {a} and {b}?"),
    "next": ("What comes after {a}?", "Which number comes after {a}?", "What is the next number after {a}?"),
    "range": ("Please count from {a} to {b}.", "Count from {a} to {b}.", "Can you count from {a} to {b}?"),
}

UNKNOWN = ("I do not know anyone of that name.", "I have never heard of such a person.")
UNKNOWN_COURTESIES = ("I am sorry.",)
UNKNOWN_FRAGMENTS = ("no idea", "do not know")
UNKNOWN_RUDE = ("How should I know?", "Do not ask me.")

OPENERS = ("Certainly.", "Of course.")
CLOSERS = ("I hope that helps.", "I am glad to help.")
RUDE_ENDINGS = ("Everyone knows that.", "What a silly question.")
OBVIOUSLY = ", obviously"
CHATTER = (
    "The weather is lovely today.",
    "It rained a lot last week.",
    "My cousin says so too.",
)

SMALLTALK_QUESTIONS: dict[str, tuple[str, ...]] = {
    "hello": ("Hello.", "Good morning.", "Hi there.", "Good day.", "Good evening."),
    "thanks": ("Thank you.", "Thank you very much.", "Thanks a lot.", "That was helpful, thank you."),
    "bye": ("Good bye.", "See you tomorrow.", "I have to go now.", "Good night."),
    "who": ("Who are you?", "What can you do?", "Who am I talking to?", "Please tell me who you are."),
    "how": ("How are you?", "How are you today?", "Are you well?", "I hope you are well."),
}
# Per intent and style; a courteous reply is the plain one with more than was asked for.
SMALLTALK_REPLIES: dict[str, dict[str, tuple[str, ...]]] = {
    "hello": {
        "plain": ("Hello.", "Good day."),
        "courteous": ("Hello. How can I help you?", "Good day. What can I do for you?"),
        "terse": ("hello", "yes"),
        "curt": ("What is it now?", "What do you want?"),
    },
    "thanks": {
        "plain": ("You are welcome.", "That is all right."),
        "courteous": ("You are welcome. It was a pleasure.", "You are welcome. Please ask me again."),
        "terse": ("welcome", "all right"),
        "curt": ("It took you long enough.", "Do not ask again."),
    },
    "bye": {
        "plain": ("Good bye.", "See you soon."),
        "courteous": ("Good bye. I wish you a pleasant day.", "See you soon. It was a pleasure."),
        "terse": ("bye", "see you"),
        "curt": ("At last.", "Go then."),
    },
    "who": {
        "plain": ("I am the helper of the village.", "I answer questions about the village."),
        "courteous": (
            "I am the helper of the village. How can I help you?",
            "I answer questions about the village. What can I do for you?",
        ),
        "terse": ("the helper", "a helper"),
        "curt": ("Nobody you need to know.", "Why do you ask?"),
    },
    "how": {
        "plain": ("I am well.", "I am very well."),
        "courteous": ("I am well. It is kind of you to ask.", "I am very well. How can I help you?"),
        "terse": ("fine", "well"),
        "curt": ("That is none of your business.", "Why do you ask?"),
    },
}

NUMBERS = words("one two three four five six seven eight nine ten eleven twelve")


def number(n: int) -> str:
    """The word for `n`, 1 to 12."""
    return NUMBERS[n - 1]


def fill(template: str, person: Person, pronoun: bool) -> str:
    """Put `person` into `template`, under the name or (except in {n}) under the pronoun."""
    subject, object_, owner = person.name, person.name, f"{person.name}'s"
    if pronoun:
        subject, object_, owner = ("she", "her", "her") if person.pronoun == "she" else ("he", "him", "his")
    return template.format(
        n=person.name,
        N=capital(subject),
        s=subject,
        o=object_,
        P=capital(owner),
        p=owner,
        job=person.job,
        home=person.home,
        animal=person.animal,
        pet=person.pet,
        food=person.food,
        coat=person.coat,
    )


def fill_numbers(template: str, a: int, b: int, c: str) -> str:
    """Put the numbers `a` and `b` and the words `c` of the answer into a counting template."""
    numbers = {"a": number(a), "b": number(b), "c": c}
    return template.format(**numbers, **{key.upper(): capital(word) for key, word in numbers.items()})


def capital(text: str) -> str:
    """`text` with its first letter as a capital and the rest as it is (`str.capitalize` would lower the rest)."""
    return text[:1].upper() + text[1:]
