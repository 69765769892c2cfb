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
    return next(fit_conversations(tokenizer, [conversation], max_length))


def length(tokenizer, messages) -> int:
    return len(encode_conversation(tokenizer, messages)[0])


@pytest.mark.parametrize("system", [[], [SYSTEM]])
@pytest.mark.parametrize("kept", [6, 4, 2])
def test_the_oldest_exchanges_go_until_the_rest_fits(tokenizer, system, kept):
    expected = [*system, *TURNS[-kept:]]
    room = length(tokenizer, expected)
    assert fit_conversation(tokenizer, [*system, *TURNS], room) == encode_conversation(tokenizer, expected)
    if kept < 6:
        longer = length(tokenizer, [*system, *TURNS[-kept - 2 :]])
        assert fit_conversation(tokenizer, [*system, *TURNS], longer - 1) == encode_conversation(tokenizer, expected)


def test_an_answer_is_never_cut(tokenizer):
    room = length(tokenizer, [SYSTEM, *TURNS[-2:]])
    assert fit_conversation(tokenizer, [SYSTEM, *TURNS], room - 1) is None
