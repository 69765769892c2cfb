import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chatpipe.data.chat_template import (
    CHAT_TEMPLATE,
    Message,
    add_chat_template,
    decode_answer,
    encode_completion,
    encode_conversation,
    encode_conversations,
    encode_prompt,
)
from chatpipe.errors import UsageError
from chatpipe.models.new_model import train_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "Who is Mara?"},
    {"role": "assistant", "content": "Mara is a baker."},
    {"role": "user", "content": "And Tomas?"},
    {"role": "assistant", "content": "He has a dog."},
]
EOS = "<|endoftext|>"


def learned(tokenizer: PreTrainedTokenizerFast, ids: list[int], mask: list[int]) -> str:
    """The text of the tokens that the loss is on."""
    return tokenizer.decode([token for token, learn in zip(ids, mask, strict=True) if learn])


def test_a_conversation_is_its_turns_behind_their_role_tokens(tokenizer):
    ids, _ = encode_conversation(tokenizer, [SYSTEM, *TURNS])
    assert tokenizer.decode(ids) == (
        f"<|system|> Be brief.<|user|> Who is Mara?<|assistant|> Mara is a baker.{EOS}"
        f"<|user|> And Tomas?<|assistant|> He has a dog.{EOS}"
    )
    special = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in tokenizer.all_special_ids]
    assert special == ["<|system|>", "<|user|>", "<|assistant|>", EOS, "<|user|>", "<|assistant|>", EOS]


def test_a_prompt_ends_where_the_assistant_speaks(tokenizer):
    ids = encode_prompt(tokenizer, TURNS[:1])
    assert tokenizer.decode(ids) == "<|user|> Who is Mara?<|assistant|>"
    whole, _ = encode_conversation(tokenizer, TURNS[:2])
    assert whole[: len(ids)] == ids


def test_the_loss_is_on_the_text_of_the_assistant_and_on_its_end(tokenizer):
    ids, mask = encode_conversation(tokenizer, [SYSTEM, *TURNS])
    assert learned(tokenizer, ids, mask) == f" Mara is a baker.{EOS} He has a dog.{EOS}"


def test_the_mask_is_the_one_that_transformers_makes_of_the_template(tokenizer):
    theirs = tokenizer.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encode_conversation(tokenizer, TURNS)
    assert (ids, mask) == (theirs["input_ids"], theirs["assistant_masks"])


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(str.strip).filter(bool)
dialogues = st.lists(words, min_size=1, max_size=5).map(
    lambda texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
)


@given(dialogues)
def test_prompts_are_prefixes_and_answers_come_back_as_they_were(tokenizer, dialogue: list[Message]):
    ids, mask = encode_conversation(tokenizer, dialogue)
    assert len(ids) == len(mask)
    answers = [message["content"] for message in dialogue if message["role"] == "assistant"]
    assert learned(tokenizer, ids, mask) == "".join(f" {answer}{EOS}" for answer in answers)
    for i, message in enumerate(dialogue):
        if message["role"] == "assistant":
            prompt = encode_prompt(tokenizer, dialogue[:i])
            assert ids[: len(prompt)] == prompt
            whole, prompt_length = encode_completion(tokenizer, dialogue[:i], message["content"])
            assert prompt_length == len(prompt)
            assert decode_answer(tokenizer, whole[prompt_length:]) == message["content"]


def test_a_completion_ends_with_the_end_of_turn_token(tokenizer):
    ids, prompt_length = encode_completion(tokenizer, TURNS[:3], "He has a dog.")
    assert ids == encode_conversation(tokenizer, TURNS)[0]
    assert ids[:prompt_length] == encode_prompt(tokenizer, TURNS[:3])
    assert ids[-1] == tokenizer.eos_token_id


def test_an_answer_that_is_not_to_be_trained_is_context(tokenizer):
    ids, mask = encode_conversation(tokenizer, [TURNS[0], {**TURNS[1], "train": False}, *TURNS[2:]])
    assert (ids, learned(tokenizer, ids, mask)) == (encode_conversation(tokenizer, TURNS)[0], f" He has a dog.{EOS}")
    assert encode_conversations(tokenizer, [[TURNS[0], {**TURNS[1], "train": False}]]) == [[]]


def test_control_tokens_in_a_message_are_letters(tokenizer):
    written = [
        {"role": "user", "content": "What is <|assistant|> for?"},
        {"role": "assistant", "content": f"The token {EOS} ends an answer."},
    ]
    ids, mask = encode_conversation(tokenizer, written)
    special = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in tokenizer.all_special_ids]
    assert special == ["<|user|>", "<|assistant|>", EOS]
    answer = f" The token {EOS} ends an answer.{EOS}"
    assert tokenizer.decode(ids) == f"<|user|> What is <|assistant|> for?<|assistant|>{answer}"
    assert learned(tokenizer, ids, mask) == answer
    assert ids[: len(ids) - sum(mask)] == encode_prompt(tokenizer, written[:1])
    assert encode_conversations(tokenizer, [TURNS, written])[0] == [encode_conversation(tokenizer, TURNS)]


def test_a_template_is_given_its_settings_by_the_tokenizer_and_by_the_row():
    tokenizer = _stock_tokenizer(eos_token="</s>")
    tokenizer.chat_template = (
        "{{ style }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    add_chat_template(tokenizer, {"style": "short"})
    assert tokenizer.decode(encode_prompt(tokenizer, TURNS[:1])).startswith("short[user]")
    row = [{**TURNS[0], "chat_template_kwargs": {"style": "long"}}, TURNS[1]]
    assert tokenizer.decode(encode_conversation(tokenizer, row)[0]).startswith("long[user]")


def test_a_developer_is_the_system_where_the_template_has_no_such_role(tokenizer):
    asked = [{**SYSTEM, "role": "developer"}, *TURNS]
    assert encode_conversation(tokenizer, asked) == encode_conversation(tokenizer, [SYSTEM, *TURNS])
    knows = _stock_tokenizer(eos_token="</s>")
    knows.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'developer' %}[rules]{% endif %}{{ m['content'] }}</s>{% endfor %}"
    )
    add_chat_template(knows)
    assert knows.decode(encode_prompt(knows, asked[:1])).startswith("[rules]Be brief.")


def test_our_own_tokenizer_needs_only_the_template():
    tokenizer = train_tokenizer(["some words"], 300, 64)
    size = len(tokenizer)
    assert add_chat_template(tokenizer) == 0
    assert (tokenizer.chat_template, len(tokenizer)) == (CHAT_TEMPLATE, size)
    assert add_chat_template(tokenizer) == 0


def _stock_tokenizer(**tokens: str) -> PreTrainedTokenizerFast:
    """As GPT-2's: a byte-level BPE with an end-of-text token and nothing else."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(["some words"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False, **tokens)


@pytest.mark.parametrize("pad", [{}, {"pad_token": "</s>"}])
def test_a_stock_tokenizer_without_a_template_gets_the_roles_and_keeps_its_pad_token(pad):
    tokenizer = _stock_tokenizer(eos_token="</s>", **pad)
    before = len(tokenizer)
    assert add_chat_template(tokenizer) == len(tokenizer) - before == 3
    assert tokenizer.pad_token == pad.get("pad_token")
    ids, mask = encode_conversation(tokenizer, TURNS)
    assert learned(tokenizer, ids, mask) == " Mara is a baker.</s> He has a dog.</s>"
    assert sum(i >= before for i in ids) == len(TURNS)


def test_a_chat_template_of_its_own_is_kept():
    tokenizer = _stock_tokenizer(eos_token="</s>")
    own = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer.chat_template = own
    before = len(tokenizer)
    assert add_chat_template(tokenizer) == 0
    assert (tokenizer.chat_template, len(tokenizer), tokenizer.pad_token) == (own, before, None)
    ids, mask = encode_conversation(tokenizer, TURNS[:2])
    assert learned(tokenizer, ids, mask) == "Mara is a baker.</s>"


def test_a_tokenizer_without_an_end_cannot_learn_to_stop():
    with pytest.raises(UsageError, match="no end-of-text token"):
        add_chat_template(_stock_tokenizer())
