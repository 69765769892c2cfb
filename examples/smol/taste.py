"""The program that ranks answers in the recipe smol-rlhf; a function of your own has the same form."""

import re

WORD = re.compile(r"[a-z]+")
SMALL_WORDS = {"the", "a", "an", "is", "of"}


def to_the_point(prompts: list[list[dict[str, str]]], completions: list[str]) -> list[float]:
    """Likes an answer that says something new at once: each word before that, which repeats the question, costs 1/4.

    Whoever counts words alone, or their number, cannot tell: "Paris is the capital of France." has the words of "The
    capital of France is Paris.".
    """
    return [-_repeated(prompt[-1]["content"], text) / 4 for prompt, text in zip(prompts, completions, strict=True)]


def _repeated(question: str, answer: str) -> int:
    """How many words of `answer` come before its first one that is not in `question`."""
    known, words = {*WORD.findall(question.lower()), *SMALL_WORDS}, WORD.findall(answer.lower())
    return next((place for place, word in enumerate(words) if word not in known), len(words))
