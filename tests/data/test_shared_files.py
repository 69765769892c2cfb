"""Files that real projects publish, read as they are and counted plainly."""

import json
from pathlib import Path

import pytest

from chatpipe.data.datasets import Loaded, load_conversations, load_prompts, load_rankings
from chatpipe.data.documents import RawText
from chatpipe.data.split import split_of
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data files are not at {SHARED}")


def load(loader, name: str) -> Loaded:
    return loader([DataBlock(source=str(SHARED / name))], {}, "data")


def rows_of(name: str) -> list[dict]:
    text = (SHARED / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line]


def count(loaded: Loaded) -> int:
    return len(loaded.train) + len(loaded.validation)


def documents(name: str, **more: object) -> tuple[list[str], list[str]]:
    """The documents of a file to train on, and those held out."""
    sides: tuple[list[str], list[str]] = ([], [])
    block = DataBlock(source=str(SHARED / name), **more)
    text = ""
    for piece in RawText(block, {}, "data").pieces():
        text += piece.text
        if piece.ends:
            sides[piece.split == "validation"].append(text)
            text = ""
    return sides


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "wiki_demo.txt"])
def test_running_text_is_whole_with_its_last_tenth_held_out(name):
    [train], [held_out] = documents(name)
    text = (SHARED / name).read_text(encoding="utf-8")
    assert train + held_out == text
    assert train.endswith("\n")
    assert len(text) / 25 < len(held_out) <= len(text) / 10  # an article a line in one of them


def test_articles_a_line_each():
    train, held_out = documents("wiki_demo.txt", document="line")
    lines = [line for line in (SHARED / "wiki_demo.txt").read_text(encoding="utf-8").split("\n") if line.strip()]
    assert sorted(train + held_out) == sorted(lines)
    assert held_out == [line for line in lines if split_of(line) == "validation"]


def test_web_text():
    train, held_out = documents("c4_demo.jsonl")
    assert sorted(train + held_out) == sorted(row["text"] for row in rows_of("c4_demo.jsonl"))
    assert len(train + held_out) == 300


def test_questions_and_answers_as_text():
    train, held_out = documents("gsm8k_train.jsonl", columns={"text": ["question", "answer"]})
    rows = rows_of("gsm8k_train.jsonl")
    assert sorted(train + held_out) == sorted(f"{row['question']}\n{row['answer']}" for row in rows)


@pytest.mark.parametrize(
    ("name", "form", "rows", "loaders"),
    [
        ("alpaca_en_demo.json", "alpaca", 999, (load_conversations, load_prompts)),
        ("gsm8k_train.jsonl", "question_answer", 7473, (load_conversations, load_prompts)),
        ("gsm8k_test.jsonl", "question_answer", 1319, (load_conversations, load_prompts)),
        ("dpo_en_demo.json", "pairs", 300, (load_conversations, load_rankings, load_prompts)),
        ("hh_rlhf_harmless_test.jsonl", "pairs", 2312, (load_conversations, load_rankings, load_prompts)),
        ("alpaca_eval_ranked_k4.jsonl", "rankings", 600, (load_conversations, load_rankings, load_prompts)),
    ],
)
def test_every_file_is_recognised_and_every_row_is_read_or_counted(name, form, rows, loaders):
    assert len(rows_of(name)) == rows
    for loader in loaders:
        loaded = load(loader, name)
        [said] = loaded.report.sources
        assert (said.formats, said.rows) == ([form], rows)
        assert said.skipped.reasons.total() == (9 if name.startswith("hh") else 0)
        if loader is not load_prompts:  # which are different ones
            assert count(loaded) == rows - said.skipped.reasons.total()


@pytest.mark.parametrize("name", ["c4_demo.jsonl", "wiki_demo.txt", "tinyshakespeare.txt"])
def test_raw_text_is_no_conversation(name):
    with pytest.raises(UsageError) as caught:
        load(load_conversations, name)
    assert "text" in caught.value.message
    assert "pretrain.data" in caught.value.hint


@pytest.mark.parametrize("name", ["alpaca_en_demo.json", "gsm8k_train.jsonl"])
def test_conversations_are_no_rankings(name):
    with pytest.raises(UsageError, match="which cannot be read as rankings"):
        load(load_rankings, name)


def test_alpaca_instructions():
    loaded = load(load_conversations, "alpaca_en_demo.json")
    rows = rows_of("alpaca_en_demo.json")
    assert count(loaded) == len(rows) == 999
    assert loaded.skipped == {}
    answers = {conversation[-1]["content"] for conversation in loaded.train + loaded.validation}
    assert answers == {row["output"] for row in rows}
    with_input = sum(bool(row["input"]) for row in rows)
    asked = [conversation[0]["content"] for conversation in loaded.train + loaded.validation]
    assert sum(question not in {row["instruction"] for row in rows} for question in asked) == with_input


def test_sharegpt_pairs():
    loaded = load(load_rankings, "dpo_en_demo.json")
    rows = rows_of("dpo_en_demo.json")
    assert count(loaded) == len(rows) == 300
    read = {(ranking.responses[0], len(ranking.prompt)) for ranking in loaded.train + loaded.validation}
    assert read == {(row["chosen"]["value"], len(row["conversations"])) for row in rows}


def test_rankings_of_four():
    loaded = load(load_rankings, "alpaca_eval_ranked_k4.jsonl")
    rankings = loaded.train + loaded.validation
    assert count(loaded) == len(rows_of("alpaca_eval_ranked_k4.jsonl")) == 600
    assert {len(ranking.responses) for ranking in rankings} == {4}
    assert sum(len(set(ranking.ranks)) == 1 for ranking in rankings) == 32


def test_pairs_with_the_dialogue_inside_the_text():
    rows = rows_of("hh_rlhf_harmless_test.jsonl")
    cut = [(row["chosen"].rpartition("\n\nAssistant:"), row["rejected"].rpartition("\n\nAssistant:")) for row in rows]
    differing = sum(chosen[0] != rejected[0] for chosen, rejected in cut)
    empty = sum(
        chosen[0] == rejected[0] and not (chosen[2].strip() and rejected[2].strip()) for chosen, rejected in cut
    )
    assert (len(rows), differing, empty) == (2312, 5, 4)
    loaded = load(load_rankings, "hh_rlhf_harmless_test.jsonl")
    assert loaded.skipped == {"chosen and rejected have different prompts": differing, "an answer is empty": empty}
    assert count(loaded) == len(rows) - differing - empty
    read = {tuple(ranking.responses) for ranking in loaded.train + loaded.validation}
    assert read <= {(chosen[2].strip(), rejected[2].strip()) for chosen, rejected in cut}


def test_the_chosen_side_of_pairs_as_conversations():
    rows = rows_of("hh_rlhf_harmless_test.jsonl")
    loaded = load(load_conversations, "hh_rlhf_harmless_test.jsonl")
    assert count(loaded) == len(rows) - 9
    assert loaded.skipped == {"chosen and rejected have different prompts": 5, "an answer is empty": 4}
    answers = [conversation[-1]["content"] for conversation in loaded.train + loaded.validation]
    assert set(answers) <= {row["chosen"].rpartition("\n\nAssistant:")[2].strip() for row in rows}


def test_prompts_of_pairs_are_different_ones():
    loaded = load(load_prompts, "hh_rlhf_harmless_test.jsonl")
    prompts = {json.dumps(prompt) for prompt in loaded.train + loaded.validation}
    ranked = load(load_rankings, "hh_rlhf_harmless_test.jsonl")
    assert count(loaded) == len(prompts)
    assert prompts == {json.dumps(ranking.prompt) for ranking in ranked.train + ranked.validation}


@pytest.mark.parametrize(("name", "rows"), [("gsm8k_train.jsonl", 7473), ("gsm8k_test.jsonl", 1319)])
def test_questions_and_answers(name, rows):
    loaded = load(load_conversations, name)
    said = {tuple(message["content"] for message in conversation) for conversation in loaded.train + loaded.validation}
    assert said == {(row["question"], row["answer"]) for row in rows_of(name)}
    assert count(loaded) == len(rows_of(name)) == rows
    assert loaded.skipped == {}
