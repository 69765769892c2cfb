import math
import subprocess
import sys

import pytest
from ranked import item, items, open_store, submit
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2ForSequenceClassification, set_seed

from chatpipe.data.chat_template import add_chat_template
from chatpipe.data.worlds import world_named
from chatpipe.errors import UsageError
from chatpipe.models.new_model import train_tokenizer
from chatpipe.pocketworld.questions import statements, understand
from chatpipe.ranking.history import History
from chatpipe.ranking.items import Item, item_id
from chatpipe.ranking.raters import TOO_LONG, check_rater, load_rater, rank_with_program
from chatpipe.recipe.schema import Pocketworld, Recipe
from chatpipe.reward.reward_model import score_sequences
from chatpipe.reward.training_data import encode_answers

SETTINGS = Recipe(pocketworld=Pocketworld(seed=0, people=16)).worlds
SOURCE = world_named("pocketworld", SETTINGS)
WORLD = SOURCE.world
ORACLE = SOURCE.oracle()


@pytest.fixture(scope="module")
def questions() -> list[Item]:
    """Items of the built-in world: nonsense, the right answer twice, and the right answer with nonsense behind it."""
    found = []
    for prompt in SOURCE.prompts("train")[:60]:
        right = statements(understand(WORLD, prompt))[0]
        responses = ["It is what it is.", right, right, f"{right} It is what it is."]
        found.append(Item(item_id(prompt, responses), prompt, responses))
    return found


@pytest.fixture
def in_store(work):
    """Has a program rank items in a new store, and returns all ranks in it, item by item."""

    def in_store(of, rater, name="r.db", **how):
        with open_store(work / name, of) as store:
            ranked = rank_with_program(store, rater, **{"seed": 0, "worlds": SETTINGS, **how})
            return ranked, [one.ranks for one in store.rankings()]

    return in_store


def ranked_by(scores: list[float]) -> list[int]:
    order = sorted(set(scores), reverse=True)
    return [order.index(score) + 1 for score in scores]


# ---- in the store ----


def test_the_rankings_of_a_program_are_in_the_store_marked_as_such(work, questions):
    with open_store(work / "r.db", questions) as store:
        told = []
        ranked = rank_with_program(store, "pocketworld", seed=0, worlds=SETTINGS, on_ranked=told.append)
        assert ranked.to_json() == {"annotator": "pocketworld", "ranked": 60, "before": 0, "skipped": {}}
        assert told == sorted(told)
        assert told[-1] == 60
        [annotator] = store.annotators()
        assert (annotator.name, annotator.kind) == ("pocketworld", "program")
        found = store.rankings()
    assert [one.item for one in found] == questions
    assert {one.kind for one in found} == {"program"}
    assert {tuple(one.order) for one in found} == {(0, 1, 2, 3)}
    assert not any(one.repeat or one.all_bad or one.flag or one.note for one in found)


@pytest.mark.parametrize("recorded", [1, 2, 7, 40, 59])
def test_interrupted_anywhere_it_ends_the_same(work, questions, in_store, monkeypatch, recorded):
    _, whole = in_store(questions, "pocketworld", "whole.db")
    with open_store(work / "r.db", questions) as store:
        record, calls = History.record, iter(range(recorded))

        def breaking(*given):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return record(*given)

        with monkeypatch.context() as broken:
            broken.setattr(History, "record", breaking)
            with pytest.raises(KeyboardInterrupt):
                rank_with_program(store, "pocketworld", seed=0, worlds=SETTINGS)
    ranked, ranks = in_store(questions, "pocketworld")
    before = recorded // 32 * 32  # a batch of 32 is stored whole or not at all
    assert (ranked.before, ranked.ranked) == (before, 60 - before)
    assert ranks == whole


def test_a_second_time_adds_nothing(work, questions, in_store):
    in_store(questions, "pocketworld")
    with open_store(work / "r.db", questions) as store:
        before = History(store, "pocketworld").steps()
        assert rank_with_program(store, "pocketworld", seed=0, worlds=SETTINGS).before == 60
        assert History(store, "pocketworld").steps() == before


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"temperature": 0.7}, {"worlds": Recipe(pocketworld=Pocketworld(people=17)).worlds}]
)
def test_with_other_settings_it_needs_another_name(questions, in_store, other):
    _, first = in_store(questions, "pocketworld")
    with pytest.raises(UsageError, match="pocketworld has ranked in .*r.db before"):
        in_store(questions, "pocketworld", **other)
    _, both = in_store(questions, "pocketworld", annotator="the other one", **other)
    assert both[::2] == first
    assert len(both) == 120


def test_people_and_programs_have_different_names(work, questions):
    with open_store(work / "r.db", questions) as store:
        store.add_annotator("pocketworld", "person")
        with pytest.raises(UsageError, match="pocketworld is a person, not a program"):
            rank_with_program(store, "pocketworld", seed=0, worlds=SETTINGS)


def test_programs_do_not_take_part_in_the_overlap_of_people(work, questions, in_store):
    in_store(questions, "pocketworld")
    with open_store(work / "r.db", questions) as store:
        store.add_annotator("ada", "person")
        submit(store, "ada", questions[0].id, [1, 2, 3, 4])
        assert store.taken() == {questions[0].id: 1}


# ---- pocketworld ----


def test_without_noise_the_oracle_ranks_by_its_score_and_equal_ones_tie(questions, in_store):
    _, ranks = in_store(questions, "pocketworld", temperature=0.0)
    truth = [[ORACLE.rate(one.prompt, text).score for text in one.responses] for one in questions]
    assert ranks == list(map(ranked_by, truth))


def test_with_noise_it_prefers_as_bradley_and_terry_have_it(questions):
    asked = [(one.prompt, one.responses[:2]) for one in questions]
    expected, found, variance = 0.0, 0, 0.0
    for seed in range(20):
        for (prompt, texts), ranks in zip(
            asked, load_rater("pocketworld", seed, 2.0, SETTINGS).rank(asked), strict=True
        ):
            first, second = (ORACLE.rate(prompt, text).score for text in texts)
            chance = 1 / (1 + math.exp((second - first) / 2.0))
            expected, variance = expected + chance, variance + chance * (1 - chance)
            found += ranks[0] < ranks[1]
    assert abs(found - expected) < 3 * math.sqrt(variance)


def test_the_noise_of_one_item_does_not_depend_on_the_others(questions):
    asked = [(one.prompt, one.responses) for one in questions]
    rater = load_rater("pocketworld", 3, 1.0, SETTINGS)
    assert rater.rank(asked)[::-1] == rater.rank(asked[::-1])
    assert rater.rank(asked) != load_rater("pocketworld", 4, 1.0, SETTINGS).rank(asked)


def test_the_world_and_noise_are_those_of_the_packaged_recipe():
    worlds = Recipe(pocketworld=Pocketworld(people=64)).worlds
    asked = [
        (prompt, ["No.", "Yes.", "Hello."]) for prompt in world_named("pocketworld", worlds).prompts("validation")[:40]
    ]
    given, default = load_rater("pocketworld", 0, 0.3, worlds), load_rater("pocketworld", 0)
    assert (default.made_from, default.temperature) == (given.made_from, 0.3)
    assert default.rank(asked) == given.rank(asked)


def test_what_is_no_question_of_the_world_is_refused(work, questions, in_store):
    with pytest.raises(UsageError, match="cannot score answers to 'Question 0\\?'"):
        in_store(items(2), "pocketworld")


# ---- a reward model ----


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A folder with a reward model of random weights that reads 64 tokens."""
    folder = tmp_path_factory.mktemp("reward")
    set_seed(0)
    tokenizer = train_tokenizer(["Question. Answer a. b. c."], 300, 64)
    add_chat_template(tokenizer)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, num_labels=1,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_a_reward_model_ranks_by_its_scores_and_the_same_text_ties(reward_model, in_store):
    folder, model, tokenizer = reward_model
    of = [item(f"Question {i}?", [f"Answer {i}.", "b", "c", "b"]) for i in range(40)]
    ranked, ranks = in_store(of, str(folder))
    assert (ranked.annotator, ranked.ranked) == (str(folder), 40)
    for one, given in zip(of, ranks, strict=True):
        sequences = encode_answers(tokenizer, one.prompt, one.responses, 64)
        scores = score_sequences(model, sequences).tolist()
        assert given == ranked_by([*scores[:3], scores[1]])
    assert len(set(map(tuple, ranks))) > 1


def test_what_a_reward_model_cannot_read_is_skipped_with_the_reason(reward_model, in_store):
    of = [item("Question 0?", ["a", "b"]), item("Question 1?", ["a", "b " * 100]), item("Question 2?", ["a", "c"])]
    ranked, ranks = in_store(of, str(reward_model[0]))
    assert (ranked.ranked, ranked.skipped) == (2, {TOO_LONG: 1})
    assert ranks[1] == []


def test_a_reward_model_of_nan_is_refused_and_the_store_keeps_nothing(reward_model, tmp_path, in_store, work):
    folder, model, tokenizer = reward_model
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights["score.weight"].fill_(3e38)
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="--rater = .*nan gives NaN or infinity"):
        in_store(items(2), str(tmp_path / "nan"))
    with open_store(work / "r.db", items(2)) as store:
        assert store.rankings() == []


# ---- a function ----


@pytest.fixture
def function(work, monkeypatch, request):
    """Writes a module of reward functions into the working folder, under a name of its own, and returns the name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"rater_{request.node.name.partition('[')[0]}"

    def function(code: str) -> str:
        (work / f"{name}.py").write_text(f"def f(prompts, completions):\n    {code}\n")
        return f"{name}:f"

    return function


def test_a_function_is_given_prompts_and_completions_and_its_numbers_are_ranked(in_store, function):
    rater = function(
        "return [len(text) * (prompt[-1]['content'] != 'B?') for prompt, text in zip(prompts, completions)]"
    )
    of = [item("A?", ["aa", "a", "aaa", "bb"]), item("B?", ["aa", "a"])]
    ranked, ranks = in_store(of, rater)
    assert ranks == [[2, 3, 1, 2], [1, 1]]
    assert ranked.annotator == rater


@pytest.mark.parametrize(
    "code, says",
    [
        ("return [1.0]", "The reward function f returned 1 numbers for 6 completions"),
        ("return 1.0", "The reward function f returned float, not a list"),
        ("return [float('nan')] * len(completions)", "The reward function f returned nan for the completion"),
        ("return [None] * len(completions)", "The reward function f returned None for the completion"),
        ("raise ValueError('no')", "broke off: ValueError: no"),
    ],
)
def test_what_a_function_must_not_do_is_refused_by_its_name(in_store, function, code, says):
    name = function(code)
    sys.modules.pop(name.partition(":")[0], None)
    with pytest.raises(UsageError, match=says):
        in_store(items(2), name)


def test_errors_name_the_key_that_named_the_rater(in_store, function):
    name = function("raise ValueError('no')")
    with pytest.raises(UsageError, match=rf"^\S+\.py:2: --rater = {name} broke off"):
        in_store(items(2), name)
    with pytest.raises(UsageError, match=rf"^\S+\.py:2: rank.rater = {name} broke off"):
        in_store(items(2), name, key="rank.rater")
    with pytest.raises(UsageError, match="^rank.rater = nowhere:f cannot be imported"):
        in_store(items(2), "nowhere:f", key="rank.rater")


@pytest.mark.parametrize(
    "rater, says",
    [
        ("nowhere:f", "--rater = nowhere:f cannot be imported"),
        ("./nothing", "--rater = ./nothing: there is no such folder"),
        (".", "--rater = . is not a model folder"),
    ],
)
def test_a_rater_that_there_is_not_is_refused(work, rater, says):
    with pytest.raises(UsageError, match=says):
        check_rater(rater)


def test_neither_importing_nor_the_oracle_needs_torch(work):
    program = (
        "import sys; from pathlib import Path; from chatpipe.data.worlds import *; "
        "from chatpipe.recipe.schema import Recipe; "
        "from chatpipe.ranking.raters import *; from chatpipe.ranking.items import item_id; "
        "from chatpipe.ranking.store import Store; check_rater('pocketworld'); "
        "world = world_named('pocketworld', Recipe().worlds); "
        "asked = world.prompts('validation')[0], ['Yes.', 'No.']; "
        "store = Store.create_or_open(Path('r.db'), [Item(item_id(*asked), *asked)], 0, 1, 0); "
        "print(rank_with_program(store, 'pocketworld', seed=0).ranked, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]
