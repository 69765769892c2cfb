import random
import re
from collections import Counter

import pytest

from chatpipe.pocketworld.oracle import Oracle
from chatpipe.pocketworld.questions import KIND_SHARES, STYLE_SHARES, answer, answer_in_style, fragments, understand
from chatpipe.pocketworld.texts import chance_of_guessing, conversations, kinds_of, open_conversation, prompts
from chatpipe.pocketworld.wording import NUMBERS
from chatpipe.pocketworld.world import VALUES, World


@pytest.fixture(scope="module")
def world():
    return World.build(seed=0, people=100)


@pytest.fixture(scope="module")
def sft(world):
    return conversations(world, 4000, seed=0)


def text_of(messages):
    return "\n".join(message["content"] for message in messages)


def test_fine_tuning_states_nothing_about_the_people_of_practice_and_test(world, sft):
    words = set(re.findall(r"\w+", "\n".join(map(text_of, sft))))
    for split in ("practice", "test"):
        assert not words & {person.name for person in world.splits[split]}
        assert not words & {person.pet for person in world.splits[split]}
        assert not words & set(world.strangers[split])


@pytest.mark.parametrize("split", ["practice", "test"])
def test_prompts_are_about_their_own_split_and_end_with_the_user(world, split):
    others = {name for other in {"sft", "practice", "test"} - {split} for name in world.strangers[other]}
    others |= {person.name for person in world.people if person not in world.splits[split]}
    for prompt in prompts(world, split, 600, seed=0):
        assert prompt[-1]["role"] == "user"
        assert [message["role"] for message in prompt] == ["user", "assistant", "user"][-len(prompt) :]
        assert not set(re.findall(r"\w+", text_of(prompt))) & others


def test_prompts_are_different_and_practice_shares_none_with_test(world):
    practice = {text_of(prompt) for prompt in prompts(world, "practice", 2000, seed=0)}
    test = {text_of(prompt) for prompt in prompts(world, "test", 500, seed=0)}
    assert (len(practice), len(test)) == (2000, 500)
    assert not practice & test


def test_a_small_world_gives_the_prompts_it_has():
    found = prompts(World.build(people=8), "test", 3000, seed=0)
    assert 500 < len(found) < 3000
    assert len({repr(messages) for messages in found}) == len(found)


def test_the_wordings_of_the_test_occur_in_fine_tuning(world, sft):
    names = {person.name for person in world.people} | {name for names in world.strangers.values() for name in names}
    blank = names | {value for values in VALUES.values() for value in values} | set(NUMBERS)

    def wording_of(message):
        return re.sub(r"\w+", lambda m: "_" if m[0] in blank else m[0], message["content"])

    taught = {wording_of(message) for messages in sft for message in messages if message["role"] == "user"}
    assert {wording_of(prompt[-1]) for prompt in prompts(world, "test", 500, seed=0)} <= taught


def test_kinds_come_in_their_shares(world):
    counts = Counter(understand(world, prompt).kind for prompt in prompts(world, "test", 400, seed=0))
    assert counts == {kind: round(400 * share) for kind, share in KIND_SHARES.items()}


def test_a_share_of_the_conversations_has_several_turns(sft):
    share = sum(len(messages) > 2 for messages in sft) / len(sft)
    assert 0.2 < share < 0.4
    assert all(
        message["role"] == ("user", "assistant")[i % 2] for messages in sft for i, message in enumerate(messages)
    )


@pytest.mark.parametrize("split", ["sft", "practice", "test"])
def test_every_question_is_understood_as_it_was_meant(world, split):
    rng = random.Random("understand")
    for kind in kinds_of(2000, rng):
        messages, question = open_conversation(world, split, kind, rng)
        understood = understand(world, messages)
        assert (understood.kind, understood.form, understood.numbers) == (
            question.kind,
            question.form,
            question.numbers,
        )
        if kind == "unknown":
            assert understood.person.name == question.person.name
        else:
            assert understood.person == question.person


def test_nearly_all_facts_of_fine_tuning_are_right_and_the_style_is_mixed(world, sft):
    rater = Oracle(world)
    ratings = [rater.rate(messages[:-1], messages[-1]["content"]) for messages in sft]
    rated = [rating.right for rating in ratings if rating.right is not None]
    assert 0.97 < sum(rated) / len(rated) < 0.995
    share = {
        name: sum(bool(getattr(rating, name)) for rating in ratings) / len(ratings)
        for name in ("sentence", "courteous", "rude", "repeats", "rambles")
    }
    assert share["courteous"] == pytest.approx(STYLE_SHARES["courteous"], abs=0.03)
    assert share["rude"] == pytest.approx(STYLE_SHARES["curt"], abs=0.03)
    assert share["repeats"] == pytest.approx(STYLE_SHARES["repetitive"], abs=0.03)
    assert share["rambles"] == pytest.approx(STYLE_SHARES["rambling"], abs=0.03)
    assert 0.65 < share["sentence"] < 0.8


@pytest.mark.parametrize("kind", ["fact", "reverse", "unknown", "counting", "smalltalk"])
def test_the_oracle_prefers_the_better_style_whatever_is_asked(world, kind):
    rater, rng = Oracle(world), random.Random(f"styles {kind}")
    for _ in range(100):
        messages, question = open_conversation(world, "test", kind, rng)
        score = {style: rater.rate(messages, answer_in_style(question, style, rng)).score for style in STYLE_SHARES}
        assert score["courteous"] == 3.0
        assert score["courteous"] > score["plain"] > score["rambling"]
        assert score["plain"] > score["terse"] > score["repetitive"] > 0
        assert score["plain"] > score["curt"] > 0


def test_longer_is_only_a_little_better(world):
    rater, rng = Oracle(world), random.Random("longer")
    longer = pairs = 0
    for kind in kinds_of(2000, rng):
        messages, question = open_conversation(world, "test", kind, rng)
        one, other = (answer(world, question, rng) for _ in range(2))
        gain = rater.rate(messages, one).score - rater.rate(messages, other).score
        if gain and len(one) != len(other):
            pairs += 1
            longer += (gain > 0) == (len(one) > len(other))
    assert pairs > 1000
    assert 0.5 < longer / pairs < 0.65


def test_chance_is_what_the_best_guesser_gets(world):
    rater, rng = Oracle(world), random.Random("guess")
    drawn = [open_conversation(world, "test", kind, rng) for kind in kinds_of(12_000, rng) if kind != "smalltalk"]
    of_form = {}
    for _, question in drawn:
        of_form.setdefault(question.form, []).append(fragments(question)[0])
    commonest = {form: max(set(answers), key=answers.count) for form, answers in of_form.items()}

    def share_right(guess):
        return sum(bool(rater.rate(messages, guess(question)).right) for messages, question in drawn) / len(drawn)

    by_form = share_right(lambda question: commonest[question.form])
    constant = share_right(lambda question: "I do not know anyone of that name.")
    assert max(by_form, constant) == pytest.approx(chance_of_guessing(world), abs=0.025)


def test_the_same_seed_makes_the_same_conversations_whatever_the_hash_seed(run_with_hash_seed):
    program = "from chatpipe.pocketworld.texts import *; w = World.build(0, 20); "
    program += "print(conversations(w, 50, 1), prompts(w, 'test', 30, 1))"
    assert run_with_hash_seed(program, 1) == run_with_hash_seed(program, 2)


def test_another_seed_makes_other_conversations_and_prompts(world):
    assert conversations(world, 50, seed=1) == conversations(world, 50, seed=1) != conversations(world, 50, seed=2)
    assert (
        prompts(world, "test", 50, seed=1) == prompts(world, "test", 50, seed=1) != prompts(world, "test", 50, seed=2)
    )
