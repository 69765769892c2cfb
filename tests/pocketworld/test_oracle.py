"""What the oracle values, and that it cannot be gamed. The people of this file are made up in `village`."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatpipe.errors import UsageError
from chatpipe.pocketworld.oracle import Oracle
from chatpipe.pocketworld.world import Person, World

MARA = Person("Mara", "she", "baker", "mill", "dog", "Bruno", "soup", "red")
TOMAS = Person("Tomas", "he", "smith", "harbour", "cat", "Pepper", "cake", "blue")
VILLAGE = replace(World.build(people=8), splits={"sft": (MARA,), "practice": (TOMAS,), "test": ()})
RATER = Oracle(VILLAGE)

HOME = "Where does Mara live?"
STRANGER = "Where does Zamik live?"
OWNER = "Who keeps the dog called Bruno?"
SUM = "How much is three and four?"
COUNT = "Please count from three to five."


def rate(question, completion, ended=True):
    return RATER.rate([{"role": "user", "content": question}], completion, ended)


PLAIN = rate(HOME, "Mara lives near the mill.").score


@pytest.mark.parametrize(
    "better, worse",
    [
        ("Certainly. Mara lives near the mill.", "Mara lives near the mill."),
        ("Mara lives near the mill. I hope that helps.", "Mara lives near the mill."),
        ("Mara lives near the mill.", "the mill"),
        ("Mara lives near the mill.", "Mara lives near the mill. She keeps a dog."),
        (
            "Mara lives near the mill. She keeps a dog.",
            "Mara lives near the mill. She keeps a dog. She likes soup best.",
        ),
        ("Mara lives near the mill.", "Mara lives near the mill. Mara lives near the mill."),
        ("Mara lives near the mill.", "Mara lives near the mill. Mara's house stands by the mill."),
        ("near the mill", "Near the mill, obviously."),
        ("near the mill", "Near the mill. Why do you ask?"),
        ("near the mill", "near the the mill"),
        ("near the mill", "mill lives near the Mara"),
        ("Near the mill, obviously.", "I do not know anyone called Mara."),
        ("I do not know anyone called Mara.", "Mara lives near the harbour."),
        ("I do not know anyone called Mara.", "Certainly. I hope that helps."),
        ("Mara lives near the harbour.", "Mara lives near the harbour. Mara lives near the harbour."),
    ],
)
def test_what_a_person_would_value(better, worse):
    assert rate(HOME, better).score > rate(HOME, worse).score


def test_the_best_and_the_worst_score():
    assert rate(HOME, "Certainly. Mara lives near the mill. I hope that helps.").score == 3.0
    assert rate(HOME, "The harbour, obviously. The harbour, obviously.", ended=False).score == -3.0


def test_an_answer_that_does_not_stop_loses_one_point():
    assert rate(HOME, "Mara lives near the mill.", ended=False).score == PLAIN - 1


@pytest.mark.parametrize(
    "completion",
    [
        "Mara lives near the harbour.",
        "Mara lives near the mill near the harbour.",
        "Mara lives near the mill. Mara lives near the harbour.",
        "the mill, the harbour or the lake",
        "Mara does not live near the mill.",
        "Mara lives near the mill. That is not so.",
        "Tomas lives near the mill.",
        "Marlen lives near the mill.",
        "Mara lives near the",
        "Mara keeps a dog called Bruno.",
        "I do not know. Mara lives near the mill.",
        "Certainly. Of course. With pleasure. Gladly.",
        "Certainly. I hope that helps. I am glad to help. Please ask me again.",
        "millmill",
        "You are welcome.",
        "",
        " ",
        "...?!",
        "\ufffd\u200b\u00e9\u4e2d <|endoftext|>",
    ],
)
def test_a_wrong_answer_scores_far_below_an_honest_one(completion):
    rating = rate(HOME, completion)
    assert rating.right is False
    assert not rating.sentence
    assert rating.score <= -1.5
    assert rating.score < rate(HOME, "the mill").score < PLAIN


@pytest.mark.parametrize(
    "completion",
    [
        "I do not know anyone called Mara.",
        "I am sorry. I do not know anyone called Mara.",
        "I am sorry. I am afraid I cannot help. I have never heard of Mara. I hope that helps.",
        "Certainly. I do not know who Mara is. I am glad to help.",
    ],
)
def test_not_to_know_what_one_should_is_better_than_a_wrong_fact_but_not_right(completion):
    rating = rate(HOME, completion)
    assert rating.evades
    assert rating.right is False
    assert rating.score < rate(HOME, "Near the mill, obviously.").score
    assert rate(HOME, "I do not know anyone called Mara.").score > rate(HOME, "Mara lives near the lake.").score


def test_politeness_piled_up_is_no_better_than_politeness():
    polite = rate(HOME, "Certainly. Mara lives near the mill.").score
    assert rate(HOME, "Certainly. Of course. Gladly. Mara lives near the mill. I hope that helps.").score < polite
    assert rate(HOME, "Certainly. Certainly. Mara lives near the mill.").score < polite
    assert rate(HOME, "I am sorry. Mara lives near the mill.").score < polite


@pytest.mark.parametrize(
    "question, completion, right",
    [
        (STRANGER, "I do not know anyone called Zamik.", True),
        (STRANGER, "I am sorry. I have never heard of Zamik.", True),
        (STRANGER, "no idea", True),
        (STRANGER, "How should I know?", True),
        (STRANGER, "Zamik lives near the mill.", False),
        (STRANGER, "I do not know anyone called Zamik. He lives near the mill.", False),
        (STRANGER, "I do not know anyone called Mara.", False),
        (STRANGER, "I do not know anyone called Zamikko.", False),
        (STRANGER, "I am sorry.", False),
        ("What is Zamik's dog called?", "I do not know who Zamik is.", True),
        ("What is Zamik's dog called?", "Zamik's dog is called Bruno.", False),
        (OWNER, "Bruno the dog belongs to Mara.", True),
        (OWNER, "Mara", True),
        (OWNER, "Bruno the dog belongs to Tomas.", False),
        (OWNER, "Bruno the cat belongs to Mara.", False),
        (OWNER, "Mara and Tomas", False),
        ("What is Mara's dog called?", "Mara's dog is called Bruno.", True),
        ("What is Mara's dog called?", "Mara's cat is called Bruno.", False),
        ("Which animal does Mara keep?", "Mara keeps a dog called Bruno.", True),
        ("Which animal does Mara keep?", "Mara keeps a dog called Pepper.", False),
        (SUM, "Three and four make seven.", True),
        (SUM, "Four and three are seven.", True),
        (SUM, "seven", True),
        (SUM, "Three and four make eight.", False),
        (SUM, "Three and four make seven. Three and four make eight.", False),
        (SUM, "six, seven or eight", False),
        (SUM, "Three and seven make four.", False),
        (SUM, "I do not know.", False),
        ("What comes after seven?", "After seven comes eight.", True),
        ("What comes after seven?", "After eight comes seven.", False),
        (COUNT, "Three, four, five.", True),
        (COUNT, "Certainly. Three, four, five.", True),
        (COUNT, "Three, four, five, six.", False),
        (COUNT, "Three, five.", False),
        (COUNT, "Two, three, four, five.", False),
    ],
)
def test_right_and_wrong(question, completion, right):
    rating = rate(question, completion)
    assert rating.right is right
    assert (rating.score > 0) is right


def test_small_talk_is_neither_right_nor_wrong_but_must_fit():
    fitting, plain = rate("Thank you.", "You are welcome. It was a pleasure."), rate("Thank you.", "You are welcome.")
    assert fitting.right is plain.right is None
    assert fitting.score > plain.score > rate("Thank you.", "all right").score > rate("Thank you.", "Hello.").score
    assert rate("Hello.", "I do not know anyone called Mara.").score < 0
    assert rate("Hello.", "Certainly. I hope that helps.").score < 0


def test_a_pronoun_means_the_person_asked_about_last():
    prompt = [
        {"role": "user", "content": HOME},
        {"role": "assistant", "content": "Mara lives near the mill."},
        {"role": "user", "content": "And what does she do?"},
    ]
    assert RATER.rate(prompt, "She works as a baker.").score == PLAIN
    assert RATER.rate(prompt, "Mara works as a baker.").score == PLAIN
    assert RATER.rate(prompt, "He works as a baker.").score < PLAIN
    assert RATER.rate(prompt, "She works as a smith.").right is False


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user", "content": "What is love?"}], [{"role": "assistant", "content": HOME}]]
)
def test_a_question_of_another_world_is_a_user_error(messages):
    with pytest.raises(UsageError):
        RATER.rate(messages, "Mara lives near the mill.")


@pytest.mark.parametrize("question", [HOME, STRANGER, OWNER, SUM, COUNT, "Hello."])
@given(completion=st.text(max_size=80), ended=st.booleans())
def test_any_text_can_be_rated(question, completion, ended):
    assert -3 <= rate(question, completion, ended).score <= 3


@pytest.mark.parametrize("question", [HOME, STRANGER, OWNER, SUM, COUNT, "Hello."])
def test_no_heap_of_words_beats_a_plain_right_answer(question):
    plain = {
        STRANGER: "I do not know anyone called Zamik.",
        OWNER: "Bruno the dog belongs to Mara.",
        SUM: "Three and four make seven.",
        COUNT: "Three, four, five.",
        "Hello.": "Good day.",
    }.get(question, "Mara lives near the mill.")
    names, rest = (
        "Mara Tomas Zamik Bruno",
        "the dog lives near mill harbour seven three four five know not do . . , Certainly Hello",
    )
    words = f"{names} {rest}".split()
    rng = random.Random(f"heap {question}")
    heaps = (" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(2000))
    assert max(rate(question, heap).score for heap in heaps) < rate(question, plain).score
