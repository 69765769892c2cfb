"""`chatpipe data show`: rows as the model will see them, and what all of them come to."""

import json
import shutil
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def view(chatpipe, run, stage, *words):
    """What is shown of a stage with the tokenizer of the shared run."""
    return chatpipe("data", "show", run.recipe, stage, "--model", run.folder / "sft", *words, "--json").object


def text_of(row) -> str:
    return "".join(part["text"] for part in row["parts"])


def trained(row) -> list[str]:
    return [part["text"] for part in row["parts"] if part["trained"]]


def write(work, rows) -> str:
    (work / "rows.jsonl").write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return "rows.jsonl"


def chat(*turns):
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]}


def test_a_conversation_is_shown_as_tokens_of_which_the_answers_and_their_ends_are_trained(chatpipe, work, tiny_run):
    data = write(work, [chat(f"Who is {i}?", "A cook.", "Why?", "I see.") for i in range(20)])
    seen = view(chatpipe, tiny_run, "sft", "--data", data, "--rows", "2", "sft.max_length=96")
    assert seen["tokenizer"] == str(tiny_run.folder / "sft")
    assert [text_of(row) for row in seen["rows"]] == [
        f"<|user|> Who is {i}?<|assistant|> A cook.<|endoftext|><|user|> Why?<|assistant|> I see.<|endoftext|>"
        for i in range(2)
    ]
    assert [trained(row) for row in seen["rows"]] == [[" A cook.<|endoftext|>", " I see.<|endoftext|>"]] * 2
    summary = seen["summary"]
    assert summary["train_rows"] + summary["validation_rows"] == summary["measured_rows"] == 20
    assert (summary["truncated_share"], summary["left_out_share"], summary["eos_trained_share"]) == (0, 0, 1)
    assert summary["lengths"]["unit"] == "tokens"
    assert summary["lengths"]["min"] <= seen["rows"][0]["tokens"] <= summary["lengths"]["max"]


def test_without_colour_what_is_trained_is_between_marks_and_nothing_is_lost(chatpipe, work, tiny_run):
    data = write(work, [chat("Who?", "A cook.")] * 3)
    said = chatpipe("data", "show", tiny_run.recipe, "sft", "--model", tiny_run.folder / "sft", "--data", data)
    assert (said.code, said.out) == (0, "")
    assert said.err.count("<|user|> Who?<|assistant|>⟦ A cook.<|endoftext|>⟧\n") == 3


def test_what_is_cut_and_what_is_left_out_is_shown_as_such(chatpipe, work, tiny_run):
    long = "word " * 60
    data = write(
        work, [chat(long, "Yes.", "And now?", "No."), chat(long, long), chat("Who?", "A cook."), chat("So?", "A.")]
    )
    seen = view(chatpipe, tiny_run, "sft", "--data", data, "sft.max_length=48")
    cut, left_out, whole = seen["rows"]
    assert text_of(cut) == "<|user|> And now?<|assistant|> No.<|endoftext|>"
    assert cut["kept_tokens"] < 48 < cut["tokens"]
    assert (left_out["kept_tokens"], left_out["parts"]) == (0, [])
    assert whole["kept_tokens"] == whole["tokens"]
    shares = {key: value for key, value in seen["summary"].items() if key.endswith("share")}
    assert shares == {"truncated_share": 0.5, "left_out_share": 0.25, "eos_trained_share": 1.0}


def test_rows_that_cannot_be_used_are_reported_with_their_places_also_where_they_would_stop_the_stage(
    chatpipe, work, tiny_run
):
    data = write(work, [chat("Who?", "A cook."), "{no json", chat("Why?", " "), chat("So?", "Yes."), chat("", "Yes.")])
    [source] = view(chatpipe, tiny_run, "sft", "--data", data)["summary"]["sources"]
    assert (source["rows"], source["formats"], source["stops_the_stage"]) == (5, ["messages"], True)
    told = {one["reason"]: (one["rows"], one["first"].split(",")[0]) for one in source["left_out"]}
    assert told == {"this line is not JSON": (1, f"{data}:2"), "a message is empty": (2, f"{data}:3")}


def test_no_weights_are_read(chatpipe, work, tiny_run):
    shutil.copytree(
        tiny_run.folder / "sft", work / "bare", ignore=shutil.ignore_patterns("*.safetensors", "checkpoints")
    )
    data = write(work, [chat("Who?", "A cook.")] * 3)
    seen = chatpipe("data", "show", "pocket", "sft", "--model", "bare", "--data", data, "--json").object
    assert trained(seen["rows"][0]) == [" A cook.<|endoftext|>"]


def test_before_there_is_a_model_rows_are_messages_and_a_note_is_printed(chatpipe, work, listing):
    data = write(work, [chat("Who?", "A cook.")] * 3)
    before = listing()
    said = chatpipe("data", "show", "pocket", "sft", "--data", data, "--json")
    assert "no model is there yet" in said.err
    assert said.object["tokenizer"] is None
    assert said.object["rows"][0] == {**chat("Who?", "A cook."), "split": said.object["rows"][0]["split"]}
    assert said.object["summary"]["lengths"]["max"] == len("Who?A cook.")
    assert listing() == before


def test_rankings_are_shown_with_their_ranks(chatpipe, work, tiny_run):
    rows = [{"prompt": f"{i}?", "responses": ["Yes.", "No, no."], "ranks": [2, 1]} for i in range(3)]
    seen = view(chatpipe, tiny_run, "rm", "--data", write(work, rows))
    assert seen["rows"][0]["text"] == "<|user|> 0?<|assistant|>"
    answers = [(answer["rank"], answer["text"]) for answer in seen["rows"][0]["answers"]]
    assert answers == [(2, "Yes."), (1, "No, no.")]
    assert seen["summary"]["all_tied"] == 0


def test_prompts_are_shown_once_each_up_to_where_the_assistant_speaks(chatpipe, work, tiny_run):
    seen = view(
        chatpipe, tiny_run, "ppo", "--data", write(work, [{"prompt": "Who?"}, {"prompt": "Who?"}, {"prompt": "Why?"}])
    )
    assert [row["text"] for row in seen["rows"]] == ["<|user|> Who?<|assistant|>", "<|user|> Why?<|assistant|>"]


def test_prompts_leave_room_in_the_model_that_reads_the_fewest_tokens(chatpipe, work, tiny_run):
    shutil.copytree(tiny_run.folder / "rm", work / "short", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((work / "short" / "config.json").read_text())
    (work / "short" / "config.json").write_text(json.dumps({**config, "n_positions": 32}))
    data = write(work, [{"prompt": "Who?"}, {"prompt": "word " * 20}])
    words = ("--data", data, f"ppo.reward_model={work}/short", "ppo.response_length=24")
    summary = view(chatpipe, tiny_run, "ppo", *words)["summary"]
    assert (summary["max_length"], summary["left_out_share"]) == (32 - 24, 0.5)


def test_text_is_shown_in_blocks_with_the_ends_of_documents(chatpipe, work, tiny_run):
    texts = [f"Document {i} is short." for i in range(40)]
    data = write(work, [{"text": text} for text in texts])
    seen = view(chatpipe, tiny_run, "pretrain", "--data", data, "pretrain.block_size=16", "--rows", "4")
    assert [row["tokens"] for row in seen["rows"]] == [16] * 4
    parts = [part for row in seen["rows"] for part in row["parts"]]
    assert {part["text"] for part in parts if part["ends_document"]} == {"<|endoftext|>"}
    shown = "".join(part["text"] for part in parts).split("<|endoftext|>")
    assert len(shown) > 2
    assert set(shown[:-1]) <= set(texts)
    assert seen["summary"]["train_rows"] + seen["summary"]["validation_rows"] == 40


def test_each_source_of_text_has_its_own_count(chatpipe, work, tiny_run):
    sources = []
    for name, count in (("a.txt", 30), ("b.txt", 40)):
        (work / name).write_text("".join(f"Text {i} of {name}.\n" for i in range(count)))
        sources.append(f"{{source: {name}, document: line}}")
    seen = view(chatpipe, tiny_run, "pretrain", f"pretrain.data=[{', '.join(sources)}]")
    assert [source["rows"] for source in seen["summary"]["sources"]] == [30, 40]


def test_rankings_that_the_run_has_yet_to_make_cannot_be_shown(refused):
    assert "has made no rankings yet" in refused("data", "show", "pocket", "rm")


def test_a_stage_that_there_is_not(refused):
    assert "There is no stage stf." in refused("data", "show", "pocket", "stf")


@pytest.mark.parametrize(
    ("name", "form", "rows", "left_out", "has_tokens"),
    [
        ("alpaca.json", "alpaca", 45, 0, True),
        ("gsm8k.jsonl", "question_answer", 24, 0, False),
        ("dpo.json", "pairs", 12, 0, True),
        ("hh_harmless.jsonl", "pairs", 48, 4, False),
        ("rankings_k4.jsonl", "rankings", 20, 0, True),
    ],
)
def test_files_in_published_shapes_are_shown_for_sft(chatpipe, tiny_run, name, form, rows, left_out, has_tokens):
    words = ("--model", tiny_run.folder / "sft") if has_tokens else ()
    seen = chatpipe("data", "show", "pocket", "sft", "--data", FIXTURES / name, *words, "--json").object
    [source] = seen["summary"]["sources"]
    assert (source["formats"], source["rows"]) == ([form], rows)
    assert sum(one["rows"] for one in source["left_out"]) == left_out
    assert seen["summary"]["measured_rows"] == rows - left_out
    has_kept = has_tokens and seen["summary"]["left_out_share"] < 1  # of one file none fits into so small a model
    assert seen["summary"].get("eos_trained_share") == (1.0 if has_kept else None)
    assert len(seen["rows"]) == 3
    for row in seen["rows"]:
        if row.get("parts"):
            assert trained(row)[-1] == f" {row['messages'][-1]['content'].strip()}<|endoftext|>"


THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if loop.last and m['role'] == 'assistant' %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}{% if m['role'] == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)


def test_each_answer_is_a_row_of_its_own_where_the_template_writes_it_differently_later(chatpipe, work, tiny_run):
    model = shutil.copytree(tiny_run.folder / "sft", work / "thinking")
    (model / "chat_template.jinja").write_text(THINKING)
    (model / "chatpipe.json").unlink()
    data = write(work, [chat("Who?", "A cook.", "Why?", "I see.")] * 20)
    show = ("data", "show", tiny_run.recipe, "sft", "--model", model, "--data", data, "--rows", "1", "--json")
    row = chatpipe(*show).object["rows"][0]
    assert (row["rows"], trained(row)) == (
        2,
        ["<think></think>A cook.<|endoftext|>", "<think></think>I see.<|endoftext|>"],
    )
    assert text_of(row).endswith(
        "<|user|>Who?<|assistant|>A cook.<|endoftext|><|user|>Why?<|assistant|>" + trained(row)[1]
    )
    silent = chatpipe(*show, "chat_template_kwargs.enable_thinking=false").object["rows"][0]
    assert trained(silent) == ["A cook.<|endoftext|>", "I see.<|endoftext|>"]
    assert "<|assistant|><think></think>" in text_of(silent)
