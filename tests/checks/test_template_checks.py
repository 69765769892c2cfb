import copy

import pytest
from chats import names, said
from transformers import AddedToken

from chatpipe.checks import template_checks as template
from chatpipe.data.chat_template import CHAT_TEMPLATE, stop_at_end_of_turn

CHAT = [said("Who is Mara?", "A baker.", "Since when?", "For years.", system="Be brief.")]


def test_double_bos(tokenizer):
    def rows():
        return [template.encode(tokenizer, conversation)[0] for conversation in CHAT]

    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    assert template.double_bos(tokenizer, rows()) is None
    tokenizer.chat_template = "{{ bos_token + bos_token }}" + CHAT_TEMPLATE
    assert names(template.double_bos(tokenizer, rows()), "1", "<|endoftext|>")


def test_a_tokenizer_without_bos_has_no_double_one(tokenizer):
    tokenizer.bos_token = None
    assert template.double_bos(tokenizer, [[5, 5]]) is None


@pytest.mark.parametrize(
    "spoilt, lost",
    [
        (CHAT_TEMPLATE.replace("in messages", "in messages[1:]"), "turn 1 (system: 'Be brief.')"),
        (CHAT_TEMPLATE.replace("in messages", "in messages | reverse"), "turn 2 (user: 'Who is Mara?')"),
        (CHAT_TEMPLATE.replace("'] | trim + eos", "'][:5] | trim + eos"), "turn 3 (assistant: 'A baker.')"),
    ],
)
def test_turns_lost(tokenizer, spoilt, lost):
    assert template.turns_lost(tokenizer, [*CHAT, said(" Hello \n you ", "Hi.")]) is None
    tokenizer.chat_template = spoilt
    assert names(template.turns_lost(tokenizer, CHAT), lost)


def test_header_not_in_prompt(tokenizer):
    assert template.header_not_in_prompt(tokenizer) is None
    tokenizer.chat_template = CHAT_TEMPLATE.replace("if add_generation_prompt", "if false")
    assert names(template.header_not_in_prompt(tokenizer), "'<|assistant|>'", "add_generation_prompt")
    tokenizer.chat_template = (  # Mistral's: nothing stands before an answer
        "{% for m in messages %}{{ m['content'] }}{{ '|' if m['role'] == 'user' else eos_token }}{% endfor %}"
    )
    assert template.header_not_in_prompt(tokenizer) is None


def test_date_in_prompt(tokenizer):
    assert template.date_in_prompt(tokenizer) is None
    tokenizer.chat_template = "{{ day or strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE
    assert "today's date" in template.date_in_prompt(tokenizer)
    stop_at_end_of_turn(tokenizer, {"day": "26 Jul 2024"})
    assert template.date_in_prompt(tokenizer) is None


@pytest.mark.parametrize("conversation", [*CHAT, said("Who is Mara?")])
def test_template_not_saved(tokenizer, conversation):
    assert template.template_not_saved(tokenizer, template.as_saved(tokenizer), [conversation]) is None
    served = copy.deepcopy(tokenizer)
    served.chat_template = CHAT_TEMPLATE.replace("' ' + ", "")
    assert names(template.template_not_saved(tokenizer, served, [conversation]), "tokenizer.chat_template")


def test_other_template(tokenizer):
    other = copy.deepcopy(tokenizer)
    prompts = [said("Who is Mara?")]
    assert template.other_template(tokenizer, {"ppo.reward_model": other}, prompts) is None
    other.chat_template = None
    assert template.other_template(tokenizer, {"ppo.reward_model": other}, prompts) is None
    other.chat_template = CHAT_TEMPLATE.replace("' ' + ", "")
    assert names(template.other_template(tokenizer, {"ppo.reward_model": other}, prompts), "ppo.reward_model")


def test_special_tokens_in_text(tokenizer):
    tokens = template.control_tokens(tokenizer)
    assert {"<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>"} <= set(tokens)
    texts = ["A baker.<|endoftext|>"] + 98 * ["A baker. </s>"]
    assert template.special_tokens_in_text(tokens, [*texts, "A baker."], "sft.data") is None
    assert names(template.special_tokens_in_text(tokens, texts, "sft.data"), "sft.data", "1", "99", "<|endoftext|>")
    tokenizer.add_tokens(AddedToken("</s>", special=True))
    found = template.special_tokens_in_text(template.control_tokens(tokenizer), texts, "sft.data")
    assert names(found, "sft.data", "98", "99", "</s>")


def test_no_texts_no_finding(tokenizer):
    assert template.special_tokens_in_text(template.control_tokens(tokenizer), [], "sft.data") is None
