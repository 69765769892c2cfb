import pytest

from chatpipe.data.chat_rows import fit_conversations
from chatpipe.data.chat_template import add_chat_template, encode_conversation
from chatpipe.models.new_model import train_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": ("user", "assistant")[i % 2], "content": text}
    for i, text in enumerate(["Hello!", "Hi.", "Who is Mara?", "A baker.", "And Tomas?", "He has a dog."])
]


@pytest.fixture(scope="module")
def tokenizer():
    made = train_tokenizer(["Mara is a baker."], 300, 64)
    add_chat_template(made)
    return made


def fit_conversation(tokenizer, conversation, max_length):
    return next(fit_conversations(tokenizer, [conversation], max_length))[0]


def length(tokenizer, messages) -> int:
    return len(encode_conversation(tokenizer, messages)[0])


@pytest.mark.parametrize("system", [[], [SYSTEM]])
@pytest.mark.parametrize("kept", [6, 4, 2])
def test_the_oldest_exchanges_go_until_the_rest_fits(tokenizer, system, kept):
    expected = [*system, *TURNS[-kept:]]
    room = length(tokenizer, expected)
    assert fit_conversation(tokenizer, [*system, *TURNS], room) == [encode_conversation(tokenizer, expected)]
    if kept < 6:
        longer = length(tokenizer, [*system, *TURNS[-kept - 2 :]])
        assert fit_conversation(tokenizer, [*system, *TURNS], longer - 1) == [encode_conversation(tokenizer, expected)]


@pytest.mark.parametrize("kept", [1, 2, 9, 29])
def test_of_many_exchanges_as_many_stay_as_fit(tokenizer, kept):
    turns = [{**turn, "content": f"{turn['content']} {i}"} for i, turn in enumerate(TURNS * 10)]
    if kept == 9:  # what follows the last answer to be learned takes no room
        turns[-1] = {**turns[-1], "train": False}
    expected = turns[-2 * kept :]
    room = length(tokenizer, expected)
    assert fit_conversation(tokenizer, turns, room) == [encode_conversation(tokenizer, expected)]
    fewer = fit_conversation(tokenizer, turns, room - 1)
    assert fewer == ([encode_conversation(tokenizer, turns[-2 * kept + 2 :])] if kept > 1 else [])


def test_the_answers_in_the_rows_are_counted(tokenizer):
    room = length(tokenizer, TURNS[-4:])
    whole, cut, none = (next(fit_conversations(tokenizer, [TURNS], size))[1] for size in (1000, room, 2))
    assert (whole, cut, none) == (3, 2, 0)


def test_an_answer_is_never_cut(tokenizer):
    room = length(tokenizer, [SYSTEM, *TURNS[-2:]])
    assert fit_conversation(tokenizer, [SYSTEM, *TURNS], room - 1) == []


def test_each_answer_that_is_a_row_of_its_own_loses_its_own_oldest_exchanges(tokenizer):
    first_thought = (
        "{% for m in messages %}{% if loop.last and m['role'] == 'assistant' %}({{ loop.index }}){% endif %}"
    )
    tokenizer = train_tokenizer(["Mara is a baker."], 300, 64)
    tokenizer.chat_template = first_thought + "{{ m['content'] }}{{ eos_token }}{% endfor %}"
    add_chat_template(tokenizer)
    turns = [{**turn, "content": f"a{number}"} for number, turn in enumerate(TURNS)]
    alone = [fit_conversation(tokenizer, turns[place : place + 2], 1000)[0] for place in (0, 2, 4)]
    limit = len(alone[0][0])
    assert fit_conversation(tokenizer, turns, limit) == alone
    turns[3]["content"] = "a3" * limit
    assert fit_conversation(tokenizer, turns, limit) == [alone[0], alone[2]]


def test_what_holds_for_the_whole_conversation_stays_with_its_rest(tokenizer):
    tokenizer = train_tokenizer(["Mara is a baker."], 300, 64)
    tokenizer.chat_template = "{{ note }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    add_chat_template(tokenizer)
    noted = [{**TURNS[0], "chat_template_kwargs": {"note": "N."}}, *TURNS[1:]]
    rest = fit_conversation(tokenizer, noted, length(tokenizer, noted) - 1)
    assert tokenizer.decode(rest[0][0]).startswith("N.Who is Mara?")
