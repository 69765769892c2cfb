"""Rankings in the fields that public data sets have, brought into ours: `prompt`, `responses`, `ranks`.

- completions with scores or ranks (UltraFeedback, Nectar), or `responses` with `scores`;
- two answers, and a field that tells which is better (HelpSteer, PKU-SafeRLHF, SHP, the arena);
- two conversations, and who won (the arena);
- rows that rate one answer each (HelpSteer), of which those of one prompt are put together.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby, zip_longest
from typing import Any

from chatpipe.data.messages import answered, as_prompt, check_messages, first_of, json_in, prompt_key
from chatpipe.data.row_files import BadRow, BrokenRow, Row

_PROMPTS = ("prompt", "instruction", "question", "context", "history")
_ANSWER_TEXTS = ("response", "answer", "completion", "content", "text")
_SCORES = ("overall_score", "score", "rating", "helpfulness", "pm_score")
_LISTS = ("completions", "answers")
_TWO_ANSWERS = (
    ("response1", "response2"),
    ("response_1", "response_2"),
    ("response_0", "response_1"),
    ("response_a", "response_b"),
    ("human_ref_A", "human_ref_B"),
)
_TIE = re.compile(r"(?<![a-z])(tie|tied|both|bothbad)(?![a-z])")
_WINNERS = {"model_a": [1, 2], "a": [1, 2], "model_b": [2, 1], "b": [2, 1]}


def ranking_fields(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The fields by which a row is a ranking; None where it is none."""
    if {"prompt", "responses"} <= values.keys() and (values.keys() & {"ranks", "scores"}):
        return "prompt", "responses", "ranks", "scores"
    if {"conversation_a", "conversation_b", "winner"} <= values.keys():
        return "conversation_a", "conversation_b", "winner"
    asked = next((field for field in _PROMPTS if field in values), None)
    if asked is None:
        return None
    listed = next((field for field in _LISTS if _are_answers(json_in(values.get(field)))), None)
    if listed is not None:
        return asked, listed
    two, preference = _two_answers(values), _preference(values)
    return (asked, *two, *preference, "winner_tie") if two and preference else None


def in_our_fields(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with `prompt`, `responses` and `ranks`. Raises `BadRow` where they cannot be made of its fields."""
    if "ranks" in values and "responses" in values:
        return values
    if "conversation_a" in values and "winner" in values:
        return {**values, **_battle(values)}
    asked = next((field for field in _PROMPTS if values.get(field) is not None), "prompt")
    rest = {name: value for name, value in values.items() if name != asked}
    two, preference = _two_answers(values), _preference(values)
    if two and preference:
        found = {**rest, "prompt": values.get(asked), "responses": [values[field] for field in two]}
        found["ranks"] = _PREFERENCES[preference](values)
        return {**found, **_battle_of_lists(found)}
    if "scores" in values:
        return {**values, "ranks": _ranks_of(values["scores"])}
    answers = first_of(values, _LISTS)
    return values if answers is None else {**rest, "prompt": values.get(asked), **_scored(answers)}


def rated_together(rows: Iterable[Row | BrokenRow]) -> Iterator[Row | BrokenRow]:
    """`rows`, of which those that rate one answer each, as in HelpSteer, become one for all that share a prompt.

    They are in HelpSteer's fields `prompt`, `response` and `helpfulness`; the answers to a prompt follow each other.
    """
    for prompt, group in groupby(rows, key=_rated_prompt):
        if prompt is None:
            yield from group
            continue
        answers = [row for row in group if isinstance(row, Row)]
        asked = answers[0].values["prompt"]
        yield Row({"prompt": asked, "completions": [row.values for row in answers]}, answers[0].where)


def _rated_prompt(row: Row | BrokenRow) -> str | None:
    """The prompt of a row that rates one answer; None for other rows."""
    rated = isinstance(row, Row) and {"prompt", "response", "helpfulness"} <= row.values.keys()
    return json.dumps(row.values["prompt"], default=str) if rated and isinstance(row, Row) else None


# ---- completions with scores ----


def _are_answers(value: Any) -> bool:
    """Whether `value` is a list of objects with a text, which a csv has as JSON. It may be empty."""
    texts = {*_ANSWER_TEXTS}
    return isinstance(value, list) and all(isinstance(a, dict) and texts & a.keys() for a in value)


def _scored(answers: Any) -> dict[str, Any]:
    """`responses` and `ranks` of completions that have a score, or a rank of which 1 is best."""
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise BadRow("completions are not objects with a response and a score")
    scores = [first_of(answer, _SCORES) for answer in answers]
    if all(answer.get("rank") is not None for answer in answers):
        scores = [-_number(answer["rank"]) for answer in answers]
    return {"responses": [first_of(answer, _ANSWER_TEXTS) for answer in answers], "ranks": _ranks_of(scores)}


def _ranks_of(scores: Any) -> list[int]:
    """The rank of each score, the highest 1; equal ones tie."""
    if not isinstance(scores, list):
        raise BadRow("scores are not a list of numbers")
    numbers = [_number(score) for score in scores]
    order = sorted(set(numbers), reverse=True)
    return [1 + order.index(number) for number in numbers]


def _number(score: Any, name: str = "a completion has no score") -> float:
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(name)
    return number


# ---- two answers, and which is better ----


def _two_answers(values: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((two for two in _TWO_ANSWERS if all(field in values for field in two)), None)


def _preference(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    return next((fields for fields in _PREFERENCES if all(field in values for field in fields)), None)


def _by_sign(field: str) -> Callable[[Mapping[str, Any]], list[int]]:
    """Ranks by a number that is above 0 where the second answer is better."""
    return lambda values: _ranks_of([0, _number(values[field], f"{field} is not a number")])


def _by_choice(field: str, of_first: int) -> Callable[[Mapping[str, Any]], list[int]]:
    """Ranks by 0 or 1, of which `of_first` says that the first answer is better."""

    def ranks(values: Mapping[str, Any]) -> list[int]:
        choice = _number(values[field], f"{field} is not 0 or 1")
        if choice not in (0, 1):
            raise BadRow(f"{field} is not 0 or 1")
        return [1, 2] if choice == of_first else [2, 1]

    return ranks


def _by_winner(values: Mapping[str, Any]) -> list[int]:
    """Ranks by the name of the winner, or a tie."""
    winner = values["winner"]
    if not isinstance(winner, str):
        raise BadRow("winner is not text")
    name = winner.strip().lower()
    models = [str(values.get(f"model_{side}") or "").strip().lower() for side in "ab"]
    if models.count(name) == 1 and name:
        return _WINNERS["ab"[models.index(name)]]
    ranks = _WINNERS.get(name) or ([1, 1] if _TIE.search(name) else None)
    if ranks is None:
        raise BadRow(f"winner is {winner[:20]!r}: model_a, model_b or tie is expected")
    return ranks


def _by_flags(values: Mapping[str, Any]) -> list[int]:
    """Ranks by a 1 at the model that won; a tie has 0 at both."""
    return _ranks_of([values["winner_model_a"], values["winner_model_b"]])


_PREFERENCES: Mapping[tuple[str, ...], Callable[[Mapping[str, Any]], list[int]]] = {
    ("overall_preference",): _by_sign("overall_preference"),
    ("preference_strength",): _by_sign("preference_strength"),
    ("better_response_id",): _by_choice("better_response_id", of_first=0),
    ("winner_model_a", "winner_model_b"): _by_flags,
    ("winner",): _by_winner,
    ("labels",): _by_choice("labels", of_first=1),
}
"""The fields that tell which of two answers is better: HelpSteer3's, HelpSteer2's, PKU's, the arena's two, SHP's."""


# ---- two conversations ----


def _battle(values: dict[str, Any]) -> dict[str, Any]:
    """A battle of two models in the arena: one prompt, two last answers, and who won."""
    sides = [answered(check_messages(values.get(f"conversation_{side}"))) for side in "ab"]
    if prompt_key(sides[0][:-1]) != prompt_key(sides[1][:-1]):
        raise BadRow("conversation_a and conversation_b have different prompts")
    annotator = values.get("annotator", values.get("judge"))
    return {
        "prompt": sides[0][:-1],
        "responses": [side[-1]["content"] for side in sides],
        "ranks": _by_winner(values),
        "annotator": str(annotator) if annotator else None,
    }


def _battle_of_lists(values: dict[str, Any]) -> dict[str, Any]:
    """As `_battle`, where the prompt and both answers are lists of texts, one for each turn; else nothing."""
    asked, *sides = (json_in(value) for value in (values["prompt"], *values["responses"]))
    if not all(map(_are_texts, (asked, *sides))):
        return {}
    if None in (*asked, *sides[0], *sides[1]):
        raise BadRow("a message is empty")
    sides = [[text for pair in zip_longest(asked, side) for text in pair if text is not None] for side in sides]
    if sides[0][:-1] != sides[1][:-1]:
        raise BadRow("response_a and response_b have different prompts")
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(sides[0][:-1])]
    return {"prompt": as_prompt(turns), "responses": [side[-1] for side in sides]}


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str | None) for item in value)
