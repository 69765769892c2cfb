import random

import pytest
import torch

from chatpipe.data.intervals import wilson_interval
from chatpipe.evaluation.answers import (
    Answer,
    answer_limit,
    answer_metrics,
    answer_prompts,
    oracle_metrics,
    rate_answers,
    share_within,
)
from chatpipe.generation import SamplingParams
from chatpipe.pocketworld.oracle import Oracle
from chatpipe.pocketworld.questions import good_answer, understand
from chatpipe.pocketworld.texts import prompts as draw_prompts
from chatpipe.pocketworld.world import World

PROMPTS = [
    [{"role": "user", "content": "Who is Mara?"}],
    [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Who keeps a goat?"},
    ],
]


def _says_only(model, token_id: int) -> None:
    """Makes the model write one token for ever: its embedding is what the final norm puts out everywhere."""
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        model.transformer.wte.weight[token_id] = 1.0
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)


def test_a_model_that_stops_at_once_gives_empty_answers_that_ended(model, tokenizer):
    _says_only(model, tokenizer.eos_token_id)
    params = SamplingParams(max_new_tokens=5, temperature=0.0)
    assert answer_prompts(model, tokenizer, PROMPTS, params, seed=0) == [Answer("", [tokenizer.eos_token_id], True)] * 2


def test_a_model_that_never_stops_is_cut_off(model, tokenizer):
    [token_id] = tokenizer("a", add_special_tokens=False)["input_ids"]
    _says_only(model, token_id)
    params = SamplingParams(max_new_tokens=5, temperature=0.0)
    assert answer_prompts(model, tokenizer, PROMPTS, params, seed=0) == [Answer("aaaaa", [token_id] * 5, False)] * 2


def test_answers_depend_on_the_seed_alone(model, tokenizer):
    params = SamplingParams(max_new_tokens=8)
    first, again, other = (answer_prompts(model, tokenizer, PROMPTS, params, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_longest_answer_is_that_of_the_data_within_the_context(tokenizer):
    texts = [{"content": "a b"}] * 96 + [{"content": "e f g h", "reasoning_content": "a b c d "}] * 4
    written = "a b", "a b c d e f g h"
    short, long = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in written)
    assert answer_limit(7, tokenizer, [], 10) == 7
    assert answer_limit(None, tokenizer, texts, 1000) == short
    assert answer_limit(None, tokenizer, texts[4:] + texts[-4:], 1000) == long
    assert answer_limit(None, tokenizer, texts[-4:], 8) == 4
    assert answer_limit(None, tokenizer, [], 4096) == 512
    assert answer_limit(None, tokenizer, [], 1) == 1
    assert share_within(short, tokenizer, texts) == 0.96
    assert share_within(long, tokenizer, texts) == 1.0


def test_answer_metrics():
    answers = [Answer("a", [5] * 2, True), Answer("b", [5] * 4, True), Answer("c", [5] * 9, False)]
    assert answer_metrics(answers) == {"eos_share": pytest.approx(2 / 3), "answer_length": 5.0}


def test_oracle_metrics_of_right_and_of_empty_answers():
    world = World.build(seed=1, people=40)
    prompts = draw_prompts(world, "test", 60, seed=1)
    rater, rng = Oracle(world), random.Random(0)
    right = [Answer(good_answer(understand(world, prompt), rng), [], True) for prompt in prompts]
    empty = [Answer("", [], True) for _ in prompts]
    good, bad = (oracle_metrics(rate_answers(rater, prompts, answers)) for answers in (right, empty))
    assert good["right"] == 1.0
    assert bad["right"] == 0.0
    assert good["oracle_score"] > 1 > -1 > bad["oracle_score"]
    questions = sum(understand(world, prompt).kind != "smalltalk" for prompt in prompts)
    assert 0 < questions < 60  # small talk has no right answer
    assert (good["right_low"], good["right_high"]) == wilson_interval(questions, questions)
    assert good["right_by_kind"] == dict.fromkeys(["counting", "fact", "reverse", "unknown"], 1.0)


def test_oracle_hears_whether_the_answer_ended():
    world = World.build(seed=1, people=40)
    prompts = draw_prompts(world, "test", 1, seed=1)
    rater = Oracle(world)
    text = good_answer(understand(world, prompts[0]), random.Random(0))
    [stopped] = rate_answers(rater, prompts, [Answer(text, [], True)])
    [cut] = rate_answers(rater, prompts, [Answer(text, [], False)])
    assert cut.score < stopped.score
