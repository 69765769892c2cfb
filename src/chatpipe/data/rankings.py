"""Rankings: one prompt, K completions, and a rank for each. A pair of a chosen and a rejected answer is K = 2.

Pairs come in five shapes: texts with a `prompt`; texts that hold the dialogue, as hh-rlhf has it
(`\\n\\nHuman: ... \\n\\nAssistant: ...`); texts that begin with their prompt; lists of messages, the whole conversation
or what follows `prompt`; sharegpt.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from os.path import commonprefix
from typing import Any

from chatpipe.data.chat_template import Message
from chatpipe.data.messages import (
    Id,
    answered,
    as_prompt,
    check_messages,
    dialogue_turns,
    id_of,
    is_dialogue,
    is_turn,
    merge_turns,
    message_of,
    prompt_key,
    with_context,
)
from chatpipe.data.row_files import BadRow, MarkedRow, Row

Answered = tuple[list[Message], str]
"""A prompt and the answer to it."""

FLOAT32_MAX = 3.4028234663852886e38

MAX_ROUND = 1_000_000
"""A larger number is a mistake."""


@dataclass(frozen=True)
class Ranking:
    """One prompt, K completions, a rank for each: 1 is best, equal ranks are ties.

    `round` is the round in which it was ranked. `weight` scales its loss; with None, all rankings of the same answers
    share a weight of 1. `margin` is the score difference that the loss demands, as in trl. `id` is the user's own.
    `turns`: where answers have several turns, the messages of each between `prompt` and its last turn, which is in
    `responses`.
    """

    prompt: list[Message]
    responses: list[str]
    ranks: list[int]
    annotator: str | None = None
    round: int | None = None
    weight: float | None = None
    margin: float = 0.0
    id: Id | None = None
    turns: list[list[Message]] | None = None

    def whole(self, number: int) -> list[Message]:
        """The conversation that ends with the answer of this number."""
        before = self.turns[number] if self.turns else []
        return [*self.prompt, *before, {"role": "assistant", "content": self.responses[number]}]

    def texts(self) -> list[str]:
        """All that each answer says, its other turns included."""
        spoken = [self.whole(number)[len(self.prompt) :] for number in range(len(self.responses))]
        return ["\n\n".join(message["content"] for message in answer) for answer in spoken]

    def select(self, numbers: Sequence[int]) -> "Ranking":
        """The ranking of these answers alone."""
        return replace(
            self,
            responses=[self.responses[number] for number in numbers],
            ranks=[self.ranks[number] for number in numbers],
            turns=None if self.turns is None else [self.turns[number] for number in numbers],
        )

    def to_row(self) -> dict[str, Any]:
        """The ranking as a row of a rankings file."""
        row: dict[str, Any] = {"prompt": self.prompt, "responses": self.responses, "ranks": self.ranks}
        if self.id is not None:
            row = {"id": self.id, **row}
        if self.annotator:
            row["annotator"] = self.annotator
        if self.round is not None:
            row["round"] = self.round
        if self.weight is not None:
            row["weight"] = self.weight
        if self.margin != 0:
            row["margin"] = self.margin
        if self.turns:
            row["turns"] = self.turns
        return row


def ranking_of(row: Row, form: str) -> Ranking:
    """The ranking in a row of format `pairs` or `rankings`. Raises `BadRow` where the row cannot be used."""
    if form == "pairs":
        prompt, responses, turns = _pair(row.values)
        return Ranking(prompt, responses, [1, 2], **_of_ranking(row.values), turns=turns)
    return _ranking(row.values)


def normalised(text: str) -> str:
    """Two texts are the same if these are equal: case, white space and forms of a letter do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def group_by_answers(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
    """`rankings` grouped by prompt and set of responses, in the order of the first of each group.

    All rankings of a group list the responses in one order, whatever order their annotators saw. A ranking that an
    epoch reads n times is in n groups.
    """
    times: Counter[int] = Counter()
    groups: dict[tuple[str, tuple[str, ...], int], list[Ranking]] = {}
    for ranking in rankings:
        times[id(ranking)] += 1
        key = (prompt_key(ranking.prompt), tuple(sorted(_answers(ranking))), times[id(ranking)])
        group = groups.setdefault(key, [])
        group.append(_in_order_of(group[0], ranking) if group else ranking)
    return list(groups.values())


def _answers(ranking: Ranking) -> list[str]:
    """Each answer with all its turns, as a text that identifies it."""
    if ranking.turns is None:
        return ranking.responses
    return [prompt_key(ranking.whole(number)) for number in range(len(ranking.responses))]


def _in_order_of(first: Ranking, ranking: Ranking) -> Ranking:
    """`ranking` with its answers permuted to the order of `first`."""
    wanted, found = _answers(first), _answers(ranking)
    if found == wanted:
        return ranking
    places = sorted(range(len(wanted)), key=lambda place: wanted[place])
    theirs = sorted(range(len(wanted)), key=lambda place: found[place])
    ranks = dict(zip(places, (ranking.ranks[place] for place in theirs), strict=True))
    ordered = [ranks[place] for place in range(len(wanted))]
    return replace(ranking, responses=first.responses, turns=first.turns, ranks=ordered)


# ---- fields of a ranking ----


def responses_of(values: dict[str, Any]) -> list[str]:
    """The field `responses`: two or more texts. Raises `BadRow` where it is not, or one of them is empty."""
    responses = values.get("responses")
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses) or len(responses) < 2:
        raise BadRow("responses are not two or more texts")
    if not all(text.strip() for text in responses):
        raise BadRow("a response is empty")
    return responses


def round_of(values: dict[str, Any]) -> int | None:
    """The field `round`, None where it is missing. Raises `BadRow` where it cannot be one."""
    made_in = values.get("round")
    if made_in is not None and (type(made_in) is not int or not 0 <= made_in <= MAX_ROUND):
        raise BadRow(f"round is not a whole number from 0 to {MAX_ROUND:,}")
    return made_in


def _ranking(values: dict[str, Any]) -> Ranking:
    responses, ranks = responses_of(values), values.get("ranks")
    if not isinstance(ranks, list) or len(ranks) != len(responses) or not all(type(rank) is int for rank in ranks):
        raise BadRow("ranks are not one whole number for each response")
    if not _is_order(ranks):
        raise BadRow("ranks are no order: 1 is best, and the next one follows (1, 2, 3; with ties 1, 1, 2 or 1, 1, 3)")
    prompt = with_context(values, as_prompt(values.get("prompt")))
    return Ranking(prompt, responses, ranks, **_of_ranking(values), turns=_turns(values, prompt, len(responses)))


def _turns(values: dict[str, Any], prompt: list[Message], count: int) -> list[list[Message]] | None:
    """The field `turns`, which `Ranking.to_row` writes."""
    turns = values.get("turns")
    if turns is None:
        return None
    if not isinstance(turns, list) or len(turns) != count or not all(isinstance(each, list) for each in turns):
        raise BadRow("turns are not one list of messages for each response")
    answer = {"role": "assistant", "content": "-"}
    return [check_messages([*prompt, *each, answer])[len(prompt) : -1] for each in turns]


def _is_order(ranks: list[int]) -> bool:
    """Whether ranks start at 1 without gaps, or with the gaps that ties leave (1, 1, 3).

    Any other gap means that a response is missing, or that the ranks belong to another row.
    """
    different = sorted(set(ranks))
    return different == list(range(1, len(different) + 1)) or all(
        rank == 1 + sum(other < rank for other in ranks) for rank in different
    )


def _of_ranking(values: dict[str, Any]) -> dict[str, Any]:
    """The optional fields of a ranking: annotator, round, weight and margin."""
    values = {**values, **{field: _number_in(values.get(field)) for field in ("weight", "round", "margin")}}
    weight = values["weight"]
    if weight is not None and (not _is_number(weight) or weight <= 0):
        raise (MarkedRow if weight == 0 else BadRow)("weight is not a number above 0")
    annotator = values.get("annotator")
    if not isinstance(annotator, str | None):
        raise BadRow("annotator is not text")
    return {
        "annotator": annotator or None,
        "round": round_of(values),
        "weight": None if weight is None else float(weight),
        "margin": _margin(values),
        "id": id_of(values),
    }


def _number_in(value: Any) -> Any:
    """The number that a csv cell has as text, None where it is empty; any other value unchanged."""
    try:
        return json.loads(value) if isinstance(value, str) and value.strip() else None if value == "" else value
    except ValueError:
        return value


def _margin(values: dict[str, Any]) -> float:
    margin = values.get("margin")
    if margin is None:
        return 0.0
    if not _is_number(margin):
        raise BadRow("margin is not a number")
    return float(margin)


def _is_number(value: Any) -> bool:
    """Whether `value` is a number that is finite in float32, the dtype of the loss."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


# ---- pairs ----


Sides = tuple[list[Message], list[str], list[list[Message]] | None]
"""Prompt, answers, and the turns of each answer before its last, if there are any."""


def _pair(values: dict[str, Any]) -> Sides:
    """Chosen and rejected answer to one prompt. Raises `BadRow` where one is missing or their prompts differ."""
    if values.get("prompt") is None and all(is_plain(values.get(field)) for field in ("chosen", "rejected")):
        values = {**values, **_implicit_prompt(values["chosen"], values["rejected"])}
    prompt, chosen = _side(values, "chosen")
    other_prompt, rejected = _side(values, "rejected")
    if not chosen.strip() or not rejected.strip():
        raise BadRow("an answer is empty")
    if prompt == other_prompt:
        return prompt, [chosen, rejected], None
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, other_prompt, strict=False)))
    shared, turns = prompt[:same], [prompt[same:], other_prompt[same:]]
    if not shared or any(rest and rest[0]["role"] != "assistant" for rest in turns):
        raise BadRow("chosen and rejected have different prompts")
    return shared, [chosen, rejected], turns


def is_plain(text: Any) -> bool:
    """Whether `text` is a text without a dialogue inside."""
    return isinstance(text, str) and not is_dialogue(text)


def _implicit_prompt(chosen: str, rejected: str) -> dict[str, str]:
    """Texts that hold their prompt (TRL's implicit prompt): it is the words that both begin with."""
    shared = commonprefix([chosen, rejected])
    words = max((gap.end() for gap in re.finditer(r"\s+", shared)), default=0)
    if not shared[:words].strip():
        raise BadRow("there is no prompt: neither a field nor words that chosen and rejected both begin with")
    return {"prompt": shared[:words].strip(), "chosen": chosen[words:], "rejected": rejected[words:]}


def _side(values: dict[str, Any], field: str) -> Answered:
    answer, prompt = values.get(field), values.get("prompt")
    if isinstance(answer, dict):
        answer = [answer]
    if isinstance(answer, list):
        return _conversational(values, answer, prompt)
    if not isinstance(answer, str):
        raise BadRow("chosen and rejected are neither texts nor messages")
    if prompt is None:
        before, answer = _split_dialogue(answer)
        return with_context(values, before), answer
    return with_context(values, as_prompt(prompt)), answer


def _conversational(values: dict[str, Any], messages: list[Any], prompt: Any) -> Answered:
    """Messages that start with the assistant continue `prompt`; others are the whole conversation.

    Both are in use: TRL's explicit prompt, and data sets that have a prompt field and whole conversations.
    """
    if messages and is_turn(messages[0]) and message_of(messages[0])["role"] == "assistant" and prompt is not None:
        messages = [*as_prompt(prompt), *messages]
    whole = answered(with_context(values, messages))
    unread = next((field for field in ("tool_calls", "reasoning_content") if whole[-1].get(field)), None)
    if unread is not None:
        raise BadRow(f"an answer has {unread}; rankings and pairs compare texts alone")
    return whole[:-1], whole[-1]["content"]


def _split_dialogue(text: str) -> Answered:
    """A dialogue in hh-rlhf's form: the prompt and the last answer."""
    if not is_dialogue(text):
        raise BadRow("there is no prompt: the text does not begin with a Human turn")
    turns = dialogue_turns(text)
    if turns[-1]["role"] != "assistant":
        raise BadRow("the text does not end with an Assistant turn")
    return check_messages(merge_turns(turns[:-1])), turns[-1]["content"]
