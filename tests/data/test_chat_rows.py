"""Conversations written to the disk once are the ones that were encoded, and take no memory."""

import pickle
import tracemalloc

import numpy as np
import pytest

from chatpipe.data.chat_rows import RowsNote, open_rows, write_rows
from chatpipe.data.chat_template import add_chat_template, encode_conversation
from chatpipe.data.packing import training_sequences
from chatpipe.data.row_files import Row
from chatpipe.data.sources import Report, Skipped, SourceReport
from chatpipe.models.new_model import train_tokenizer
from tiny_chats import CONTEXT, conversation, conversations


@pytest.fixture(scope="module")
def tokenizer():
    made = train_tokenizer(["Mara is a baker. Who is Mara? Tomas has a dog."], 300, CONTEXT)
    add_chat_template(made)
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory, tokenizer):
    """Sixty conversations of different length, a tenth for validation."""
    folder = tmp_path_factory.mktemp("written") / "rows"
    write_rows(folder, conversations(60), Report(), tokenizer, CONTEXT, "here")
    return open_rows(folder, "here")


def test_rows_are_what_was_encoded(written, tokenizer):
    train, validation, note = written
    sides = [[], []]
    for each, split in conversations(60):
        sides[split == "validation"].append(encode_conversation(tokenizer, each))
    assert train.first(100) == sides[0]
    assert validation.first(100) == sides[1]
    assert validation.first(2) == sides[1][:2]
    assert train.lengths.tolist() == [len(ids) for ids, _ in sides[0]]
    ids, learned = train.read(7)
    assert (ids.dtype, learned.dtype) == (np.int64, np.int64)
    assert validation.examples() == [each for each, split in conversations(60) if split == "validation"]
    assert (note.made_from, note.too_long) == ("here", {"train": 0, "validation": 0})


def test_what_never_fits_is_counted_and_the_rest_is_kept(tmp_path, tokenizer):
    short, several = conversation(0), conversation(1, exchanges=6)
    long = [*short[:1], {"role": "assistant", "content": "word " * 200}]
    rows = [(short, "train"), (several, "train"), (long, "train"), (long, "validation"), (short, "validation")]
    skipped = Skipped()
    for line in range(3):
        skipped.add("a reason", Row({}, f"file:{line}"))
    report = Report([SourceReport("sft.data", "file", skipped=skipped)])
    write_rows(tmp_path / "rows", rows, report, tokenizer, CONTEXT, "here")
    train, validation, read = open_rows(tmp_path / "rows", "here")
    assert (len(train), len(validation)) == (2, 1)
    ids, learned = train.first(2)[1]
    assert len(ids) <= CONTEXT
    cut = 6 - tokenizer.decode(ids).count("Who")
    assert cut > 0
    kept = {"train": 2, "validation": 1}
    assert read == RowsNote("here", {"train": 1, "validation": 1}, {"a reason": 3}, kept=kept, answers_left_out=cut)
    assert f"sft: {cut} answers left out of conversations" in read.left_out(CONTEXT)[-1]
    assert (ids, learned) == encode_conversation(tokenizer, several[-2 * tokenizer.decode(ids).count("Who") :])
    assert validation.examples() == [long, short]


def test_rows_of_something_else_or_damaged_ones_are_not_opened(tmp_path, tokenizer):
    folder = tmp_path / "rows"
    assert open_rows(folder, "here") is None
    write_rows(folder, conversations(20), Report(), tokenizer, CONTEXT, "here")
    assert open_rows(folder, "there") is None
    assert open_rows(folder, "here") is not None
    with (folder / "train.ids.bin").open("r+b") as file:
        file.write(b"\x07")
    assert open_rows(folder, "here") is None


def test_a_side_without_rows_opens(tmp_path, tokenizer):
    write_rows(tmp_path / "rows", [(conversation(0), "validation")], Report(), tokenizer, CONTEXT, "here")
    train, validation, _ = open_rows(tmp_path / "rows", "here")
    assert (len(train), len(validation)) == (0, 1)


def test_memory_does_not_grow_with_the_conversations(tmp_path, tokenizer):
    def peak(count):
        tracemalloc.start()
        write_rows(tmp_path / "rows", conversations(count), Report(), tokenizer, CONTEXT, "here")
        train = open_rows(tmp_path / "rows", "here")[0]
        sequences = training_sequences(train, None, CONTEXT)
        for number in range(len(sequences)):
            sequences[number]
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(pickle.dumps(train)) < 1000
        return used, int(train.lengths.sum())

    few, _ = peak(500)
    many, tokens = peak(4000)
    assert tokens > 100_000
    assert many - few < tokens  # not a byte a token, let alone two lists of them


TOOLS = [{"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {}}}]


def noted(tmp_path, tokenizer, rows, capsys):
    write_rows(tmp_path / "rows", [(each, "train") for each in rows], Report(), tokenizer, CONTEXT, "here")
    train, _, note = open_rows(tmp_path / "rows", "here")
    note.say()
    return train, note, capsys.readouterr().err


def test_what_the_template_cannot_write_is_left_out_and_counted(tmp_path, tokenizer, capsys):
    plain, offered, thought = conversation(0), conversation(1), conversation(2)
    offered[0] = {**offered[0], "tools": TOOLS}
    thought[1] = {**thought[1], "reasoning_content": "Let me see."}
    train, note, said = noted(tmp_path, tokenizer, [plain, offered, thought], capsys)
    assert train.examples() == [plain, thought]
    assert (len(train), note.refused, note.silent, note.in_parts) == (2, {"the chat template has no tools": 1}, 1, 0)
    assert "1 conversations left out: the chat template has no tools" in said
    assert "writes no reasoning; it is left out of 1 conversations" in said


def test_a_conversation_whose_answers_are_rows_of_their_own_is_said(tmp_path, capsys):
    tokenizer = train_tokenizer(["Mara is a baker. Who is Mara? Tomas has a dog."], 300, CONTEXT)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.last and m['role'] == 'assistant' %}<think>{{ m.reasoning_content }}</think>"
        "{% endif %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    add_chat_template(tokenizer)
    several = conversation(1, exchanges=2)
    several[3] = {**several[3], "reasoning_content": "Hm."}
    train, note, said = noted(tmp_path, tokenizer, [conversation(0), several], capsys)
    assert (len(train), note.kept["train"], note.silent, note.in_parts) == (3, 2, 0, 1)
    assert "each answer of 1 conversations is a row of its own" in said
    assert "<think>Hm.</think>" in tokenizer.decode(train.first(3)[2][0])
    several[1] = {**several[1], "content": "word " * CONTEXT}
    train, note, _ = noted(tmp_path, tokenizer, [several], capsys)
    assert (len(train), note.kept["train"], note.answers_left_out) == (1, 1, 1)
