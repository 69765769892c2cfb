"""The ppo stage scores answers to validation prompts, also those that were cut off, as training does."""

import pytest
import torch

from chatpipe.data.chat_template import encode_prompt
from chatpipe.data.datasets import load_conversations, load_prompts
from chatpipe.evaluation.answers import evaluate_answers
from chatpipe.generation import SamplingParams
from chatpipe.models.pretrained import load_causal_model, load_reward_model, load_tokenizer
from chatpipe.recipe import load_recipe
from chatpipe.run.steps import step_of
from chatpipe.stages.ppo import prepare
from chatpipe.stages.ppo_rewards import answer_rewards, load_rewards
from chatpipe.stages.shared import answering, longest_answer, oracle_of, validation_prompts


@pytest.fixture(scope="module")
def answered(tiny_run):
    """The shared run's ppo stage, its tokenizer and rewards, prompts, and sft's answers: most are cut off."""
    recipe = load_recipe(str(tiny_run.recipe), ["evaluation.max_new_tokens=9"]).recipe
    step = step_of(recipe, "ppo")
    tokenizer, policy = load_tokenizer(step.models["model"]), load_causal_model(step.models["model"])
    validation = load_prompts(step.data["ppo.data"], recipe.worlds, "ppo.data").validation
    params = SamplingParams(9, recipe.evaluation.temperature)
    prompts = validation_prompts(step, tokenizer, validation, policy.config.max_position_embeddings, 9)
    evaluated = evaluate_answers(policy, tokenizer, prompts, params, recipe.seed, oracle_of(step))
    assert len({answer.ended for answer in evaluated.answers}) == 2
    return step, tokenizer, load_rewards(step, tokenizer), prompts, evaluated


def test_the_oracle_of_training_agrees_with_the_one_of_the_evaluation(answered):
    _, _, rewards, prompts, evaluated = answered
    columns = torch.zeros(len(prompts), 1)
    texts, ended = ([getattr(answer, name) for answer in evaluated.answers] for name in ("text", "ended"))
    _, named = rewards.score(columns, prompts, texts, ended)
    assert named["objective/oracle"].tolist() == pytest.approx([rating.score for rating in evaluated.ratings])


@torch.no_grad()
@pytest.mark.parametrize("how, penalised", [("subtract", lambda score: score - 2.0), ("replace", lambda score: -2.0)])
def test_answers_are_scored_as_they_were_written_and_cut_off_ones_penalised(answered, how, penalised):
    step, tokenizer, rewards, prompts, evaluated = answered
    section = step.recipe.ppo.model_copy(update={"missing_eos": how, "missing_eos_penalty": 2.0})
    step = step_of(step.recipe.model_copy(update={"ppo": section}), "ppo")
    model = load_reward_model(step.models["reward_model"]).eval()
    scores = answer_rewards(step, rewards, tokenizer, prompts, evaluated.answers)
    assert set(scores) == {"reward"}
    for prompt, answer, score in zip(prompts, evaluated.answers, scores["reward"], strict=True):
        assert (answer.ids[-1] == tokenizer.eos_token_id) is answer.ended
        ids = torch.tensor([encode_prompt(tokenizer, prompt) + answer.ids])
        said = model(ids).logits.item() - model.config.chatpipe_reward_offset
        assert score == pytest.approx(said if answer.ended else penalised(said), abs=1e-4)


def test_completions_may_be_as_long_as_most_answers_in_the_data(tiny_run):
    words = [f"{key}=null" for key in ("ppo.response_length", "sample.max_new_tokens", "evaluation.max_new_tokens")]
    recipe = load_recipe(str(tiny_run.recipe), words).recipe
    prepared = prepare(step_of(recipe, "ppo"))
    answers = load_conversations(recipe.sft.data, recipe.worlds, "sft.data").validation
    lengths = [
        len(prepared.tokenizer(turns[-1]["content"], add_special_tokens=False)["input_ids"]) for turns in answers
    ]
    longest = prepared.response_length
    assert 1 < longest < prepared.context // 2
    assert sum(length < longest for length in lengths) >= 0.95 * len(lengths)  # with its end each is one longer
    assert longest - 1 in lengths
    assert answering(step_of(recipe, "ppo"), prepared.tokenizer, prepared.context).max_new_tokens == longest
    model = prepared.policy.config
    assert longest_answer(step_of(recipe, "sample"), None, prepared.tokenizer, model.n_positions) == longest
    assert longest_answer(step_of(recipe, "sample"), None, prepared.tokenizer, 8) == 4
