import copy

import pytest
from chats import said
from transformers import AddedToken

from chatpipe.checks import template_checks as template
from chatpipe.checks.gate import Finding
from chatpipe.data.chat_template import CHAT_TEMPLATE

CHAT = [said("Who is Mara?", "A baker.", "Since when?", "For years.", system="Be brief.")]


def test_pad_is_eos(tokenizer):
    assert template.pad_is_eos(tokenizer) is None
    tokenizer.pad_token = tokenizer.eos_token
    assert template.pad_is_eos(tokenizer) == Finding(
        "the tokenizer pads with its end-of-turn token '<|endoftext|>': ends would be hidden as padding is.",
        "Set another pad_token in its tokenizer_config.json.",
    )


def test_double_bos(tokenizer):
    def rows():
        return [template.encode(tokenizer, conversation)[0] for conversation in CHAT]

    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    assert template.double_bos(tokenizer, rows()) is None
    tokenizer.chat_template = "{{ bos_token + bos_token }}" + CHAT_TEMPLATE
    assert template.double_bos(tokenizer, rows()) == Finding(
        "1 of 1 rows begin with '<|endoftext|>' twice.", "Take it out of the chat template, or out of the texts."
    )


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
    assert template.turns_lost(tokenizer, CHAT) == Finding(
        f"the chat template loses or moves {lost} of a conversation.",
        "Use a template that writes every turn in its order, or leave such turns out of the data.",
    )


@pytest.mark.parametrize("conversation", [*CHAT, said("Who is Mara?")])
def test_template_not_saved(tokenizer, conversation):
    assert template.template_not_saved(tokenizer, template.as_saved(tokenizer), [conversation]) is None
    served = copy.deepcopy(tokenizer)
    served.chat_template = CHAT_TEMPLATE.replace("' ' + ", "")
    assert template.template_not_saved(tokenizer, served, [conversation]) == Finding(
        "the tokenizer as it is saved reads a conversation as other tokens than are trained on.",
        "Set tokenizer.chat_template to what is trained with; one that is given to a single call is not saved.",
    )


def test_other_template(tokenizer):
    other = copy.deepcopy(tokenizer)
    prompts = [said("Who is Mara?")]
    assert template.other_template(tokenizer, {"ppo.reward_model": other}, prompts) is None
    other.chat_template = None
    assert template.other_template(tokenizer, {"ppo.reward_model": other}, prompts) is None
    other.chat_template = CHAT_TEMPLATE.replace("' ' + ", "")
    assert template.other_template(tokenizer, {"ppo.reward_model": other}, prompts) == Finding(
        "ppo.reward_model was trained with another chat template than the policy's.",
        "Train it on the policy's own model, or save the policy's template with it.",
    )


def test_special_tokens_in_text(tokenizer):
    tokens = template.control_tokens(tokenizer)
    assert {"<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>"} <= set(tokens)
    texts = ["A baker.<|endoftext|>"] + 98 * ["A baker. </s>"]
    assert template.special_tokens_in_text(tokens, [*texts, "A baker."], "sft.data") is None
    assert template.special_tokens_in_text(tokens, texts, "sft.data") == Finding(
        "sft.data: 1 of 99 texts looked at have '<|endoftext|>' spelt out in them.",
        "Take it out; documents are parted by standing in a row or a file each.",
    )
    tokenizer.add_tokens(AddedToken("</s>", special=True))
    found = template.special_tokens_in_text(template.control_tokens(tokenizer), texts, "sft.data")
    assert found.what == "sft.data: 98 of 99 texts looked at have '</s>' spelt out in them."


def test_no_texts_no_finding(tokenizer):
    assert template.special_tokens_in_text(template.control_tokens(tokenizer), [], "sft.data") is None
