"""Rows as public data sets have them: each field is used as the field uses it, or the row is left out with a reason."""

import csv
import json

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from chatpipe.data.datasets import load_conversations, load_prompts, load_rankings, stream_rows
from chatpipe.data.formats import (
    columns_for,
    format_of,
    to_conversation,
    to_prompt,
    to_ranking,
    unread_fields,
    usable,
)
from chatpipe.data.messages import check_messages
from chatpipe.data.row_files import BadRow, MarkedRow, Row, file_rows
from chatpipe.data.sources import Report
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock

USER = {"role": "user", "content": "Who is Mara?"}
ASSISTANT = {"role": "assistant", "content": "A baker."}
OTHER = {"role": "assistant", "content": "No idea."}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN = {"from": "human", "value": "Who is Mara?"}
GPT = {"from": "gpt", "value": "A baker."}
EARLIER = [{"role": "user", "content": "Who is Ben?"}, {"role": "assistant", "content": "A smith."}]


def read(values: dict) -> tuple[str, Row]:
    """The row as a file has it, and its format."""
    found = usable(Row(values, "a.jsonl:1"))
    form = format_of(found)
    assert form is not None
    return form, found


def conversation(**values: object) -> list:
    form, row = read(values)
    return to_conversation(row, form)


def prompt(**values: object) -> list:
    form, row = read(values)
    return to_prompt(row, form)


def ranking(**values: object) -> tuple[list, list, list]:
    form, row = read(values)
    found = to_ranking(row, form)
    return found.prompt, found.responses, found.ranks


# ---- a system message and a history beside the turns ----

ANSWERED = [
    {"messages": [USER, ASSISTANT]},
    {"conversations": [HUMAN, GPT]},
    {"instruction": "Who is Mara?", "output": "A baker."},
    {"prompt": "Who is Mara?", "completion": "A baker."},
    {"prompt": [USER], "completion": [ASSISTANT]},
    {"question": "Who is Mara?", "answer": "A baker."},
]
RANKED = [
    {"prompt": "Who is Mara?", "chosen": "A baker.", "rejected": "No idea."},
    {"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
    {"question": "Who is Mara?", "chosen": "A baker.", "rejected": "No idea."},  # orca_dpo
    {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "No idea."}},
    {"prompt": "Who is Mara?", "responses": ["A baker.", "No idea."], "ranks": [1, 2]},
]


@pytest.mark.parametrize("field", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("values", [*ANSWERED, *RANKED, {"prompt": "Who is Mara?"}])
def test_a_system_message_and_a_history_come_first_in_every_format(values, field):
    beside = {field: "Be brief.", "history": [["Who is Ben?", "A smith."]]}
    before = [SYSTEM, *EARLIER, USER]
    assert prompt(**values, **beside) == before
    if values in ANSWERED:
        assert conversation(**values, **beside) == [*before, ASSISTANT]
    if values in RANKED:
        assert ranking(**values, **beside) == (before, ["A baker.", "No idea."], [1, 2])


def test_a_system_message_that_is_there_twice_counts_once_and_two_are_refused():
    assert conversation(system="Be brief. ", messages=[SYSTEM, USER, ASSISTANT]) == [SYSTEM, USER, ASSISTANT]
    with pytest.raises(BadRow, match="two system messages"):
        conversation(system="Be long.", messages=[SYSTEM, USER, ASSISTANT])
    with pytest.raises(BadRow, match="system is not text"):
        conversation(system=["Be brief."], messages=[USER, ASSISTANT])
    assert conversation(system="", history=None, messages=[SYSTEM, USER, ASSISTANT])[0] == SYSTEM


# ---- marks of what is not to be learned ----


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"trainable": 0}])
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_an_answer_that_is_marked_is_read_and_not_trained(mark, field):
    turns = [USER, {**ASSISTANT, **mark}, USER, {**ASSISTANT, **dict.fromkeys(mark, 1)}]
    if field == "conversations":
        turns = [{"from": turn.pop("role"), "value": turn.pop("content"), **turn} for turn in map(dict, turns)]
    assert conversation(**{field: turns}) == [USER, {**ASSISTANT, "train": False}, USER, ASSISTANT]
    with pytest.raises(MarkedRow, match="no answer of the conversation is to be trained"):
        conversation(**{field: turns[:2]})


def test_a_mark_between_yes_and_no_or_of_another_kind_is_named():
    for mark, told in (({"weight": 0.5}, "weight: 0.5"), ({"train": "some"}, "train: some"), ({"loss": [1]}, "loss")):
        with pytest.raises(BadRow, match=told):
            check_messages([USER, {**ASSISTANT, **mark}])
    with pytest.raises(BadRow, match="train_detail"):
        check_messages([USER, {**ASSISTANT, "train_detail": [{"begin_offset": 0}]}])
    assert check_messages([USER, {**ASSISTANT, "weight": float("nan"), "train": None}]) == [USER, ASSISTANT]


@pytest.mark.parametrize("mark", [{"label": False}, {"kto_tag": False}, {"label": "False"}, {"weight": 0}])
@pytest.mark.parametrize("values", ANSWERED)
def test_a_row_that_is_marked_is_no_demonstration_and_stays_a_prompt(values, mark):
    with pytest.raises(MarkedRow):
        conversation(**values, **mark)
    assert prompt(**values, **mark) == [USER]
    assert conversation(**values, **dict.fromkeys(mark, True)) == [USER, ASSISTANT]


def test_rows_of_unpaired_preferences_are_counted_and_the_good_ones_learned(write):
    rows = [{"prompt": f"Who is {i}?", "completion": f"A {i}.", "label": i % 2 == 0} for i in range(100)]
    loaded = load_conversations([DataBlock(source=write("kto.jsonl", rows))], {}, "sft.data")
    assert len(loaded.train) + len(loaded.validation) == 50
    assert loaded.skipped == {"its label is false: an answer that was rejected": 50}
    bad = write("bad.jsonl", [{**row, "label": False} for row in rows])
    with pytest.raises(UsageError, match="100 of 100 rows cannot be used"):
        load_conversations([DataBlock(source=bad)], {}, "sft.data")


# ---- turns of any shape in a list of any name ----


@pytest.mark.parametrize("field", ["messages", "conversations", "conversation", "dialog", "dialogue"])
@pytest.mark.parametrize(
    "turns",
    [
        [USER, ASSISTANT],
        [HUMAN, GPT],
        [{"human": "Who is Mara?", "assistant": "A baker."}],
        [{"role": "User", "content": "Who is Mara?"}, {"role": "model", "content": "A baker."}],
        [{**USER, "from": None, "value": None}, {**GPT, "role": None, "content": None}],  # of one parquet schema
        [USER, {"role": "assistant", "content": [{"type": "text", "value": "A baker."}]}],
    ],
)
def test_each_turn_is_read_by_its_own_fields(field, turns):
    assert conversation(**{field: turns}) == [USER, ASSISTANT]
    assert conversation(**{field: json.dumps(turns)}) == [USER, ASSISTANT]  # as a csv has it


def test_a_developer_is_kept_and_an_unknown_role_is_named():
    developer = {"role": "developer", "content": "Be brief."}
    assert conversation(messages=[developer, USER, ASSISTANT]) == [developer, USER, ASSISTANT]
    with pytest.raises(BadRow, match="there is no role 'narrator'"):
        conversation(messages=[{"role": "narrator", "content": "Once."}, USER, ASSISTANT])


def test_reasoning_stays_with_its_answer():
    for field in ("reasoning_content", "reasoning", "thinking"):
        said = conversation(messages=[USER, {**ASSISTANT, field: "Bread."}])
        assert said == [USER, {**ASSISTANT, "reasoning_content": "Bread."}]


def test_prompts_may_be_conversations_that_end_with_the_user(write):
    for field, turns in (("messages", [USER]), ("conversations", [HUMAN]), ("messages", [USER, ASSISTANT])):
        assert prompt(**{field: turns}) == [USER]
    assert prompt(messages=[USER, ASSISTANT, USER]) == [USER, ASSISTANT, USER]
    rows = [{"messages": [{"role": "user", "content": f"Who is {i}?"}]} for i in range(60)]
    loaded = load_prompts([DataBlock(source=write("p.jsonl", rows))], {}, "ppo.data")
    assert len(loaded.train) + len(loaded.validation) == 60


# ---- published formats ----

DIALOGUE = "\n\nHuman: Who is Ben?\n\nAssistant: A smith.\n\nHuman: Who is Mara?\n\nAssistant:"


@pytest.mark.parametrize("text", [DIALOGUE, f"{DIALOGUE} ", DIALOGUE.strip()])
def test_a_dialogue_inside_a_prompt_is_taken_apart(text):
    before = [*EARLIER, USER]
    assert ranking(prompt=text, chosen=" A baker.", rejected=" No.") == (before, [" A baker.", " No."], [1, 2])
    assert prompt(prompt=text) == before
    assert conversation(prompt=text, completion="A baker.") == [*before, ASSISTANT]
    assert conversation(prompt=text, response="A baker.", chosen="A baker.", rejected="x") == [*before, ASSISTANT]


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "Who is Mara?", "response": "A baker."},
        {"instruction": "Who is Mara?", "context": "", "response": "A baker.", "category": "qa"},  # dolly
        {"question": "Who is Mara?", "response": "A baker.", "system_prompt": ""},  # OpenOrca
        {"query": "Who is Mara?", "response": "A baker."},
        {"input": "Who is Mara?", "output": "A baker."},
    ],
)
def test_other_names_of_question_and_answer_are_known(values):
    assert conversation(**values) == [USER, ASSISTANT]
    assert prompt(**values) == [USER]


def test_the_context_of_dolly_follows_the_instruction():
    asked = prompt(instruction="Who is she?", context="Mara bakes.", response="A baker.")
    assert asked == [{"role": "user", "content": "Who is she?\n\nMara bakes."}]


def test_pairs_may_have_an_instruction(write):
    values = {"instruction": "Say it.", "input": "Mara", "chosen": "A.", "rejected": "B."}
    assert ranking(**values) == ([{"role": "user", "content": "Say it.\n\nMara"}], ["A.", "B."], [1, 2])
    assert ranking(**{"messages": [USER], "chosen_messages": [ASSISTANT], "rejected_messages": [OTHER]}) == (
        [USER],
        ["A baker.", "No idea."],
        [1, 2],
    )


def test_completions_with_scores_are_rankings():
    scores = {"A baker.": 8.5, "No idea.": 1, "A cook.": "8.5", "Hm.": 3.0}  # UltraFeedback
    completions = [{"response": text, "overall_score": score, "model": "m"} for text, score in scores.items()]
    values = {"instruction": "Who is Mara?", "models": ["m"], "completions": completions}
    assert ranking(**values) == ([USER], list(scores), [1, 3, 1, 2])
    assert conversation(**values) == [USER, ASSISTANT]
    assert prompt(**values) == [USER]
    nectar = [{"answer": "A cook.", "rank": 2.0}, {"answer": "A baker.", "rank": 1.0}]
    assert ranking(prompt="Who is Mara?", answers=nectar) == ([USER], ["A cook.", "A baker."], [2, 1])
    assert ranking(prompt="Who is Mara?", responses=["a", "b"], scores=[0.1, 0.2]) == ([USER], ["a", "b"], [2, 1])
    with pytest.raises(BadRow, match="a completion has no score"):
        ranking(instruction="Who?", completions=[*completions, {"response": "x", "overall_score": "N/A"}])


@pytest.mark.parametrize(("winner", "ranks"), [("model_a", [1, 2]), ("model_b", [2, 1]), ("tie (bothbad)", [1, 1])])
def test_battles_of_the_arena_are_rankings(winner, ranks):
    values = {"question_id": "q", "conversation_a": [USER, ASSISTANT], "conversation_b": [USER, OTHER]}
    assert ranking(**values, winner=winner, judge="arena_user_1") == ([USER], ["A baker.", "No idea."], ranks)
    with pytest.raises(BadRow, match="winner is 'nobody'"):
        ranking(**values, winner="nobody")
    with pytest.raises(BadRow, match="different prompts"):
        ranking(**{**values, "conversation_b": [*EARLIER, USER, OTHER]}, winner=winner)


@pytest.mark.parametrize(("preference", "ranks"), [(-2, [1, 2]), (0, [1, 1]), (1, [2, 1])])
def test_two_responses_with_a_preference_are_a_ranking(preference, ranks):
    values = {"context": [USER], "response1": "A baker.", "response2": "No idea.", "overall_preference": preference}
    assert ranking(**values) == ([USER], ["A baker.", "No idea."], ranks)


def test_rows_that_rate_one_answer_each_are_ranked_together(write):
    rows = [
        {"prompt": f"Who is {i // 2}?", "response": f"answer {i}", "helpfulness": i % 2, "verbosity": 1}
        for i in range(120)
    ]
    source = DataBlock(source=write("helpsteer.jsonl", rows))
    loaded = load_rankings([source], {}, "rm.data")
    found = loaded.train + loaded.validation
    assert len(found) == 60
    assert all(ranking.ranks == [2, 1] for ranking in found)
    assert len([*stream_rows("conversations", [source], {}, "sft.data", Report())]) == 120


# ---- what is not read is said ----


@pytest.mark.parametrize("field", ["image", "images", "image_path", "videos", "audios"])
def test_a_row_with_pictures_or_sound_cannot_be_used(field):
    with pytest.raises(BadRow, match=f"the row has {field}"):
        conversation(messages=[USER, ASSISTANT], **{field: ["1.jpg"]})
    assert conversation(messages=[USER, ASSISTANT], **{field: []}) == [USER, ASSISTANT]


def test_a_message_with_pictures_cannot_be_used():
    with pytest.raises(BadRow, match="a message has images"):
        conversation(messages=[{**USER, "images": ["1.jpg"]}, ASSISTANT])


def test_a_label_of_another_kind_is_named_as_not_read():
    form, row = read({"prompt": "Who?", "completion": "Mara.", "label": 3, "kto_tag": True})
    assert unread_fields(row, form) == ["label"]
    assert to_conversation(row, form)[-1]["content"] == "Mara."


def test_a_ranking_of_weight_zero_says_itself_that_it_is_left_out():
    with pytest.raises(MarkedRow):
        ranking(prompt="Who?", chosen="a", rejected="b", weight=0)


def test_fields_that_nothing_reads_are_named(write):
    rows = [
        {"id": i, "instruction": f"Who is {i}?", "context": "", "response": "A.", "category": "qa", "note": None}
        for i in range(60)
    ]
    report = Report()
    list(stream_rows("conversations", [DataBlock(source=write("d.jsonl", rows))], {}, "sft.data", report))
    assert report.sources[0].line().endswith("read as alpaca: 60 rows, 0 left out; fields not read: category")


def test_parts_without_content_are_left_out_of_a_joined_text(write):
    rows = [{"i": f"Who is {n}?", "more": more, "reply": "A."} for n, more in enumerate([None, "", "Mara", ["x"]])]
    columns = {"question": ["i", "more"], "answer": "reply"}
    block = DataBlock(source=write("a.jsonl", rows), columns=columns, max_skipped=1)
    report = Report()
    asked = [item[0]["content"] for item, _ in stream_rows("conversations", [block], {}, "sft.data", report)]
    assert asked == ["Who is 0?", "Who is 1?", "Who is 2?\nMara"]
    assert report.skipped == {"more is no text that can be joined, but a list": 1}


# ---- two answers, and a field that tells which is better ----

PREFERENCES = [
    ({"response_0": "A baker.", "response_1": "No idea."}, {"better_response_id": 0}, {"better_response_id": 1}),  # PKU
    ({"response_1": "A baker.", "response_2": "No idea."}, {"preference_strength": -2}, {"preference_strength": "3"}),
    ({"human_ref_A": "A baker.", "human_ref_B": "No idea."}, {"labels": 1}, {"labels": 0}),  # SHP
    ({"response_a": "A baker.", "response_b": "No idea."}, {"winner": "model_a"}, {"winner": "B"}),
    (
        {"response_a": '["A baker."]', "response_b": '["No idea."]'},  # a csv of the arena
        {"winner_model_a": "1", "winner_model_b": "0", "winner_tie": "0"},
        {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
    ),
]


@pytest.mark.parametrize(("answers", "first", "second"), PREFERENCES)
@pytest.mark.parametrize("asked", ["prompt", "question", "instruction", "history"])
def test_of_two_answers_a_field_tells_which_is_better(answers, first, second, asked):
    prompted = {asked: '["Who is Mara?"]' if "winner_model_a" in first else "Who is Mara?"}
    for told, ranks in ((first, [1, 2]), (second, [2, 1])):
        assert ranking(**prompted, **answers, **told) == ([USER], ["A baker.", "No idea."], ranks)
        form, found = read({**prompted, **answers, **told, "score_ratio": 2.0})
        assert unread_fields(found, form) == ["score_ratio"]
        assert to_conversation(found, form) == [USER, ASSISTANT if ranks == [1, 2] else OTHER]
        assert to_prompt(found, form) == [USER]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"response_0": "a", "response_1": "b", "better_response_id": 2}, "better_response_id is not 0 or 1"),
        ({"response_1": "a", "response_2": "b", "preference_strength": None}, "preference_strength is not a number"),
        ({"response_0": "a", "response_1": "", "better_response_id": 0}, "a response is empty"),
        ({"human_ref_A": "a", "human_ref_B": "b", "labels": 0.5}, "labels is not 0 or 1"),
    ],
)
def test_a_preference_that_cannot_be_read_has_a_reason(values, reason):
    with pytest.raises(BadRow, match=reason):
        ranking(prompt="Who is Mara?", **values)


def test_battles_whose_turns_are_lists_of_texts():
    won = {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}
    asked = json.dumps(["Who is Ben?", "Who is Mara?"])
    same = {"response_a": json.dumps(["A smith.", "A baker."]), "response_b": json.dumps(["A smith.", "No idea."])}
    assert ranking(prompt=asked, **same, **won) == ([*EARLIER, USER], ["A baker.", "No idea."], [1, 1])
    for other, reason in ((["No.", "No idea."], "different prompts"), (["A smith.", None], "a message is empty")):
        with pytest.raises(BadRow, match=reason):
            ranking(prompt=asked, **{**same, "response_b": json.dumps(other)}, **won)


def test_other_names_of_a_pair_and_its_prompt_are_known():
    told = ([USER], ["A baker.", "No idea."], [1, 2])
    assert ranking(input="Who is Mara?", chosen="A baker.", rejected="No idea.", order=["x"]) == told  # argilla
    openai = {"input": {"messages": [USER], "tools": []}, "preferred_output": [ASSISTANT]}
    assert ranking(**openai, non_preferred_output=[OTHER]) == told
    with_input = ranking(instruction="Who is", input="Mara?", chosen="A baker.", rejected="No idea.")
    assert with_input[0] == [{"role": "user", "content": "Who is\n\nMara?"}]
    scored = [{"text": "A baker.", "pm_score": 3}, {"text": "No idea.", "pm_score": 1}]
    assert ranking(question="Who is Mara?", answers=scored) == told  # stack-exchange-preferences


def test_answers_in_another_shape_are_no_ranking():
    assert format_of(Row({"question": "Who?", "answers": {"text": ["Mara"]}}, "x")) is None  # SQuAD
    assert format_of(Row({"question": "Who?", "answers": [{"name": "f", "arguments": {}}]}, "x")) is None
    assert format_of(Row({"prompt": "Who?", "completions": ["a", "b"], "labels": [True, False]}, "x")) == "prompts"


def test_a_first_row_without_answers_is_left_out_and_decides_no_format(write):
    rated = [{"response": "A baker.", "overall_score": 4}, {"response": "No idea.", "overall_score": 1}]
    rows = [{"instruction": f"Who is {i}?", "completions": rated if i else []} for i in range(200)]
    report = Report()
    read = [*stream_rows("rankings", [DataBlock(source=write("a.jsonl", rows))], {}, "rm.data", report)]
    assert len(read) == 199
    assert report.sources[0].skipped.reasons.total() == 1


# ---- turns in other shapes, reasoning and calls beside them ----


@pytest.mark.parametrize(
    "fields",
    [
        *(("input", "output"), ("question", "answer"), ("user", "assistant"), ("human", "assistant")),
        *(("prompt", "response"), ("instruction", "output")),
    ],
)
def test_a_turn_may_hold_a_question_and_its_answer(fields):
    question, answer = fields
    talk = [{question: "Who is Ben?", answer: "A smith."}, {question: "Who is Mara?", answer: "A baker."}]
    assert conversation(conversation=talk) == [*EARLIER, USER, ASSISTANT]
    assert conversation(conversation=[{**talk[0], "weight": 0}, talk[1]])[1] == {**EARLIER[1], "train": False}
    form, found = read({"conversation": [{**talk[0], "model": "x"}]})
    assert unread_fields(found, form) == ["conversation.model"]


@pytest.mark.parametrize(
    ("instruction", "extra", "asked"),
    [
        ("Who is she?", "Mara bakes.", "Who is she?\n\nMara bakes."),
        ("Who is Mara?", "", "Who is Mara?"),
        ("Who is Mara?", None, "Who is Mara?"),
        ("", "Who is Mara?", "Who is Mara?"),
    ],
)
def test_a_turn_may_hold_an_instruction_with_its_input(instruction, extra, asked):
    talk = {"conversation": [{"instruction": instruction, "input": extra, "output": "A baker."}]}
    assert conversation(**talk) == [{"role": "user", "content": asked}, ASSISTANT]
    form, found = read(talk)
    assert unread_fields(found, form) == []


def test_a_list_of_texts_is_the_user_s_and_the_assistant_s_by_turns():
    for field in ("conversations", "messages"):
        assert conversation(**{field: ["Who is Mara?", "A baker."]}) == [USER, ASSISTANT]
    with pytest.raises(BadRow, match="does not end with the assistant"):
        conversation(messages=["Who is Mara?"])


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("values", [{"prompt": "Who is Mara?", "completion": "A baker."}, *ANSWERED[-1:], ANSWERED[2]])
def test_reasoning_beside_an_answer_goes_to_it(values, field):
    form, found = read({**values, field: "Bread."})
    assert to_conversation(found, form) == [USER, {**ASSISTANT, "reasoning_content": "Bread."}]
    assert unread_fields(found, form) == []


def test_thoughts_among_the_parts_of_an_answer_are_its_reasoning():
    for thought in ({"type": "thinking", "thinking": "Bread."}, {"type": "reasoning", "text": "Bread."}):
        said = conversation(messages=[USER, {**ASSISTANT, "content": [thought, {"type": "text", "text": "A baker."}]}])
        assert said == [USER, {**ASSISTANT, "reasoning_content": "Bread."}]


def test_calls_of_functions_are_calls_of_tools_and_some_are_written_as_text():
    call = {"role": "assistant", "content": None, "function_call": {"name": "age", "arguments": '{"of": "Mara"}'}}
    said = conversation(messages=[USER, call, {"role": "function", "name": "age", "content": "40"}, ASSISTANT])
    assert said[1]["tool_calls"] == [{"type": "function", "function": {"name": "age", "arguments": {"of": "Mara"}}}]
    assert said[2] == {"role": "tool", "name": "age", "content": "40"}
    written = {"from": "gpt", "value": "<tool_call>age</tool_call>"}
    said = conversation(conversations=[HUMAN, written, {"from": "tool", "value": "40"}, GPT])
    assert [turn["role"] for turn in said] == ["user", "assistant", "tool", "assistant"]


def test_fields_of_messages_that_nothing_reads_are_named():
    form, found = read({"messages": [USER, {**ASSISTANT, "channel": "final", "refusal": None}]})
    assert unread_fields(found, form) == ["messages.channel"]


# ---- the columns that would do ----


@pytest.mark.parametrize(
    ("values", "key", "columns"),
    [
        # which answer is the better one is not guessed
        ({"qid": 1, "question": "a", "date": "b", "response_j": "c", "response_k": "d"}, "rm.data", None),
        ({"prompt": "a", "output_1": "c", "output_2": "d", "preference": 2}, "rm.data", None),
        (
            {"trajectory": [HUMAN], "task": "x", "chosen": "c", "rejected": "d"},
            "rm.data",
            {"prompt": "trajectory", "chosen": "chosen", "rejected": "rejected"},
        ),
        ({"id": "1", "data": ["a", "b"]}, "sft.data", {"messages": "data"}),
        (
            {"user query": "a", "bot: reply": "b", "no": "c"},
            "sft.data",
            {"question": "user query", "answer": "bot: reply"},
        ),
        ({"post_id": "1", "problem": "a", "level": "b"}, "ppo.data", {"prompt": "problem"}),
        ({"question": "a", "title": "b", "context": "c", "answers": {"text": ["d"]}}, "rm.data", None),
        ({"prompt": "a", "source": "b", "ability": "c"}, "rm.data", None),
        ({"answer_0": "a", "answer_1": "b"}, "sft.data", None),
    ],
)
def test_columns_are_named_only_where_they_read_the_row(write, values, key, columns):
    found = columns_for(values, key)
    assert (None if found is None else yaml.safe_load(found)) == columns
    if columns is not None:
        block = DataBlock(source=write("a.jsonl", [values]), columns=columns)
        what = {"rm.data": "rankings", "sft.data": "conversations"}.get(key, "prompts")
        assert len([*stream_rows(what, [block], {}, key, Report())]) == 1


def test_where_no_row_can_be_used_the_message_has_the_columns_that_would_do(write):
    rows = [{"trajectory": [HUMAN], "chosen": f"A {i}.", "rejected": "No."} for i in range(60)]
    with pytest.raises(UsageError) as caught:
        load_rankings([DataBlock(source=write("a.jsonl", rows))], {}, "rm.data")
    assert "columns: {prompt: trajectory, chosen: chosen, rejected: rejected}" in caught.value.hint


def test_labels_of_single_answers_are_no_ranking(write):
    rows = [{"prompt": f"Who is {i}?", "completion": "A baker.", "label": i % 2 == 0} for i in range(60)]
    with pytest.raises(UsageError) as caught:
        load_rankings([DataBlock(source=write("kto.jsonl", rows))], {}, "rm.data")
    assert "unpaired preferences" in caught.value.hint
    assert "THEIR NAME" not in caught.value.hint


def test_a_long_text_of_line_ends_is_no_dialogue():
    assert to_prompt(*reversed(read({"prompt": "Human: " + "\n" * 300_000 + "x"})))[0]["role"] == "user"


# ---- the same rows in files of every kind ----

TWO = {"response1": "A baker.", "response2": "No idea."}
IN_FILES = {
    "arena": {"prompt": '["Who is Mara?"]', "response_a": '["A baker."]', "response_b": '["No idea."]'}
    | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
    "battle": {"conversation_a": [USER, ASSISTANT], "conversation_b": [USER, OTHER], "winner": "model_a"},
    "capybara": {"source": "x", "conversation": [{"input": "Who is Mara?", "output": "A baker."}]},
    "helpsteer 3": {"context": [*EARLIER, USER], **TWO, "overall_preference": -2},
    "nectar": {"prompt": "Who is Mara?", "answers": [{"answer": "A.", "rank": 1.0}, {"answer": "B.", "rank": 2.0}]},
    "openai": {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [OTHER]},
    "openhermes": {"conversations": [{**HUMAN, "weight": None}, {**GPT, "weight": 1.0}], "system_prompt": None},
    "pairs": {"prompt": "Who is Mara?", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER], "score_chosen": 8.5},
    "reasoning": {"messages": [{**USER, "thinking": None}, {**ASSISTANT, "thinking": "Bread."}]},
    "smoltalk": {"messages": [USER, ASSISTANT], "chat_template_kwargs": {"enable_thinking": False, "tools": None}},
    "ultrafeedback": {"instruction": "Who is Mara?", "completions": [{"response": "A.", "overall_score": 8.0}] * 2},
    "unpaired": {"prompt": [USER], "completion": [ASSISTANT], "label": True},
}


@pytest.mark.parametrize("name", sorted(IN_FILES))
def test_rows_are_the_same_in_files_of_every_kind(tmp_path, name):
    row = IN_FILES[name]
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "a.json").write_text(json.dumps([row], indent=1))
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(row))
        table.writeheader()
        table.writerow({key: json.dumps(cell) if isinstance(cell, list | dict) else cell for key, cell in row.items()})

    def read_all(path):
        (found,) = file_rows(path)
        form = format_of(found)
        ranked = [to_ranking(usable(found), form)] if form in ("pairs", "rankings") else []
        return form, to_conversation(usable(found), form), to_prompt(usable(found), form), ranked

    read_jsonl = read_all(tmp_path / "a.jsonl")
    assert read_jsonl[2][-1]["content"] == USER["content"]
    for kind in ("json", "parquet", "csv"):
        assert read_all(tmp_path / f"a.{kind}") == read_jsonl
