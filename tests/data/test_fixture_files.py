"""Files in the shapes that real projects publish (tests/fixtures), read as they are and counted plainly."""

import json
from pathlib import Path

import pytest

from chatpipe.data.datasets import Splits, load_conversations, load_prompts, load_rankings
from chatpipe.data.documents import RawText
from chatpipe.data.row_files import split_of
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def load(loader, name: str) -> Splits:
    return loader([DataBlock(source=str(FIXTURES / name), max_skipped=0.1)], {}, "data")


def rows_of(name: str) -> list[dict]:
    text = (FIXTURES / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line]


def count(loaded: Splits) -> int:
    return len(loaded.train) + len(loaded.validation)


def documents(name: str, **more: object) -> tuple[list[str], list[str]]:
    """The documents of a file: the train and the validation split."""
    sides: tuple[list[str], list[str]] = ([], [])
    block = DataBlock(source=str(FIXTURES / name), **more)
    text = ""
    for piece in RawText(block, {}, "data").pieces():
        text += piece.text
        if piece.ends:
            sides[piece.split == "validation"].append(text)
            text = ""
    return sides


@pytest.mark.parametrize("name", ["play.txt", "wiki.txt"])
def test_running_text_is_whole_with_its_last_tenth_for_validation(name):
    [train], [validation] = documents(name)
    text = (FIXTURES / name).read_text(encoding="utf-8")
    assert train + validation == text
    assert train.endswith("\n")
    assert len(text) / 25 < len(validation) <= len(text) / 10  # an article a line in one of them


def test_articles_a_line_each():
    train, validation = documents("wiki.txt", document="line")
    lines = [line for line in (FIXTURES / "wiki.txt").read_text(encoding="utf-8").split("\n") if line.strip()]
    assert sorted(train + validation) == sorted(lines)
    assert validation == [line for line in lines if split_of(line) == "validation"]


def test_web_text():
    train, validation = documents("c4.jsonl")
    assert sorted(train + validation) == sorted(row["text"] for row in rows_of("c4.jsonl"))
    assert len(train + validation) == 12


def test_questions_and_answers_as_text():
    train, validation = documents("gsm8k.jsonl", columns={"text": ["question", "answer"]})
    rows = rows_of("gsm8k.jsonl")
    assert sorted(train + validation) == sorted(f"{row['question']}\n{row['answer']}" for row in rows)


@pytest.mark.parametrize(
    ("name", "form", "rows", "loaders"),
    [
        ("alpaca.json", "alpaca", 45, (load_conversations, load_prompts)),
        ("gsm8k.jsonl", "question_answer", 24, (load_conversations, load_prompts)),
        ("dpo.json", "pairs", 12, (load_conversations, load_rankings, load_prompts)),
        ("hh_harmless.jsonl", "pairs", 48, (load_conversations, load_rankings, load_prompts)),
        ("rankings_k4.jsonl", "rankings", 20, (load_conversations, load_rankings, load_prompts)),
    ],
)
def test_every_file_is_recognised_and_every_row_is_read_or_counted(name, form, rows, loaders):
    assert len(rows_of(name)) == rows
    for loader in loaders:
        loaded = load(loader, name)
        [said] = loaded.report.sources
        assert (said.formats, said.rows) == ([form], rows)
        assert said.skipped.reasons.total() == (4 if name.startswith("hh") else 0)
        if loader is not load_prompts:  # which are different ones
            assert count(loaded) == rows - said.skipped.reasons.total()


@pytest.mark.parametrize("name", ["c4.jsonl", "wiki.txt", "play.txt"])
def test_raw_text_is_no_conversation(name):
    with pytest.raises(UsageError) as caught:
        load(load_conversations, name)
    assert "text" in caught.value.message
    assert "pretrain.data" in caught.value.hint


@pytest.mark.parametrize("name", ["alpaca.json", "gsm8k.jsonl"])
def test_conversations_are_no_rankings(name):
    with pytest.raises(UsageError, match="which cannot be read as rankings"):
        load(load_rankings, name)


def test_alpaca_instructions():
    loaded = load(load_conversations, "alpaca.json")
    rows = rows_of("alpaca.json")
    assert count(loaded) == len(rows) == 45
    assert loaded.skipped == {}
    answers = {conversation[-1]["content"] for conversation in loaded.train + loaded.validation}
    assert answers == {row["output"] for row in rows}
    with_input = sum(bool(row["input"]) for row in rows)
    asked = [conversation[0]["content"] for conversation in loaded.train + loaded.validation]
    assert sum(question not in {row["instruction"] for row in rows} for question in asked) == with_input


def test_sharegpt_pairs():
    loaded = load(load_rankings, "dpo.json")
    rows = rows_of("dpo.json")
    assert count(loaded) == len(rows) == 12
    read = {(ranking.responses[0], len(ranking.prompt)) for ranking in loaded.train + loaded.validation}
    assert read == {(row["chosen"]["value"], len(row["conversations"])) for row in rows}


def test_rankings_of_four():
    loaded = load(load_rankings, "rankings_k4.jsonl")
    rankings = loaded.train + loaded.validation
    assert count(loaded) == len(rows_of("rankings_k4.jsonl")) == 20
    assert {len(ranking.responses) for ranking in rankings} == {4}
    assert sum(len(set(ranking.ranks)) == 1 for ranking in rankings) == 2


def test_pairs_with_the_dialogue_inside_the_text():
    rows = rows_of("hh_harmless.jsonl")
    cut = [(row["chosen"].rpartition("\n\nAssistant:"), row["rejected"].rpartition("\n\nAssistant:")) for row in rows]
    differing = sum(chosen[0] != rejected[0] for chosen, rejected in cut)
    empty = sum(
        chosen[0] == rejected[0] and not (chosen[2].strip() and rejected[2].strip()) for chosen, rejected in cut
    )
    assert (len(rows), differing, empty) == (48, 2, 2)
    loaded = load(load_rankings, "hh_harmless.jsonl")
    assert loaded.skipped == {"chosen and rejected have different prompts": differing, "an answer is empty": empty}
    assert loaded.report.sources[0].skipped.first == {
        "an answer is empty": f"{FIXTURES}/hh_harmless.jsonl:17",
        "chosen and rejected have different prompts": f"{FIXTURES}/hh_harmless.jsonl:29",
    }
    assert count(loaded) == len(rows) - differing - empty
    read = {tuple(ranking.responses) for ranking in loaded.train + loaded.validation}
    assert read <= {(chosen[2].strip(), rejected[2].strip()) for chosen, rejected in cut}


def test_the_chosen_side_of_pairs_as_conversations():
    rows = rows_of("hh_harmless.jsonl")
    loaded = load(load_conversations, "hh_harmless.jsonl")
    assert count(loaded) == len(rows) - 4
    assert loaded.skipped == {"chosen and rejected have different prompts": 2, "an answer is empty": 2}
    answers = [conversation[-1]["content"] for conversation in loaded.train + loaded.validation]
    assert set(answers) <= {row["chosen"].rpartition("\n\nAssistant:")[2].strip() for row in rows}


def test_prompts_of_pairs_are_different_ones():
    loaded = load(load_prompts, "hh_harmless.jsonl")
    prompts = {json.dumps(prompt) for prompt in loaded.train + loaded.validation}
    ranked = load(load_rankings, "hh_harmless.jsonl")
    assert count(loaded) == len(prompts)
    assert prompts == {json.dumps(ranking.prompt) for ranking in ranked.train + ranked.validation}


def test_questions_and_answers():
    loaded = load(load_conversations, "gsm8k.jsonl")
    said = {tuple(message["content"] for message in conversation) for conversation in loaded.train + loaded.validation}
    assert said == {(row["question"], row["answer"]) for row in rows_of("gsm8k.jsonl")}
    assert count(loaded) == len(rows_of("gsm8k.jsonl")) == 24
    assert loaded.skipped == {}


def test_more_unusable_rows_than_a_block_allows_stop_it():
    with pytest.raises(UsageError) as caught:
        load_rankings([DataBlock(source=str(FIXTURES / "hh_harmless.jsonl"))], {}, "rm.data")
    assert "4 of 48 rows cannot be used" in caught.value.message
    assert f"{FIXTURES}/hh_harmless.jsonl:17" in caught.value.message
    assert "max_skipped" in caught.value.hint
