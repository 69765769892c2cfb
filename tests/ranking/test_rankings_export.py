import json
import os
import random
from dataclasses import replace

import pytest
from datasets import load_dataset
from ranked import item, items, open_store, said, skip, submit

from chatpipe.data.datasets import stream_rows
from chatpipe.data.rankings import Ranking
from chatpipe.data.sources import Report
from chatpipe.ranking.export import pair_rows
from chatpipe.recipe.schema import DataBlock


def read_back(path) -> list[Ranking]:
    """Through the one reader of rankings, both sides of its split."""
    report = Report()
    read = [one for one, _ in stream_rows("rankings", [DataBlock(source=str(path))], {}, "rm.data", report)]
    assert report.skipped == {}
    return read


@pytest.fixture
def listing(listing):
    """All files but those that SQLite keeps next to a store that somebody reads."""
    return lambda: {name: sha for name, sha in listing().items() if not name.startswith("r.db-")}


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def random_items(count: int, rng: random.Random) -> list:
    """Prompts of one or three turns and two to nine responses, with letters from everywhere and line ends in them."""
    letters = "ab é中😀\u2028\n\t\"\\'<&"

    def text() -> str:
        return "x" + "".join(rng.choices(letters, k=rng.randrange(12)))

    found = []
    for number in range(count):
        one = item(f"{number} {text()}", [text() for _ in range(rng.randint(2, 9))], rng.choice([None, 1, 2]))
        found.append(one)
    return found


def random_ranks(k: int, rng: random.Random) -> list[int]:
    drawn = [rng.randrange(k) for _ in range(k)]
    order = sorted(set(drawn))
    return [order.index(value) + 1 for value in drawn]


def test_a_thousand_random_rankings_come_back_as_they_were(chatpipe, work):
    rng = random.Random(0)
    of = random_items(500, rng)
    expected = []
    with open_store(work / "r.db", of) as store:
        for name in ("ada", "bob"):
            store.add_annotator(name, "person")
            for one in of:
                ranks = random_ranks(len(one.responses), rng)
                submit(store, name, one.id, ranks)
                expected.append(Ranking(one.prompt, one.responses, ranks, name, one.round))
    assert chatpipe("rankings", "export", "r.db", "-o", "out/r.jsonl", "--json").object["rows"] == 1000
    assert sorted(map(repr, read_back(work / "out/r.jsonl"))) == sorted(map(repr, expected))


@pytest.fixture
def store(work):
    """Three items of four; one was found all bad, one skipped, one repeated. Still open for writing."""
    first, second, third = items(3, k=4)
    with open_store(work / "r.db", [first, second, third]) as opened:
        opened.add_annotator("ada", "person")
        opened.add_annotator("robot", "program")
        submit(opened, "ada", first.id, [1, 2, 2, 3])
        submit(opened, "robot", first.id, [1, 1, 1, 2])
        submit(opened, "ada", second.id, [1, 1, 1, 1], all_bad=True, flag=True, note="rude")
        skip(opened, "ada", third.id, 4, "not my field")
        submit(opened, "ada", first.id, [2, 1, 1, 1], repeat=True)
        yield opened


def test_repeats_and_skips_stay_in_the_store_and_are_counted(chatpipe, work, store):
    told = chatpipe("rankings", "export", "r.db", "-o", "r.jsonl", "--json").object
    assert told == {
        "out": "r.jsonl",
        "format": "rankings",
        "rows": 3,
        "rankings": 3,
        "annotators": {"ada": 2, "robot": 1},
        "all_bad": 1,
        "all_tied": 1,
        "repeats": 1,
        "skips": {"not my field": 1},
    }
    first, second, _ = store.items
    one, other = ({"prompt": item.prompt, "responses": item.responses} for item in (first, second))
    assert lines(work / "r.jsonl") == [
        {**one, "ranks": [1, 2, 2, 3], "annotator": "ada", "kind": "person"},
        {**one, "ranks": [1, 1, 1, 2], "annotator": "robot", "kind": "program"},
        {**other, "ranks": [1, 1, 1, 1], "annotator": "ada", "kind": "person", "all_bad": True},
    ]
    assert len(read_back(work / "r.jsonl")) == 3


def test_people_read_what_was_written_and_what_was_not(chatpipe, store):
    said = chatpipe("rankings", "export", "r.db", "-o", "r.jsonl")
    assert said.out == ""
    assert said.err.splitlines() == [
        "3 rankings written to r.jsonl, from 3 rankings by 2 annotators, 1 of them all tied",
        "left out: 1 hidden repeats, 1 skips (1: not my field)",
    ]


# ---- pairs ----


def test_pairs_have_margin_group_and_weight():
    one, other = item("A?", ["a", "b", "c", "d"]), item("B?", ["a", "b"])
    rows = pair_rows([said(one, "ada", [2, 1, 2, 3]), said(one, "bob", [1, 1, 1, 2]), said(other, "ada", [2, 1])])
    told = [(row["chosen"][0]["content"], row["rejected"][0]["content"], row["margin"]) for row in rows]
    third = pytest.approx(1 / 3)
    assert told == [
        ("b", "a", third),
        ("a", "d", third),
        ("b", "c", third),
        ("b", "d", pytest.approx(2 / 3)),
        ("c", "d", third),
        *((letter, "d", third) for letter in "abc"),
        ("b", "a", 1),
    ]
    assert [row["weight"] for row in rows] == [*[1 / 8] * 8, 1]
    assert len({row["group_id"] for row in rows[:8]}) == 1
    assert rows[8]["group_id"] != rows[0]["group_id"]


def test_each_prompt_weighs_the_same_whoever_ranked_it_and_in_however_many_items():
    rng = random.Random(1)
    of = [item(f"Question {i % 20}?", [f"{i} {letter}" for letter in "abcdefghi"[: 2 + i % 8]]) for i in range(60)]
    told = [
        said(one, name, random_ranks(len(one.responses), rng))
        for one in of
        for name in ("ada", "bob", "cem")[: 1 + rng.randrange(3)]
    ]
    weights: dict[str, float] = {}
    for row in pair_rows(told):
        assert 0 < row["margin"] <= 1
        weights[row["group_id"]] = weights.get(row["group_id"], 0) + row["weight"]
    assert list(weights.values()) == pytest.approx([1] * 20)


def test_pairs_are_read_by_our_own_reader_and_by_datasets(chatpipe, work, store):
    told = chatpipe("rankings", "export", "r.db", "-o", "p.jsonl", "--pairs", "--json").object
    assert (told["format"], told["rows"], told["rankings"], told["all_tied"]) == ("pairs", 8, 3, 1)
    rows = lines(work / "p.jsonl")
    pairs = read_back(work / "p.jsonl")
    expected = [[row[side][0]["content"] for side in ("chosen", "rejected")] for row in rows]
    assert [pair.responses for pair in pairs] == expected
    assert all(pair.ranks == [1, 2] and pair.prompt == store.items[0].prompt for pair in pairs)
    loaded = load_dataset("json", data_files=str(work / "p.jsonl"), split="train", cache_dir=str(work / "cache"))
    assert loaded.to_list() == rows


def test_pairs_of_a_prompt_weigh_as_much_in_training_whoever_ranked_it(chatpipe, work):
    from chatpipe.data.chat_template import add_chat_template
    from chatpipe.models.new_model import train_tokenizer
    from chatpipe.reward.training_data import encode_rankings

    agreed, contested, alone = of = items(3, k=3)
    with open_store(work / "r.db", of) as store:
        for name in ("ada", "bob"):
            store.add_annotator(name, "person")
            submit(store, name, agreed.id, [1, 2, 3])
        submit(store, "ada", contested.id, [1, 2, 3])
        submit(store, "bob", contested.id, [3, 1, 2])
        submit(store, "ada", alone.id, [1, 2, 3])
    chatpipe("rankings", "export", "r.db", "-o", "p.jsonl", "--pairs")
    tokenizer = train_tokenizer(["Question 0? Answer 0 a. b. c."], 300, 64)
    add_chat_template(tokenizer)
    pairs = read_back(work / "p.jsonl")
    for one in of:
        encoded = encode_rankings(tokenizer, [pair for pair in pairs if pair.prompt == one.prompt], 64).rankings
        assert len(encoded) == 3
        weights = [judgement.weight for ranking in encoded for judgement in ranking.judgements]
        assert sum(weights) == pytest.approx(1)


def test_pairs_train_in_trls_reward_trainer_which_reads_their_margin(chatpipe, work, store):
    from transformers import GPT2Config, GPT2ForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    from chatpipe.data.chat_template import add_chat_template
    from chatpipe.models.new_model import train_tokenizer

    chatpipe("rankings", "export", "r.db", "-o", "p.jsonl", "--pairs")
    pairs = load_dataset("json", data_files=str(work / "p.jsonl"), split="train", cache_dir=str(work / "cache"))
    tokenizer = train_tokenizer(["Question 0? Answer 0 a. b. c. d."], 300, 64)
    add_chat_template(tokenizer)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, num_labels=1,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    args = RewardConfig(
        output_dir=str(work / "trl"), max_steps=1, per_device_train_batch_size=8, report_to="none", use_cpu=True,
        save_strategy="no", logging_steps=1, disable_tqdm=True, bf16=False, max_length=64,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config)
    trainer = RewardTrainer(model=model, args=args, train_dataset=pairs, processing_class=tokenizer)
    assert "margin" in next(iter(trainer.get_train_dataloader()))
    assert trainer.train().global_step == 1


# ---- the file that is written ----


def test_an_earlier_export_of_the_store_is_replaced(chatpipe, work, store):
    for flag in ([], ["--pairs"]):
        name = f"r{len(flag)}.jsonl"
        before = chatpipe("rankings", "export", "r.db", "-o", name, *flag, "--json").object["rows"]
        submit(store, "robot", store.items[1 + len(flag)].id, [1, 2, 3, 4])
        after = chatpipe("rankings", "export", "r.db", "-o", name, *flag, "--json").object["rows"]
        assert after == before + (6 if flag else 1)
        assert len(lines(work / name)) == after


def test_text_that_python_takes_for_line_ends_stays_in_its_line(chatpipe, work):
    ends = "a\u2028b\u2029c\x85d\x1ce\x1df\x1eg\x0bh\x0ci\rj\r\nk"
    one = item(ends, [f"1 {ends}", f"2 {ends}"])
    with open_store(work / "r.db", [one]) as store:
        store.add_annotator("ada", "person")
        submit(store, "ada", one.id, [2, 1])
    for flag in ([], ["--pairs"]):
        for _ in range(2):  # the second one reads the first
            said = chatpipe("rankings", "export", "r.db", "-o", f"r{len(flag)}.jsonl", *flag)
            assert said.code == 0, said.err
    [ranking], [pair] = read_back(work / "r0.jsonl"), read_back(work / "r1.jsonl")
    assert (ranking.prompt, ranking.responses) == (one.prompt, one.responses)
    assert (pair.prompt, pair.responses) == (one.prompt, one.responses[::-1])


@pytest.mark.parametrize(
    "kind", ["rankings", "pairs", "of another annotator", "notes", "bytes", "the store", "folder", "pipe"]
)
def test_what_is_no_export_of_this_store_is_kept(chatpipe, work, store, listing, kind):
    mine, name = work / "mine.jsonl", "mine.jsonl"
    ranked = {"prompt": store.items[0].prompt, "responses": store.items[0].responses, "ranks": [1, 2, 3, 4]}
    content = {
        "rankings": {**ranked, "responses": list("abcd"), "annotator": "ada"},
        "pairs": {"prompt": "A?", "chosen": "a", "rejected": "b"},
        "of another annotator": {**ranked, "annotator": "zoe"},
    }
    if kind == "folder":
        mine.mkdir()
    elif kind == "pipe":  # to read it would wait for ever
        os.mkfifo(mine)
    elif kind == "the store":
        name = "r.db"
    else:
        mine.write_bytes({"notes": b"by hand\n", "bytes": b"\xff\xfe"}.get(kind) or json.dumps(content[kind]).encode())
    before = listing()
    for flag in ([], ["--pairs"]):
        said = chatpipe("rankings", "export", "r.db", "-o", name, *flag)
        assert said.code == 2
        assert f"-o = {name}" in said.err
    assert listing() == before


def test_nothing_to_export_writes_nothing(chatpipe, work, listing):
    of = items(2)
    with open_store(work / "r.db", of) as store:
        store.add_annotator("ada", "person")
        skip(store, "ada", of[0].id, 3, "tired")
    before = listing()
    said = chatpipe("rankings", "export", "r.db", "-o", "r.jsonl")
    assert (said.code, listing()) == (2, before)
    assert "r.db has no rankings to export yet" in said.err
    with open_store(work / "r.db", of) as store:
        submit(store, "ada", of[1].id, [1, 1, 1])
    before = listing()
    said = chatpipe("rankings", "export", "r.db", "-o", "p.jsonl", "--pairs")
    assert (said.code, listing()) == (2, before)
    assert "r.db has 1 rankings, all of them ties, which give no pairs" in said.err


def test_ids_of_ones_own_are_in_both_exports(chatpipe, work):
    first, second = items(2)
    named = [replace(first, own_id="q-1"), replace(second, own_id=7)]
    with open_store(work / "own.db", named) as opened:
        opened.add_annotator("ada", "person")
        for one in named:
            submit(opened, "ada", one.id, [1, 2, 2])
    for flag in ([], ["--pairs"]):
        for _ in range(2):  # the second replaces the first, which is an export of the same store
            assert chatpipe("rankings", "export", "own.db", "-o", "o.jsonl", *flag).code == 0
        assert {row["id"]: row["prompt"] for row in lines(work / "o.jsonl")} == {"q-1": first.prompt, 7: second.prompt}
        assert {ranking.id for ranking in read_back(work / "o.jsonl")} == {"q-1", 7}
        (work / "o.jsonl").unlink()
