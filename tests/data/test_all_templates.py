"""Every text template that trl ships, as it is and with a comment added, on a tokenizer with its control tokens."""

import re

import pytest

from chatpipe.data.chat_template import (
    add_chat_template,
    encode_completion,
    encode_conversation,
    encode_conversations,
    encode_prompt,
)
from chatpipe.data.rendering import traits_of
from families import TEMPLATES, Family, template_of

OF_PICTURES = {"idefics3", "llava_next", "smolvlm"}
"""They take contents in parts alone."""
NAMES = sorted(
    path.stem for path in TEMPLATES.glob("*.jinja") if "_training" not in path.stem and path.stem not in OF_PICTURES
)

# What the model must say where each answer is a row of its own; {} is the answer.
IN_PARTS = {
    "deepseek_r1_distill": "\n</think>\n\n{}<｜end▁of▁sentence｜>",
    "deepseekv3": "\n</think>\n\n{}<｜end▁of▁sentence｜>",
    "gptoss": "<|channel|>final<|message|>{}<|return|>",
    "nemotron_3_5_lightning": "</think>{}<|im_end|>",
    "nemotron_3_nano": "</think>{}<|im_end|>",
    "nemotron_3_super": "</think>{}<|im_end|>",
    "nemotron_3_ultra": "</think>{}<|im_end|>",
    "qwen3": "<think>\n\n</think>\n\n{}<|im_end|>",
    "qwen3_5_nothink": "{}<|im_end|>",
    "qwen3_5_think": "\n</think>\n\n{}<|im_end|>",
    "qwen3_6": "\n</think>\n\n{}<|im_end|>",
    "qwen3_8": "\n</think>\n\n{}<|im_end|>",
}
SAID = {
    **IN_PARTS,
    **dict.fromkeys(("cohere",), "{}<|END_OF_TURN_TOKEN|>"),
    "cohere2": "{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    **dict.fromkeys(("gemma", "gemma3"), "{}<end_of_turn>"),
    **dict.fromkeys(("diffusion_gemma", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"), "{}<turn|>"),
    "glm4moe": "\n<think></think>\n{}<|user|>",
    **dict.fromkeys(("llama3", "llama3_1", "llama3_2"), "{}<|eot_id|>"),
    "muse_glimmer": " to=user<|message|>{}<|eot|>",
    **dict.fromkeys(("phi3", "phi3_5"), "{}<|end|>"),
}
REASONING = {
    "deepseek_r1_distill": "Hm.\n</think>\n\nA baker.<｜end▁of▁sentence｜>",
    "deepseekv3": "Hm.\n</think>\n\nA baker.<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<|channel>thought\nHm.\n<channel|>A baker.<turn|>",
    "gemma4_v5": "<|channel>thought\nHm.\n<channel|>A baker.<turn|>",
    "glm4moe": "\n<think>Hm.</think>\nA baker.<|user|>",
    "gptoss": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>A baker.<|return|>",
    **dict.fromkeys(("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"), "<think>Hm.</think>A baker.<|im_end|>"),
    "muse_glimmer": " to=self<|message|>Hm.<|eom|><|start|>assistant to=user<|message|>A baker.<|eot|>",
    **dict.fromkeys(("nemotron_3_5_lightning", "nemotron_3_ultra"), "Hm.</think>A baker.<|im_end|>"),
    **dict.fromkeys(("nemotron_3_nano", "nemotron_3_super"), "Hm.\n</think>\nA baker.<|im_end|>"),
    "qwen3": "<think>\nHm.\n</think>\n\nA baker.<|im_end|>",
    **dict.fromkeys(("qwen3_5_think", "qwen3_6", "qwen3_8"), "Hm.\n</think>\n\nA baker.<|im_end|>"),
}
NO_TOOLS = {"cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "lfm2", "llama3"} | {
    "phi3",
    "phi3_5",
    "qwen2_5_vl",
}

TURNS = [
    {"role": "user", "content": "Who is Mara?"},
    {"role": "assistant", "content": "A baker."},
    {"role": "user", "content": "And Tomas?"},
    {"role": "assistant", "content": "He has a dog."},
]
CONTROL = re.compile(
    r"<\|[^<>|\s{}']+\|>|<｜[^<>｜\s]+｜>|<\|[A-Za-z_]+>|<[A-Za-z_]+\|>|<(?:start|end)_of_turn>|\[gMASK\]|<sop>"
)


def tokenizer_of(name, comment=""):
    template = template_of(name) + comment
    control = ("<s>", "</s>", "<pad>", *sorted(set(CONTROL.findall(template))))
    made = Family(template, control, eos="</s>", end_of_turn="", bos="<s>", pad="<pad>").tokenizer()
    made.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    add_chat_template(made)
    return made


@pytest.fixture(scope="module", params=NAMES)
def fitted(request):
    return request.param, tokenizer_of(request.param)


def learned(tokenizer, ids, mask):
    return tokenizer.decode([token for token, learn in zip(ids, mask, strict=True) if learn])


def test_trl_has_as_many_as_were_looked_at():
    assert len(NAMES) >= 35


def test_every_answer_is_learned_with_its_end_behind_the_prompt_of_serving(fitted):
    name, tokenizer = fitted
    rows = encode_conversations(tokenizer, [TURNS])[0]
    assert len(rows) == (2 if name in IN_PARTS else 1)
    said = [SAID.get(name, "{}<|im_end|>").format(message["content"]) for message in TURNS[1::2]]
    assert [learned(tokenizer, *row) for row in rows] == (said if name in IN_PARTS else ["".join(said)])
    for turn, (ids, mask) in zip((1, 3), rows if name in IN_PARTS else rows * 2, strict=True):
        prompt = tokenizer.apply_chat_template(TURNS[:turn], add_generation_prompt=True, return_dict=False)
        assert ids[: len(prompt)] == prompt == encode_prompt(tokenizer, TURNS[:turn])
        assert (mask[len(prompt) - 1], mask[len(prompt)]) == (0, 1)
        if name in IN_PARTS:
            assert sum(mask) == len(ids) - len(prompt)


@pytest.mark.parametrize("fitted", sorted(set(NAMES) - IN_PARTS.keys()), indirect=True)
def test_one_row_is_the_whole_conversation_of_transformers(fitted):
    name, tokenizer = fitted
    ids, _ = encode_conversation(tokenizer, TURNS)
    whole = tokenizer.apply_chat_template(TURNS, return_dict=False)
    # GLM's template ends an answer with the mark of the next question, which a whole conversation lacks at its end
    assert ids[: len(ids) - (name == "glm4moe")] == whole[: len(ids)]
    assert tokenizer.decode(whole[len(ids) :]).strip() in ("", "<|end|>")


def test_a_comment_changes_nothing(fitted):
    name, tokenizer = fitted
    assert encode_conversations(tokenizer_of(name, "{# x #}"), [TURNS]) == encode_conversations(tokenizer, [TURNS])


def test_a_completion_is_the_last_answer(fitted):
    _, tokenizer = fitted
    ids, prompt_length = encode_completion(tokenizer, TURNS[:3], TURNS[3]["content"])
    assert ids[:prompt_length] == encode_prompt(tokenizer, TURNS[:3])
    row, mask = encode_conversations(tokenizer, [TURNS])[0][-1]
    assert ids == row
    assert sum(mask[prompt_length:]) == len(ids) - prompt_length


def test_reasoning_is_written_where_the_template_has_a_place_for_it(fitted):
    name, tokenizer = fitted
    answer = {**TURNS[1], "reasoning_content": "Hm."}
    text = learned(tokenizer, *encode_conversation(tokenizer, [TURNS[0], answer]))
    assert text == REASONING.get(name, SAID.get(name, "{}<|im_end|>").format(TURNS[1]["content"]))
    traits = traits_of(tokenizer)
    assert (traits.reasoning is not None or traits.thinks) == (name in REASONING)


@pytest.mark.parametrize(
    "content", ["<b> is a tag.", "<", "\n<t", "<|im_end|> ends a turn.", "</s>", "{{ x }}", "s", "\u2028é"]
)
def test_what_an_answer_begins_with_is_learned(fitted, content):
    name, tokenizer = fitted
    turns = [TURNS[0], {"role": "assistant", "content": content}, *TURNS[2:]]
    first, second = (
        SAID.get(name, "{}<|im_end|>").format(content.strip()),
        SAID.get(name, "{}<|im_end|>").format(TURNS[3]["content"]),
    )
    rows = encode_conversations(tokenizer, [turns])[0]
    assert "".join(learned(tokenizer, *row) for row in rows) == first + second


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3"])
def test_what_an_answer_begins_with_behind_its_thought_is_learned(name):
    turns = [TURNS[0], {"role": "assistant", "content": "<think>Hm.</think><b> is a tag."}]
    tokenizer = tokenizer_of(name)
    text = learned(tokenizer, *encode_conversation(tokenizer, turns))
    assert text == "Hm.\n</think>\n\n<b> is a tag.<｜end▁of▁sentence｜>"


def test_it_is_known_which_templates_write_tools(fitted):
    name, tokenizer = fitted
    assert traits_of(tokenizer).tools == (name not in NO_TOOLS)


@pytest.mark.parametrize("fitted", sorted(set(NAMES) - NO_TOOLS), indirect=True)
def test_calls_of_tools_are_learned_and_their_results_read(fitted):
    _, tokenizer = fitted
    parameters = {"type": "object", "properties": {"who": {"type": "string", "description": "A name."}}}
    tool = {"type": "function", "function": {"name": "job_of", "description": "A job.", "parameters": parameters}}
    call = {"id": "call00001", "type": "function", "function": {"name": "job_of", "arguments": {"who": "Mara"}}}
    rows = encode_conversations(
        tokenizer,
        [
            [
                {**TURNS[0], "tools": [tool]},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "name": "job_of", "tool_call_id": "call00001", "content": "BAKES"},
                TURNS[1],
            ]
        ],
    )[0]
    text = "".join(learned(tokenizer, *row) for row in rows)
    assert "job_of" in text
    assert "Mara" in text
    assert "A baker." in text
    assert "BAKES" not in text
    assert "BAKES" in tokenizer.decode(rows[-1][0])
    assert "A job." in tokenizer.decode(rows[0][0])
