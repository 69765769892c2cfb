"""The template function on tokenizers of other families, each with its own chat template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from chatpipe.data.chat_template import (
    add_chat_template,
    decode_answer,
    encode_completion,
    encode_conversation,
    encode_conversations,
    encode_prompt,
    stop_at_end_of_turn,
)
from chatpipe.errors import UsageError
from families import FAMILIES

TURNS = [
    {"role": "user", "content": "Who is Mara?"},
    {"role": "assistant", "content": "Mara is a baker."},
    {"role": "user", "content": "And Tomas?"},
    {"role": "assistant", "content": "He has a dog."},
]
THOUGHT = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def fitted():
    made = {name: family.tokenizer() for name, family in FAMILIES.items()}
    for tokenizer in made.values():
        add_chat_template(tokenizer)
    return made


def learned(tokenizer, ids, mask):
    return tokenizer.decode([token for token, learn in zip(ids, mask, strict=True) if learn])


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_and_what_ends_them_are_learned(fitted, name):
    family, tokenizer = FAMILIES[name], fitted[name]
    ids, mask = encode_conversation(tokenizer, TURNS)
    before, space = THOUGHT if family.thinks else "", " " if name == "mistral" else ""
    answers = [f"{space}{before}{text}{family.end_of_turn}" for text in ("Mara is a baker.", "He has a dog.")]
    # Qwen 3 thinks before each answer, but its template keeps only the last thought: each answer is a row of its own
    assert learned(tokenizer, ids, mask) == "".join(answers[-1:] if family.thinks else answers)
    assert ids[-1] == tokenizer.convert_tokens_to_ids(family.end_of_turn)
    assert tokenizer.eos_token == family.end_of_turn
    assert tokenizer.pad_token == family.pad
    whole, prompt_length = encode_completion(tokenizer, TURNS[:3], "He has a dog.")
    assert whole == ids
    assert ids[:prompt_length] == encode_prompt(tokenizer, TURNS[:3])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ids_are_those_that_transformers_makes_for_serving(fitted, name, tmp_path):
    tokenizer = fitted[name]
    tokenizer.save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    ids, _ = encode_conversation(tokenizer, TURNS)
    theirs = served.apply_chat_template(TURNS, return_dict=False)
    assert theirs[: len(ids)] == ids
    assert "".join(served.convert_ids_to_tokens(theirs[len(ids) :])) in ("", "Ċ", "Ċ<|end|>")
    prompt = served.apply_chat_template(TURNS[:3], add_generation_prompt=True, return_dict=False)
    assert encode_prompt(tokenizer, TURNS[:3]) == prompt == ids[: len(prompt)]
    assert (served.eos_token, served.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_begins_with_one_bos_at_most(fitted, name):
    family, tokenizer = FAMILIES[name], fitted[name]
    ids, _ = encode_conversation(tokenizer, TURNS)
    if family.bos is not None:
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == encode_prompt(tokenizer, TURNS[:1])[0] == tokenizer.bos_token_id


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12)
contents = st.one_of(words, words.map(lambda text: f"\n {text}\n"), st.sampled_from(["'s", "\n\n- a", "  b", "</"]))
dialogues = st.lists(contents.filter(str.strip), min_size=2, max_size=6).map(
    lambda texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
)


@pytest.mark.parametrize("name", FAMILIES)
@given(dialogue=dialogues)
def test_prompts_are_prefixes_for_any_messages(fitted, name, dialogue):
    tokenizer = fitted[name]
    rows = encode_conversations(tokenizer, [dialogue])[0]
    for turn, message in enumerate(dialogue):
        if message["role"] == "assistant":
            ids, mask = rows[turn // 2] if len(rows) > 1 else rows[0]
            prompt = encode_prompt(tokenizer, dialogue[:turn])
            assert ids[: len(prompt)] == prompt
            end = len(prompt) + mask[len(prompt) :].index(0) if 0 in mask[len(prompt) :] else len(ids)
            assert mask[len(prompt) - 1] == 0
            said = decode_answer(tokenizer, ids[len(prompt) : end])
            assert said.removeprefix(THOUGHT.strip()).strip() == message["content"].strip()


def test_a_template_is_kept(fitted):
    for name, family in FAMILIES.items():
        assert fitted[name].chat_template == family.template


@pytest.mark.parametrize("name", FAMILIES)
def test_fitting_a_tokenizer_twice_changes_nothing(fitted, name):
    tokenizer = fitted[name]
    before = (tokenizer.chat_template, tokenizer.eos_token, len(tokenizer))
    assert add_chat_template(tokenizer) == 0
    assert (tokenizer.chat_template, tokenizer.eos_token, len(tokenizer)) == before


def test_many_at_once_are_as_each_alone(fitted):
    for tokenizer in fitted.values():
        some = [TURNS, TURNS[:2], TURNS]
        assert encode_conversations(tokenizer, some) == [encode_conversations(tokenizer, [each])[0] for each in some]


def test_system_messages_are_read_or_refused(fitted):
    system = {"role": "system", "content": "Be brief."}
    for name in ("llama3", "qwen2.5", "qwen3", "phi3"):
        ids, mask = encode_conversation(fitted[name], [system, *TURNS])
        assert "Be brief." in fitted[name].decode(ids)
        assert "Be brief." not in learned(fitted[name], ids, mask)
    with pytest.raises(UsageError, match=r"refuses a conversation \(system: 'Be brief.'\): System role not supp") as no:
        encode_conversation(fitted["gemma"], [system, *TURNS])
    assert "Leave system messages out" in no.value.hint


@pytest.mark.parametrize(
    "template, prompts, said",
    [
        # rewrites earlier messages
        (
            "{% for m in messages %}{{ loop.index if loop.last else 0 }}{{ m['content'] }}<|im_end|>{% endfor %}",
            ["1Who is Mara?<|im_end|>", "0Who is Mara?<|im_end|>0Yes.<|im_end|>3And Tomas?<|im_end|>"],
            ["Yes.<|im_end|>", "Yes, too.<|im_end|>"],
        ),
        # the end belongs to the message behind: an answer ends with the tokenizer's EOS
        (
            "{% for m in messages %}{% if not loop.first %}<|im_end|>{% endif %}<|im_start|>{{ m['content'] }}"
            "{% endfor %}{% if add_generation_prompt %}<|im_end|><|im_start|>{% endif %}",
            [
                "<|im_start|>Who is Mara?<|im_end|><|im_start|>",
                "<|im_start|>Who is Mara?<|im_end|><|im_start|>Yes.<|im_end|><|im_start|>And Tomas?"
                "<|im_end|><|im_start|>",
            ],
            ["Yes.<|endoftext|>", "Yes, too.<|endoftext|>"],
        ),
        # the space before an answer would be one token with its first word
        (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            [
                "user: Who is Mara?<|im_end|>assistant: ",
                "user: Who is Mara?<|im_end|>assistant: Yes.<|im_end|>user: And Tomas?<|im_end|>assistant: ",
            ],
            ["Yes.<|im_end|>", "Yes, too.<|im_end|>"],
        ),
    ],
)
def test_where_a_prompt_is_no_beginning_each_answer_is_a_row_behind_it(template, prompts, said):
    tokenizer = FAMILIES["qwen2.5"].tokenizer()
    tokenizer.chat_template = template
    add_chat_template(tokenizer)
    turns = [TURNS[0], {**TURNS[1], "content": "Yes."}, TURNS[2], {**TURNS[3], "content": "Yes, too."}]
    rows = encode_conversations(tokenizer, [turns])[0]
    assert [learned(tokenizer, *row) for row in rows] == said
    for (ids, mask), prompt, turn in zip(rows, prompts, (1, 3), strict=True):
        served = tokenizer.apply_chat_template(turns[:turn], add_generation_prompt=True, return_dict=False)
        assert tokenizer.decode(served) == prompt
        assert (ids[: len(served)], sum(mask)) == (served, len(ids) - len(served))


@pytest.mark.parametrize(
    "template, fault",
    [
        ("{% for m in messages %}{{ m['content'] | nothing }}{% endfor %}", "refuses a conversation"),
        ("{% for m in messages %}{{ m['role'] }}<|im_end|>{% endfor %}", "does not write the text of an answer"),
        ({"tool_use": "{{ messages }}"}, "has no variant of the name default"),
    ],
)
def test_a_template_that_nobody_can_train_with_is_refused(template, fault):
    tokenizer = FAMILIES["qwen2.5"].tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match="cannot be trained with") as refused:
        add_chat_template(tokenizer)
    assert fault in refused.value.message


def test_of_several_variants_the_default_one_is_taken():
    tokenizer = FAMILIES["llama3"].tokenizer()
    tokenizer.chat_template = {"default": FAMILIES["llama3"].template, "tool_use": "{{ messages }}"}
    add_chat_template(tokenizer)
    assert tokenizer.chat_template == FAMILIES["llama3"].template


def test_a_base_model_that_reads_bos_first_gets_our_template_behind_it():
    from tokenizers.processors import TemplateProcessing

    tokenizer = FAMILIES["llama3"].tokenizer()
    tokenizer.chat_template = None
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    add_chat_template(tokenizer)
    ids, _ = encode_conversation(tokenizer, TURNS)
    assert tokenizer.convert_ids_to_tokens(ids[:2]) == [bos, "<|user|>"]
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_chat_stops_where_the_template_ends_an_answer(name):
    tokenizer = FAMILIES[name].tokenizer()
    stop_at_end_of_turn(tokenizer)
    assert tokenizer.eos_token == FAMILIES[name].end_of_turn
    assert tokenizer.chat_template == FAMILIES[name].template


@pytest.mark.parametrize("ending", ["", "{{ '\n' }}", " bye"])
def test_eos_stays_where_the_template_ends_answers_with_no_token(ending):
    tokenizer = FAMILIES["qwen2.5"].tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}" + ending + "{% endfor %}"
    stop_at_end_of_turn(tokenizer)
    assert tokenizer.eos_token == "<|endoftext|>"
