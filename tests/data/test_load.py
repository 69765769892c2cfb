import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatpipe.data.datasets import check_rows, load_conversations, load_prompts, load_rankings, stream_conversations
from chatpipe.data.messages import prompt_key
from chatpipe.data.row_files import split_of
from chatpipe.data.sources import Report, check_sources, data_fingerprints
from chatpipe.data.worlds import only_world, worlds_read
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock, Pocketworld, Recipe

WORLD = Recipe(pocketworld=Pocketworld(people=40, documents=200, conversations=100)).worlds
BUILT_IN = [DataBlock(source="pocketworld")]


def blocks(*sources: str, **more: object) -> list[DataBlock]:
    return [DataBlock(source=source, **more) for source in sources]


def chat(question: str, answer: str = "Yes.") -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def problem_of(load, *arguments: object) -> str:
    with pytest.raises(UsageError) as caught:
        load(*arguments)
    return f"{caught.value.message}\n{caught.value.hint}"


def test_a_tenth_of_all_texts_is_for_validation():
    assert 0.09 < sum(split_of(f"text {i}") == "validation" for i in range(20_000)) / 20_000 < 0.11


@given(st.text())
def test_the_same_text_is_always_on_the_same_side(text):
    assert split_of(text) == split_of(text)


def test_no_prompt_is_on_both_sides_and_all_stages_have_the_same_split(write):
    questions = [f"Question {i % 100}?" for i in range(300)]
    chats = write("chats.jsonl", [chat(question, f"Answer {i}.") for i, question in enumerate(questions)])
    pairs = write("pairs.jsonl", [{"prompt": question, "chosen": "a", "rejected": "b"} for question in questions])
    prompts = write("prompts.jsonl", [{"prompt": question} for question in questions])
    asked = load_conversations(blocks(chats), WORLD, "sft.data")
    ranked = load_rankings(blocks(pairs), WORLD, "rm.data")
    prompted = load_prompts(blocks(prompts), WORLD, "ppo.data")
    sides = [
        ({prompt_key(c[:-1]) for c in asked.train}, {prompt_key(c[:-1]) for c in asked.validation}),
        ({prompt_key(r.prompt) for r in ranked.train}, {prompt_key(r.prompt) for r in ranked.validation}),
        ({prompt_key(p) for p in prompted.train}, {prompt_key(p) for p in prompted.validation}),
    ]
    assert sides[0] == sides[1] == sides[2]
    assert not sides[0][0] & sides[0][1]
    assert len(asked.train) + len(asked.validation) == 300
    assert len(prompted.train) + len(prompted.validation) == 100


def test_several_files_of_different_formats_are_read_together(write):
    alpaca = [{"instruction": f"Do {i}.", "input": "", "output": "Done."} for i in range(60)]
    sources = write("a.jsonl", [chat(f"Q{i}?") for i in range(60)]), write("b.json", alpaca)
    loaded = load_conversations(blocks(*sources), WORLD, "sft.data")
    assert len(loaded.train) + len(loaded.validation) == 120


@pytest.mark.parametrize(("limit", "train", "validation"), [(1, 1, 1), (5, 4, 1), (40, 36, 4), (100, 90, 10)])
def test_a_limit_is_of_all_rows_and_a_tenth_validates(write, limit, train, validation):
    source = write("a.jsonl", [chat(f"Q{i}?") for i in range(400)])
    loaded = load_conversations(blocks(source, limit=limit), WORLD, "k")
    assert (len(loaded.train), len(loaded.validation)) == (train, validation)


def test_a_format_may_be_named(write):
    rows = [{"text": f"t{i}", **chat(f"Q{i}?")} for i in range(60)]
    source = write("a.jsonl", rows)
    assert load_conversations(blocks(source, format="messages"), WORLD, "k").train
    told = problem_of(load_conversations, blocks(source, format="text"), WORLD, "sft.data")
    assert f"sft.data: {source} is text, which cannot be read as conversations." in told


def test_few_unusable_rows_are_counted_by_reason_and_many_are_refused(write):
    good = [chat(f"Q{i}?") for i in range(300)]
    bad = [chat("Q?", ""), chat("Q?", " "), {"messages": []}]
    loaded = load_conversations(blocks(write("a.jsonl", good + bad)), WORLD, "sft.data")
    assert loaded.skipped == {"a message is empty": 2, "there are no messages": 1}
    assert len(loaded.train) + len(loaded.validation) == 300
    source = write("b.jsonl", good[:200] + bad)
    told = problem_of(load_conversations, blocks(source), WORLD, "sft.data")
    assert f"sft.data: {source}: 3 of 203 rows cannot be used." in told
    assert f"2 rows: a message is empty (first at {source}:201)" in told


def test_a_source_may_allow_more_unusable_rows(write):
    rows = [*(chat(f"Q{i}?") for i in range(200)), *(chat("Q?", "") for _ in range(50))]
    source = write("a.jsonl", rows)
    assert "50 of 250 rows" in problem_of(load_conversations, blocks(source, max_skipped=0.19), WORLD, "k")
    check_rows("conversations", blocks(source, max_skipped=0.2), "k")
    loaded = load_conversations(blocks(source, max_skipped=0.2), WORLD, "k")
    assert len(loaded.train) + len(loaded.validation) == 200
    [said] = loaded.report.sources
    assert said.line() == (
        f"k: {source} read as messages: 250 rows, 50 left out (50: a message is empty, first at {source}:201)"
    )


def test_each_file_of_a_folder_is_recognised_by_itself(write, tmp_path):
    (tmp_path / "all").mkdir()
    write("all/a.jsonl", [chat(f"Q{i}?") for i in range(60)])
    write("all/b.jsonl", [{"question": f"R{i}?", "answer": "Yes."} for i in range(60)])
    loaded = load_conversations(blocks(f"{tmp_path}/all"), WORLD, "k")
    assert len(loaded.train) + len(loaded.validation) == 120
    assert loaded.report.sources[0].line() == (
        f"k: {tmp_path}/all read as messages and question_answer: 120 rows, 0 left out"
    )


@pytest.mark.parametrize("field", ["tools", "functions"])
def test_rows_of_prompts_that_have_tools_are_counted(write, capsys, field):
    rows = [{**chat(f"Q{i}?"), field: [{"name": "f"}] if i < 7 else []} for i in range(60)]
    source = write("a.jsonl", rows)
    load_prompts(blocks(source), WORLD, "ppo.data").report.say()
    assert capsys.readouterr().err.splitlines() == [
        f"ppo.data: {source} read as messages: 60 rows, 0 left out",
        f"ppo.data: 7 rows of {source} have tools, which a chat template without tools leaves out",
    ]


# ---- how often a row is read ----


def test_a_weight_sets_how_often_training_rows_are_read_and_the_order_of_rows_does_not_matter(write):
    rows = [chat(f"Q{i}?", f"A{i}.") for i in range(2000)]
    for weight in (0.3, 1.0, 2.25):
        loaded = load_conversations(blocks(write("a.jsonl", rows), weight=weight), WORLD, "k")
        turned = load_conversations(blocks(write("b.jsonl", rows[::-1]), weight=weight), WORLD, "k")
        times = Counter(map(prompt_key, loaded.train))
        assert times == Counter(map(prompt_key, turned.train))
        assert set(times.values()) <= {int(weight), int(weight) + 1}
        plain = load_conversations(blocks(write("a.jsonl", rows)), WORLD, "k")
        assert len(loaded.train) == pytest.approx(weight * len(plain.train), rel=0.1)
        assert loaded.validation == plain.validation


def test_rankings_and_prompts_have_weights_too(write):
    pairs = write("p.jsonl", [{"prompt": f"Q{i}?", "chosen": "a", "rejected": "b"} for i in range(60)])
    one, three = blocks(pairs), blocks(pairs, weight=3)
    for load in (load_rankings, load_prompts):
        loaded = load(three, WORLD, "k")
        assert len(loaded.train) == 3 * len(load(one, WORLD, "k").train)
        assert loaded.validation == load(one, WORLD, "k").validation
    built_in = load_prompts(BUILT_IN, WORLD, "k")
    assert len(load_prompts(blocks("pocketworld", weight=2), WORLD, "k").train) == 2 * len(built_in.train)


# ---- streams ----


def test_a_stream_holds_neither_the_file_nor_its_rows(write):
    source = write("a.jsonl", [chat(f"Q{i}?", "long " * 400) for i in range(10_000)])
    size = Path(source).stat().st_size
    for read in (
        lambda: Counter(side for _, side in stream_conversations(blocks(source), WORLD, "k", Report())),
        lambda: check_rows("conversations", blocks(source), "k"),
    ):
        tracemalloc.start()
        read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < size / 3


def test_a_stream_is_what_the_lists_are_made_of_and_fills_its_report(write):
    source = write("a.jsonl", [*(chat(f"Q{i}?") for i in range(300)), chat("Q?", "")])
    report = Report()
    read = list(stream_conversations(blocks(source, weight=1.5), WORLD, "k", report))
    loaded = load_conversations(blocks(source, weight=1.5), WORLD, "k")
    assert [item for item, split in read if split == "train"] == loaded.train
    assert [item for item, split in read if split == "validation"] == loaded.validation
    assert report == loaded.report
    assert report.skipped == {"a message is empty": 1}


def test_a_limit_ends_the_reading_once_both_sides_have_it(write):
    source = write("a.jsonl", [chat(f"Q{i}?") for i in range(2000)])
    report = Report()
    list(stream_conversations(blocks(source, limit=3), WORLD, "k", report))
    assert report.sources[0].rows < 200


def test_too_little_data_is_refused(write):
    source = write("a.jsonl", [chat("Q?"), chat("Q?")])
    told = f"sft.data = {source} holds too little: "
    assert told in problem_of(load_conversations, blocks(source), WORLD, "sft.data")
    assert told in problem_of(check_rows, "conversations", blocks(source), "sft.data")
    check_rows("conversations", [*blocks(source), *BUILT_IN], "sft.data")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_a_character_is_a_bad_row(write, name):
    rows = [chat(f"Q{i}?") for i in range(300)]
    loaded = load_conversations(blocks(write(name, [*rows, chat("Q?", "\ud800"), chat("Q?", "😀")])), WORLD, "k")
    assert loaded.skipped == {"a text holds half a character, a lone surrogate": 1}
    assert len(loaded.train) + len(loaded.validation) == 301


def test_a_fingerprint_changes_with_what_a_file_holds_and_how_much_is_used(write):
    source = write("a.jsonl", [chat("Q?")])
    before = data_fingerprints(blocks(source), "k")
    assert data_fingerprints(blocks(source), "k") == before
    assert data_fingerprints(blocks(source, limit=3), "k") != before
    assert data_fingerprints(blocks(source, format="messages"), "k") != before
    write("a.jsonl", [chat("R?")])
    assert data_fingerprints(blocks(source), "k") != before


def test_the_built_in_world_is_the_same_each_time_and_tests_on_other_people():
    conversations = load_conversations(BUILT_IN, WORLD, "k")
    assert len(conversations.train) + len(conversations.validation) == 100
    prompts = load_prompts(BUILT_IN, WORLD, "k")
    assert not {prompt_key(p) for p in prompts.train} & {prompt_key(p) for p in prompts.validation}
    assert prompts != load_prompts(BUILT_IN, Recipe(pocketworld={"people": 40, "seed": 1}).worlds, "k")


def test_the_built_in_world_has_no_rankings():
    for check in (
        lambda: load_rankings(BUILT_IN, WORLD, "rm.data"),
        lambda: check_rows("rankings", BUILT_IN, "rm.data"),
    ):
        assert "rm.data: a built-in world has no rankings" in problem_of(check)


def test_missing_data_is_named_by_its_key(tmp_path):
    for check in (check_sources, lambda given, key: check_rows("prompts", given, key)):
        assert "ppo.data is not given" in problem_of(check, None, "ppo.data")
        assert "ppo.data is not given" in problem_of(check, [], "ppo.data")
        missing = str(tmp_path / "no.jsonl")
        assert f"ppo.data: there is no file {missing}" in problem_of(check, blocks(missing), "ppo.data")
    check_sources(BUILT_IN, "ppo.data")


def test_a_check_reads_every_row_of_every_file_before_anything_starts(write):
    good = write("a.jsonl", [chat(f"Q{i}?") for i in range(60)])
    check_rows("conversations", blocks("pocketworld", good), "sft.data")
    late = write("b.jsonl", f"{json.dumps(chat('Q?'))}\n{{oops\n")
    told = problem_of(check_rows, "conversations", blocks(good, late), "sft.data")
    assert f"sft.data: {late}: 1 of 2 rows cannot be used." in told
    assert f"1 row: this line is not JSON (first at {late}:2, Expecting property name" in told
    told = problem_of(check_rows, "rankings", blocks(good), "rm.data")
    assert f"rm.data: {good} is messages, which cannot be read as rankings." in told


def test_data_with_the_built_in_world_in_it_is_distinguished_from_other_data():
    assert worlds_read(blocks("a.txt", "pocketworld", "pocketworld")) == ["pocketworld"]
    assert worlds_read(blocks("pocketworld.txt")) == []
    assert worlds_read(None) == []
    assert only_world(blocks("pocketworld", "pocketworld")) == "pocketworld"
    assert only_world(blocks("a.txt", "pocketworld")) is None
    assert only_world(None) is None
