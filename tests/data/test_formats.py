import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatpipe.data.formats import (
    check_use,
    columns_for,
    format_of,
    recognise,
    to_conversation,
    to_prompt,
    to_ranking,
    unread_fields,
    usable,
)
from chatpipe.data.messages import as_prompt, check_messages
from chatpipe.data.rankings import Ranking, group_by_answers
from chatpipe.data.row_files import BadRow, MarkedRow, Row
from chatpipe.errors import UsageError

USER = {"role": "user", "content": "Who is Mara?"}
ASSISTANT = {"role": "assistant", "content": "A baker."}
SYSTEM = {"role": "system", "content": "Be brief."}


FORMS = ("messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "pairs", "rankings", "prompts")
FIELDS_OF_TURNS = ("role", "content", "from", "value", "type", "text", "tool_calls", "tools")
FIELDS_OF_ROWS = (
    *("messages", "conversations", "system", "instruction", "input", "output", "history", "prompt", "completion"),
    *("question", "answer", "chosen", "rejected", "responses", "ranks", "annotator", "tools", "completions", "winner"),
    *("chat_template_kwargs", "label", "weight", "scores", "conversation_a", "conversation_b", "images", "response"),
)


def row(**values: object) -> Row:
    return Row(values, "a.jsonl:3")


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ({"text": "x"}, "text"),
        ({"messages": []}, "messages"),
        ({"instruction": "x", "input": "", "output": "y"}, "alpaca"),
        ({"chosen": "x", "rejected": "y"}, "pairs"),
        ({"prompt": "p", "chosen": "x", "rejected": "y"}, "pairs"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "pairs"),
        ({"prompt": [], "responses": [], "ranks": []}, "rankings"),
        ({"conversations": []}, "sharegpt"),
        ({"prompt": "p", "completion": "c"}, "prompt_completion"),
        ({"question": "q", "answer": "a"}, "question_answer"),
        ({"prompt": "p"}, "prompts"),
        ({"prompt": "p", "responses": ["x"]}, "prompts"),
    ],
)
def test_a_format_is_recognised_by_its_fields(values, form):
    assert recognise(Row(values, "x"), "k") == form


def test_unknown_fields_are_refused_with_their_names_and_the_known_ones():
    with pytest.raises(UsageError) as caught:
        recognise(row(reply="y", post="x"), "sft.data")
    assert caught.value.message == "a.jsonl:3: sft.data does not know what these fields mean: post, reply."
    assert "instruction, output" in caught.value.hint
    assert "columns: {question: post, answer: reply}" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "key", "columns"),
    [
        ({"id": 1, "Frage": "x", "Antwort": "y"}, "sft.data", "{question: Frage, answer: Antwort}"),
        ({"talk": [USER, ASSISTANT]}, "sft.data", "{messages: talk}"),
        ({"good_answer": "x", "bad_answer": "y", "post": "z"}, "rm.data", "{prompt: post, chosen: good_answer"),
        ({"a": "x"}, "rm.data", "{prompt: THEIR NAME, chosen: THEIR NAME, rejected: THEIR NAME}"),
        ({"topic": "x", "user_query": "y"}, "ppo.data", "{prompt: user_query}"),
    ],
)
def test_where_a_mapping_is_needed_the_message_has_the_columns_that_would_do(values, key, columns):
    with pytest.raises(UsageError) as caught:
        recognise(row(**values), key)
    assert f"columns: {columns}" in caught.value.hint


def test_a_file_of_prompts_with_another_field_may_have_its_answers_there():
    with pytest.raises(UsageError) as caught:
        check_use("prompts", "conversations", "a.jsonl", "sft.data", row(prompt="x", reply="y"))
    assert "columns: {question: prompt, answer: reply}" in caught.value.hint


def test_conversations_are_read_unchanged():
    messages = [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]
    assert to_conversation(row(messages=messages), "messages") == messages
    assert to_prompt(row(messages=messages), "messages") == messages[:-1]


def test_other_fields_of_a_message_are_left_out():
    assert check_messages([{**USER, "name": "Ann"}, {**ASSISTANT, "weight": 1}]) == [USER, ASSISTANT]


def test_alpaca_puts_the_input_behind_the_instruction():
    values = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    expected = [
        {"role": "user", "content": "Translate.\n\nGuten Tag"},
        {"role": "assistant", "content": "Good day"},
    ]
    assert to_conversation(Row(values, "x"), "alpaca") == expected
    assert to_prompt(Row({**values, "input": ""}, "x"), "alpaca") == [{"role": "user", "content": "Translate."}]
    del values["input"]
    assert to_prompt(Row(values, "x"), "alpaca") == [{"role": "user", "content": "Translate."}]


def test_alpaca_may_have_a_system_message_and_a_history():
    values = {"instruction": "And?", "output": "Yes.", "system": "Be brief.", "history": [["Who is Mara?", "A baker."]]}
    said = to_conversation(Row(values, "x"), "alpaca")
    assert said == [
        SYSTEM,
        USER,
        ASSISTANT,
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Yes."},
    ]
    with pytest.raises(BadRow, match=r"history is not a list of \[question, answer\]"):
        to_conversation(Row({**values, "history": ["Who is Mara?"]}, "x"), "alpaca")


def test_sharegpt_turns_become_messages():
    turns = [{"from": "human", "value": "Who is Mara?"}, {"from": "gpt", "value": "A baker."}]
    assert to_conversation(row(conversations=turns), "sharegpt") == [USER, ASSISTANT]
    assert to_conversation(row(conversations=turns * 2, system="Be brief."), "sharegpt") == [
        SYSTEM,
        *[USER, ASSISTANT] * 2,
    ]
    first = {"from": "system", "value": "Be brief."}
    assert to_prompt(row(conversations=[first, *turns], system=None), "sharegpt") == [SYSTEM, USER]


def test_a_completion_is_text_or_messages_as_the_prompt_is():
    for prompt in ("Who is Mara?", [USER]):
        for completion in ("A baker.", [ASSISTANT]):
            found = row(prompt=prompt, completion=completion)
            assert to_conversation(found, "prompt_completion") == [USER, ASSISTANT]
            assert to_prompt(found, "prompt_completion") == [USER]
    with pytest.raises(BadRow, match="completion is neither text nor messages"):
        to_conversation(row(prompt="Who?", completion=3), "prompt_completion")
    with pytest.raises(BadRow, match="a message is empty"):
        to_conversation(row(prompt="Who?", completion=""), "prompt_completion")


def test_of_pairs_and_rankings_the_best_answer_is_learned_of_equals_the_first():
    pair = row(prompt="Who is Mara?", chosen="A baker.", rejected="No idea.")
    assert to_conversation(pair, "pairs") == [USER, ASSISTANT]
    ranking = row(prompt="Who is Mara?", responses=["No.", "A baker.", "Hm.", "So-so."], ranks=[3, 1, 2, 1])
    assert to_conversation(ranking, "rankings") == [USER, ASSISTANT]


def test_parts_of_text_are_joined_and_other_parts_cannot_be_used():
    parts = [{"type": "text", "text": "Who is "}, {"type": "text", "text": "Mara?"}]
    assert check_messages([{"role": "user", "content": parts}, ASSISTANT]) == [USER, ASSISTANT]
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(BadRow, match="a message has a part that is not text"):
        check_messages([{"role": "user", "content": [*parts, picture]}, ASSISTANT])
    with pytest.raises(BadRow, match="a message is not"):
        check_messages([{"role": "user", "content": [{"type": "text", "text": None}]}, ASSISTANT])


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Perth"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "Sunny."}


def test_tools_their_calls_and_results_are_read():
    as_text = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Perth"}'}}
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [as_text]}, {**RESULT, "tool_call_id": "1"}]
    expected = [{**CALLING, "tool_calls": [{"id": "1", **CALL}]}, {**RESULT, "tool_call_id": "1"}, ASSISTANT]
    for tools in ([TOOL], json.dumps([TOOL]), [TOOL["function"]], [{**TOOL, "strict": None}]):
        said = to_conversation(row(messages=[*turns, ASSISTANT], tools=tools), "messages")
        assert said == [{**USER, "tools": [TOOL]}, *expected]
        assert check_messages(said) == said  # as it is written to a file of completions
    assert to_prompt(row(messages=[*turns, ASSISTANT]), "messages") == [USER, *expected[:-1]]
    assert to_conversation(row(messages=[USER, CALLING]), "messages") == [USER, CALLING]
    for tools in (None, "", "[]", [], "null"):
        assert to_conversation(row(messages=[USER, ASSISTANT], tools=tools), "messages") == [USER, ASSISTANT]
    assert check_messages([USER, {**ASSISTANT, "tool_calls": None}]) == [USER, ASSISTANT]  # as parquet has it


def test_sharegpt_has_calls_and_results_as_turns():
    turns = [
        {"from": "human", "value": "Who is Mara?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"place": "Perth"}}'},
        {"from": "observation", "value": "Sunny."},
        {"from": "gpt", "value": "A baker."},
    ]
    assert to_conversation(row(conversations=turns), "sharegpt") == [USER, CALLING, RESULT, ASSISTANT]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([USER, RESULT, ASSISTANT], "do not take turns"),
        ([USER, CALLING, ASSISTANT], "do not take turns"),
        ([USER, CALLING, RESULT, USER, ASSISTANT], "do not take turns"),
        ([USER, {**CALLING, "tool_calls": [{"name": 3}]}, RESULT, ASSISTANT], "is not {name, arguments}"),
        ([USER, {**CALLING, "tool_calls": "weather"}, RESULT, ASSISTANT], "is not {name, arguments}"),
        ([USER, {**CALLING, "tool_calls": [{"name": "x", "arguments": "y"}]}, RESULT], "is not {name, arguments}"),
    ],
)
def test_calls_without_results_and_other_mistakes_have_a_reason(turns, reason):
    with pytest.raises(BadRow, match=reason):
        check_messages(turns)


def test_settings_of_the_chat_template_go_to_the_first_message():
    for settings in ({"enable_thinking": False, "x": None}, '{"enable_thinking": false}'):
        said = to_conversation(row(messages=[USER, ASSISTANT], chat_template_kwargs=settings), "messages")
        assert said == [{**USER, "chat_template_kwargs": {"enable_thinking": False}}, ASSISTANT]


def test_cells_that_hold_lists_as_json_are_lists_and_answers_that_are_json_stay_text():
    messages = json.dumps([USER, ASSISTANT])
    assert usable(row(messages=messages)).values["messages"] == [USER, ASSISTANT]
    assert usable(row(ranks=" [1, 2]")).values["ranks"] == [1, 2]
    assert usable(row(prompt=json.dumps([USER]))).values["prompt"] == [USER]
    assert usable(row(chosen='{"from": "gpt", "value": "A."}')).values["chosen"] == {"from": "gpt", "value": "A."}
    for text in ('{"name": "Mara"}', "[1, 2]", "[]", "[INST] Hi", '[{"name": "Mara"}]', "Hi"):
        assert usable(row(completion=text)).values["completion"] == text


def test_a_ranking_keeps_ties_its_annotator_and_its_round():
    values = {"prompt": [USER], "responses": ["a", "b", "c"], "ranks": [2, 1, 2], "annotator": "ann", "round": 1}
    ranking = to_ranking(Row(values, "x"), "rankings")
    assert ranking == Ranking([USER], ["a", "b", "c"], [2, 1, 2], "ann", 1)
    assert to_ranking(Row(ranking.to_row(), "x"), "rankings") == ranking
    tied = to_ranking(row(prompt="Who?", responses=["a", "b"], ranks=[1, 1]), "rankings")
    assert tied == Ranking([{"role": "user", "content": "Who?"}], ["a", "b"], [1, 1])
    assert tied.to_row().keys() == {"prompt", "responses", "ranks"}
    assert to_ranking(Row({**values, "annotator": "", "round": None}, "x"), "rankings").annotator is None


NO_ROUND, NO_NAME = "round is not a whole number from 0 to 1,000,000", "annotator is not text"
WRONG = [
    *(("round", value, NO_ROUND) for value in ("one", 1.0, True, [1], -1, 10**30)),
    *(("annotator", value, NO_NAME) for value in (7, 1.5, False, ["ann"], {"name": "ann"})),
]


@pytest.mark.parametrize(("field", "value", "reason"), WRONG)
@pytest.mark.parametrize(
    ("form", "values"),
    [("rankings", {"responses": ["a", "b"], "ranks": [1, 2]}), ("pairs", {"chosen": "a", "rejected": "b"})],
)
def test_who_ranked_and_in_which_round_are_text_and_a_number(form, values, field, value, reason):
    with pytest.raises(BadRow, match=reason):
        to_ranking(row(prompt="Who?", **values, **{field: value}), form)


def test_weights_and_a_pairs_margin_are_kept():
    pair = {"prompt": "Who?", "chosen": "a", "rejected": "b", "weight": 0.5, "margin": 2}
    ranking = to_ranking(row(**pair), "pairs")
    assert ranking == Ranking([{"role": "user", "content": "Who?"}], ["a", "b"], [1, 2], weight=0.5, margin=2.0)
    assert to_ranking(Row(ranking.to_row(), "x"), "rankings") == ranking
    weighed = to_ranking(row(prompt="Who?", responses=["a", "b"], ranks=[1, 2], weight=3), "rankings")
    assert to_ranking(Row(weighed.to_row(), "x"), "rankings") == weighed
    assert weighed.weight == 3.0


@pytest.mark.parametrize("ranks", [[1, 2, 3], [3, 1, 2], [1, 1, 2], [1, 1, 3], [2, 1, 2], [4, 1, 2, 2], [1, 1]])
def test_ranks_are_dense_or_leave_out_what_ties_take(ranks):
    assert to_ranking(row(prompt="Who?", responses=list("abcd")[: len(ranks)], ranks=ranks), "rankings").ranks == ranks


def test_a_pair_is_a_ranking_of_two_the_chosen_first():
    explicit = to_ranking(row(prompt="Who is Mara?", chosen="A baker.", rejected="No idea."), "pairs")
    assert explicit == Ranking([USER], ["A baker.", "No idea."], [1, 2])
    sharegpt = row(
        conversations=[{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Who is Mara?"}],
        chosen={"from": "gpt", "value": "A baker."},
        rejected={"from": "gpt", "value": "No idea."},
    )
    assert to_ranking(sharegpt, "pairs") == Ranking([SYSTEM, USER], ["A baker.", "No idea."], [1, 2])
    assert to_prompt(sharegpt, "pairs") == [SYSTEM, USER]


def test_chosen_and_rejected_may_be_messages_with_or_without_a_prompt():
    other = {"role": "assistant", "content": "No idea."}
    expected = Ranking([SYSTEM, USER], ["A baker.", "No idea."], [1, 2])
    before = [SYSTEM, USER]
    for values in (
        row(prompt=before, chosen=[ASSISTANT], rejected=[other]),
        row(chosen=[*before, ASSISTANT], rejected=[*before, other]),
        row(prompt="Who is Mara?", chosen=[*before, ASSISTANT], rejected=[*before, other]),  # says it twice
        row(prompt=None, chosen=[*before, ASSISTANT], rejected=[*before, other]),
    ):
        assert to_ranking(values, "pairs") == expected
        assert to_conversation(values, "pairs") == [*before, ASSISTANT]
    longer = [ASSISTANT, {"role": "user", "content": "Sure?"}]
    assert to_ranking(row(prompt=[USER], chosen=[*longer, ASSISTANT], rejected=[*longer, other]), "pairs") == Ranking(
        [USER, *longer], ["A baker.", "No idea."], [1, 2]
    )
    with pytest.raises(BadRow, match="different prompts"):
        to_ranking(row(chosen=[USER, ASSISTANT], rejected=[SYSTEM, USER, other]), "pairs")
    with pytest.raises(BadRow, match="does not end with the assistant"):
        to_ranking(row(chosen=[USER, ASSISTANT], rejected=[USER]), "pairs")


def test_a_dialogue_inside_the_texts_is_taken_apart():
    before = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Who is Mara?\n\nAssistant:"
    ranking = to_ranking(row(chosen=f"{before} A baker.", rejected=f"{before} I\n\ndo not know. "), "pairs")
    said = [("user", "Hi"), ("assistant", "Hello!"), ("user", "Who is Mara?")]
    assert ranking.prompt == [{"role": role, "content": content} for role, content in said]
    assert ranking.responses == ["A baker.", "I\n\ndo not know."]
    assert ranking.ranks == [1, 2]


def test_two_turns_of_one_speaker_become_one():
    before = (
        "\n\nHuman: Hi\n\nHuman: Are you there?\n\nAssistant: Yes.\n\nAssistant: Here.\n\nHuman: Well?\n\nAssistant:"
    )
    prompt = to_prompt(row(chosen=f"{before} a", rejected=f"{before} b"), "pairs")
    assert [message["content"] for message in prompt] == ["Hi\n\nAre you there?", "Yes.\n\nHere.", "Well?"]


@given(st.lists(st.text("abc ?!\n", min_size=1).filter(str.strip), min_size=2, max_size=6).filter(lambda t: len(t) % 2))
def test_any_dialogue_comes_apart_into_its_turns(turns):
    turns = [turn.strip() for turn in turns]
    text = "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns)) + "\n\nAssistant: "
    ranking = to_ranking(row(chosen=text + "yes", rejected=text + "no"), "pairs")
    assert [message["content"] for message in ranking.prompt] == turns
    assert ranking.responses == ["yes", "no"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "there are no messages"),
        ([], "there are no messages"),
        ("hello", "there are no messages"),
        ([{"role": "robot", "content": "x"}], "there is no role 'robot'; known are system, developer, user"),
        ([{"role": "user"}], "a message is not"),
        ([3], "a message is not"),
        (["hello"], "does not end with the assistant"),
        ([USER, {"role": "assistant", "content": " \n"}], "a message is empty"),
        ([ASSISTANT], "user and assistant do not take turns"),
        ([USER, USER, ASSISTANT], "user and assistant do not take turns"),
        ([USER, SYSTEM, ASSISTANT], "user and assistant do not take turns"),
        ([SYSTEM], "user and assistant do not take turns"),
        ([USER], "the conversation does not end with the assistant"),
    ],
)
def test_a_conversation_that_cannot_be_used_has_a_reason(messages, reason):
    with pytest.raises(BadRow, match=reason):
        to_conversation(row(messages=messages), "messages")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"responses": ["a"], "ranks": [1]}, "responses are not two or more texts"),
        ({"responses": "ab", "ranks": [1, 2]}, "responses are not two or more texts"),
        ({"responses": ["a", 3], "ranks": [1, 2]}, "responses are not two or more texts"),
        ({"responses": ["a", "b"], "ranks": [1]}, "ranks are not one whole number for each response"),
        ({"responses": ["a", "b"], "ranks": [1, 1.5]}, "ranks are not one whole number for each response"),
        ({"responses": ["a", "b"], "ranks": [True, False]}, "ranks are not one whole number for each response"),
        ({"responses": ["a", "b"]}, "ranks are not one whole number for each response"),
        ({"responses": ["a", "b"], "ranks": [1, None]}, "ranks are not one whole number for each response"),
        ({"responses": ["a", "b"], "ranks": [0, 1]}, "ranks are no order"),
        ({"responses": ["a", "b"], "ranks": [2, 3]}, "ranks are no order"),
        ({"responses": ["a", "b"], "ranks": [1, 3]}, "ranks are no order"),
        ({"responses": ["a", "b", "c"], "ranks": [1, 3, 3]}, "ranks are no order"),
        ({"responses": ["a", "b", "c"], "ranks": [1, 1, 4]}, "ranks are no order"),
        ({"responses": ["a", "b"], "ranks": [-1, 1]}, "ranks are no order"),
        ({"responses": ["a", "b"], "ranks": [1, 2], "weight": 0}, "weight is not a number above 0"),
        ({"responses": ["a", "b"], "ranks": [1, 2], "weight": "two"}, "weight is not a number above 0"),
        ({"responses": ["a", "b"], "ranks": [1, 2], "weight": 1e39}, "weight is not a number above 0"),  # of float32
        ({"responses": ["a", "b"], "ranks": [1, 2], "weight": 10**400}, "weight is not a number above 0"),
        ({"responses": ["a", "b"], "ranks": [1, 2], "margin": -1e39}, "margin is not a number"),
        ({"responses": ["a", " "], "ranks": [1, 2]}, "a response is empty"),
        ({"responses": ["a", "b"], "ranks": [1, 2], "prompt": [USER, ASSISTANT]}, "the prompt does not end with"),
        ({"responses": ["a", "b"], "ranks": [1, 2], "prompt": ""}, "a message is empty"),
    ],
)
def test_a_ranking_that_cannot_be_used_has_a_reason(values, reason):
    with pytest.raises(BadRow, match=reason):
        to_ranking(Row({"prompt": "Who?", **values}, "x"), "rankings")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("The sky is blue.", "The sky is green, I think.", "The sky is", ["blue.", "green, I think."]),
        ("2 + 2 = 4", "2 + 2 = 44", "2 + 2 =", ["4", "44"]),  # an answer begins with a whole word
        ("Who?\nMara", "Who?\nNobody", "Who?", ["Mara", "Nobody"]),
    ],
)
def test_texts_that_begin_with_their_prompt_are_taken_apart(chosen, rejected, prompt, answers):
    """TRL's pairs with an implicit prompt."""
    asked = [{"role": "user", "content": prompt}]
    assert to_ranking(row(chosen=chosen, rejected=rejected), "pairs") == Ranking(asked, answers, [1, 2])
    assert to_prompt(row(chosen=chosen, rejected=rejected), "pairs") == asked


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("Blue is the sky", "Green is the sky", "there is no prompt"),
        ("Bluebells", "Blueberries", "there is no prompt"),
        ("The sky is ", "The sky is blue", "an answer is empty"),
    ],
)
def test_texts_without_a_prompt_are_left_out(chosen, rejected, reason):
    with pytest.raises(BadRow, match=reason):
        to_ranking(row(chosen=chosen, rejected=rejected), "pairs")


@pytest.mark.parametrize(
    "beside",
    [{"prompt": None}, {"question": None}, {"input": ""}, {"ctx": "Capital of France?"}, {"ctx": None}],
)
def test_texts_are_not_taken_apart_where_another_field_may_hold_the_prompt(beside):
    values = row(chosen="The capital is Paris.", rejected="The capital is Rome.", **beside)
    for convert in (to_ranking, to_prompt, to_conversation):
        with pytest.raises(BadRow, match="there is no known field of a prompt"):
            convert(values, "pairs")


SURE = {"role": "user", "content": "Are you sure?"}


def test_answers_of_several_turns_keep_them_behind_the_prompt_that_both_share():
    """Written, read again, ordered alike for all annotators, and learned whole by sft."""
    other, yes, no = ({"role": "assistant", "content": text} for text in ("No idea.", "Yes.", "No."))
    chosen, rejected = [SYSTEM, USER, ASSISTANT, SURE, yes], [SYSTEM, USER, other, SURE, no]
    ranking = to_ranking(row(chosen=chosen, rejected=rejected), "pairs")
    assert ranking == Ranking([SYSTEM, USER], ["Yes.", "No."], [1, 2], turns=[[ASSISTANT, SURE], [other, SURE]])
    assert [ranking.whole(number) for number in (0, 1)] == [chosen, rejected]
    assert to_conversation(row(chosen=chosen, rejected=rejected), "pairs") == chosen
    assert to_ranking(row(**json.loads(json.dumps(ranking.to_row()))), "rankings") == ranking
    assert to_ranking(row(prompt=[SYSTEM, USER], chosen=chosen[2:], rejected=rejected[2:]), "pairs") == ranking
    shorter = to_ranking(row(chosen=chosen, rejected=[SYSTEM, USER, other]), "pairs")
    assert shorter == Ranking([SYSTEM, USER], ["Yes.", "No idea."], [1, 2], turns=[[ASSISTANT, SURE], []])
    reversed_ = Ranking([SYSTEM, USER], ["No.", "Yes."], [2, 1], turns=[[other, SURE], [ASSISTANT, SURE]])
    assert group_by_answers([ranking, reversed_]) == [[ranking, ranking]]
    same_end = Ranking([SYSTEM, USER], ["Yes.", "No."], [1, 2], turns=[[other, SURE], [ASSISTANT, SURE]])
    assert len(group_by_answers([ranking, same_end])) == 2


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([[]], "turns are not one list"),
        ("ab", "turns are not one list"),
        ([[SURE], []], "do not take turns"),
    ],
)
def test_turns_that_cannot_be_have_a_reason(turns, reason):
    with pytest.raises(BadRow, match=reason):
        to_ranking(row(prompt=[USER], responses=["a", "b"], ranks=[1, 2], turns=turns), "rankings")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: y", "different prompts"),
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: a\n\nAssistant: ", "an answer is empty"),
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: a", "does not end with an Assistant turn"),
        ("\n\nHuman: a\n\nAssistant: x", 3, "neither texts nor messages"),
        ("\n\nHuman: \n\nAssistant: x", "\n\nHuman: \n\nAssistant: y", "a message is empty"),
    ],
)
def test_a_pair_that_cannot_be_used_has_a_reason(chosen, rejected, reason):
    with pytest.raises(BadRow, match=reason):
        to_ranking(row(chosen=chosen, rejected=rejected), "pairs")


@pytest.mark.parametrize(
    ("form", "what", "key", "reader"),
    [
        ("prompts", "conversations", "sft.data", "ppo.data"),
        ("text", "conversations", "sft.data", "pretrain.data"),
        ("messages", "rankings", "rm.data", "sft.data or ppo.data"),
        ("text", "prompts", "ppo.data", "pretrain.data"),
    ],
)
def test_a_file_for_another_stage_is_refused_with_the_key_that_reads_it(form, what, key, reader):
    with pytest.raises(UsageError) as caught:
        check_use(form, what, "a.jsonl", key)
    assert caught.value.message == f"{key}: a.jsonl is {form}, which cannot be read as {what}."
    assert caught.value.hint.startswith(f"{reader} reads {form}; {key} reads ")


def test_a_prompt_is_text_or_messages_that_end_with_the_user():
    assert as_prompt("Who is Mara?") == [USER]
    assert as_prompt([SYSTEM, USER]) == [SYSTEM, USER]
    with pytest.raises(BadRow, match="does not end with the user"):
        as_prompt([USER, ASSISTANT])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS_OF_TURNS), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS_OF_ROWS), JSON, min_size=1), st.sampled_from(FORMS))
def test_any_row_is_read_or_left_out(values, form):
    """A row that ends the program would take all others with it."""
    row = Row(values, "x")
    with contextlib.suppress(BadRow):
        assert to_conversation(row, form)[-1]["role"] == "assistant"
    with contextlib.suppress(BadRow):
        assert to_prompt(row, form)[-1]["role"] in ("user", "tool")
    with contextlib.suppress(BadRow):
        ranking = to_ranking(row, form)
        assert len(ranking.responses) == len(ranking.ranks) > 1


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ({"messages": [{"role": [], "content": "x"}]}, "messages"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "sharegpt"),
        ({"instruction": "x", "output": "y", "history": 5}, "alpaca"),
    ],
)
def test_fields_of_the_wrong_kind_make_a_bad_row(values, form):
    with pytest.raises(BadRow, match="is not"):
        to_conversation(Row(values, "x"), form)


SAID = {"role": "assistant", "content": "Done."}
ASKING = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        (ASKING, "an answer has tool_calls"),
        ({"role": "assistant", "content": "big", "reasoning_content": "small?"}, "an answer has reasoning_content"),
    ],
)
def test_answers_of_a_pair_with_more_than_text_are_left_out(chosen, reason):
    pair = row(prompt="Who?", chosen=[chosen], rejected=[{"role": "assistant", "content": "old"}])
    with pytest.raises(BadRow, match=reason):
        to_ranking(pair, "pairs")


def test_a_field_beside_the_prompt_of_a_pair_is_named_as_not_read():
    pair = row(prompt="Translate:", input="rot", chosen="red", rejected="blue")
    assert unread_fields(pair, "pairs") == ["input"]


@pytest.mark.parametrize("begin", ["Human: ", "\n\nHuman: "])
@pytest.mark.parametrize("gap", ["\n\n", "\r\n\r\n"])
def test_dialogues_of_pairs_may_begin_at_once_and_end_lines_as_windows_does(begin, gap):
    texts = (f"{begin}red 0{gap}Assistant: the big {animal}" for animal in ("dog", "cat"))
    ranking = to_ranking(row(**dict(zip(("chosen", "rejected"), texts, strict=True))), "pairs")
    assert ranking.prompt == [{"role": "user", "content": "red 0"}]
    assert ranking.responses == ["the big dog", "the big cat"]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ({"name": "f", "arguments": '{"unit": null, "n": 0}'}, {"unit": None, "n": 0}),
        ({"name": "f", "parameters": {"a": 1}}, {"a": 1}),
        ({"name": "f"}, {}),
    ],
)
@pytest.mark.parametrize("beside", [{}, {"tool_calls": []}])
def test_arguments_of_a_call_are_kept(function, arguments, beside):
    call = {"role": "assistant", "content": None, "function_call": function, **beside}
    result = {"role": "tool", "content": "1"}
    question = {"role": "user", "content": "Q"}
    _, message, *_ = to_conversation(row(messages=[question, call, result, SAID]), "messages")
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


def test_two_system_fields_that_differ_are_one_too_many():
    values = {"system": "One.", "system_prompt": "Two.", "instruction": "Q", "output": "A"}
    with pytest.raises(BadRow, match="two system messages"):
        to_conversation(row(**values), "alpaca")
    same = to_conversation(row(**{**values, "system_prompt": "One."}), "alpaca")
    assert same[0] == {"role": "system", "content": "One."}


@pytest.mark.parametrize(
    ("label", "learned"), [(1, True), (0, False), ("0", False), (1.0, True), (True, True), ("no", None)]
)
def test_labels_of_unpaired_preferences_may_be_numbers(label, learned):
    values = row(prompt="Q", completion="A", label=label)
    if learned is False:
        with pytest.raises(MarkedRow, match="its label is false"):
            to_conversation(values, "prompt_completion")
    else:
        assert to_conversation(values, "prompt_completion")[-1]["content"] == "A"
    assert unread_fields(values, "prompt_completion") == ([] if learned is not None else ["label"])


@pytest.mark.parametrize(
    ("winner", "ranks"),
    [("katie-7b", [1, 2]), ("x", [2, 1]), ("Tie", [1, 1]), ("tie (bothbad)", [1, 1]), ("MODEL_B", [2, 1])],
)
def test_a_winner_is_a_side_a_model_or_a_tie(winner, ranks):
    battle = row(prompt="q", response_a="a", response_b="b", winner=winner, model_a="katie-7b", model_b="x")
    assert to_ranking(battle, "rankings").ranks == ranks


@pytest.mark.parametrize("names", [{}, {"model_a": "same", "model_b": "same"}])
@pytest.mark.parametrize("winner", ["none", "same"])
def test_a_winner_that_is_neither_side_decides_nothing(names, winner):
    with pytest.raises(BadRow, match="model_a, model_b or tie"):
        to_ranking(row(prompt="q", response_a="a", response_b="b", winner=winner, **names), "rankings")


def test_numbers_of_a_csv_are_read():
    ranking = to_ranking(row(prompt="Q", chosen="a", rejected="b", weight="2", round="1", margin=""), "pairs")
    assert (ranking.weight, ranking.round, ranking.margin) == (2.0, 1, 0.0)


def test_ids_that_pandas_made_floats_are_kept():
    assert to_ranking(row(prompt="Q", chosen="a", rejected="b", id=9.0), "pairs").id == 9


def test_a_field_that_is_null_in_the_first_row_decides_nothing():
    assert format_of(row(messages=None, instruction="Q", output="A")) == "alpaca"
    assert format_of(row(prompt="Q", completion=None)) == "prompt_completion"


@pytest.mark.parametrize("field", ["answers", "completions"])
def test_no_columns_are_named_that_would_read_answers_as_turns(field):
    assert columns_for({"question": "q", field: ["a", "b"]}, "sft.data") is None
