"""Embeddings with more rows than the tokenizer has tokens (Qwen, Phi): PPO is the same as without them."""

from math import isfinite

import parts
import pytest
import tiny
import torch
from torch import nn

from chatpipe.checks.model_checks import policy_is_not_reference
from chatpipe.evaluation.policy import sampled_kl
from chatpipe.models.properties import unnamed_ids
from chatpipe.reward.reward_model import score_sequences
from sampled_logprobs import recorded_logprobs

ROWS = tiny.VOCABULARY + 20


def padded(model):
    """The same model with rows behind its vocabulary that it would sample first of all."""
    before = model.transformer.wte.weight.detach().clone()
    model.resize_token_embeddings(ROWS, mean_resizing=False)
    with torch.no_grad():
        model.transformer.wte.weight[: len(before)] = before
        if hasattr(model, "lm_head"):
            model.lm_head.weight = nn.Parameter(torch.cat([before, 5 * before.repeat(3, 1)[: ROWS - len(before)]]))
    return model


def separate(model):
    """With an output head of its own."""
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@pytest.fixture
def trainers(tmp_path):
    """A trainer of a policy with such rows, and one of the same policy without."""
    settings = {"temperature": 0.7, "learning_rate": 0.3, "total_episodes": 48, "optim": "sgd"}
    made = [
        {"model": padded(separate(tiny.policy())), "reward_model": padded(tiny.random_reward_model())},
        {"model": separate(tiny.policy()), "reward_model": tiny.random_reward_model()},
    ]
    return [parts.trainer(tmp_path, settings, **models) for models in made]


def test_rows_that_no_token_has_change_nothing(trainers):
    """The same completions, log-probs, entropies, gradients and weights after training, and no gradient of the rows."""
    with_rows, without = trainers
    head = with_rows.model.policy.lm_head.weight[tiny.VOCABULARY :].detach().clone()
    made = [tiny.make_experience(ppo) for ppo in trainers]
    assert made[0].sequences.ids.tolist() == made[1].sequences.ids.tolist()
    assert made[0].sequences.ids.max() < tiny.VOCABULARY
    for name in ("logprobs", "ref_logprobs", "values", "advantages"):
        torch.testing.assert_close(getattr(made[0], name), getattr(made[1], name))
    for ppo in trainers:
        ppo.train()
    logged = [tiny.logged_iterations(ppo)[-1] for ppo in trainers]
    for name in ("objective/kl", "objective/entropy", "policy/approxkl_avg", "val/ratio_first", "loss/policy_avg"):
        assert logged[0][name] == pytest.approx(logged[1][name], abs=1e-5), name
    weights = parts.weights(with_rows.model.policy)
    for name, expected in without.model.policy.state_dict().items():
        torch.testing.assert_close(weights[name][: len(expected)], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights["lm_head.weight"][tiny.VOCABULARY :], head)  # there is no weight decay


def test_logprobs_are_those_of_the_distribution_that_is_sampled(trainers):
    with_rows, _ = trainers
    with recorded_logprobs() as sampled:
        made = tiny.make_experience(with_rows)
    drawn = torch.tensor([logprob for place in sorted(sampled) for logprob in sampled[place]])
    torch.testing.assert_close(made.logprobs, drawn, rtol=1e-4, atol=1e-4)


def test_start_check_and_kl_leave_the_rows_out_too(trainers):
    with_rows, without = trainers
    params, other = with_rows.model.sampling(6), tiny.policy(seed=3)
    models = with_rows.model.policy, padded(separate(other))
    assert policy_is_not_reference(models[0], models[0], tiny.PROMPTS, params, [tiny.EOS]) is None
    cut = without.model.policy, separate(tiny.policy(seed=3))
    both = [sampled_kl(*pair, tiny.PROMPTS, params, [tiny.EOS], seed=0) for pair in (models, cut)]
    assert both[0] == pytest.approx(both[1], rel=1e-4)
    assert both[0] > 0.1


def test_a_reward_model_needs_no_more_rows_than_the_tokenizer_has_tokens(tmp_path):
    ppo = parts.trainer(tmp_path, model=padded(tiny.policy()), reward_model=tiny.random_reward_model())
    ppo.train()
    assert all(isfinite(line["objective/scores"]) for line in tiny.logged_iterations(ppo))
    assert ppo.state.global_step == ppo.state.max_steps


def test_ids_without_a_token_may_lie_between_others():
    tokenizer = tiny.tokenizer()
    assert unnamed_ids(tokenizer) == (range(12, 2**31),)
    tokenizer.add_tokens(["more"])
    assert unnamed_ids(tokenizer) == (range(13, 2**31),)


def test_a_completion_ends_at_each_token_that_ends_answers(tmp_path):
    """generation_config.json may name several; `stop_token_id` takes the place of all."""
    model = tiny.policy()
    model.generation_config.eos_token_id = [tiny.EOS, tiny.PAD, 5]  # 5 is an ordinary word
    ppo = parts.trainer(tmp_path, {"total_episodes": 64, "batch_size": 64, "response_length": 20}, model=model)
    made = tiny.make_experience(ppo).sequences
    last = [(ids[-1], ended) for ids, ended in zip(made.completions(), made.ended.tolist(), strict=True)]
    assert {token for token, ended in last if ended} == {tiny.EOS, tiny.PAD}
    assert all(not {tiny.EOS, tiny.PAD} & set(ids[:-1]) for ids in made.completions())
    one = parts.trainer(tmp_path, {"stop_token_id": tiny.EOS}, model=model)
    assert one.end_tokens == [tiny.EOS]


def test_reward_models_read_the_same_end_whichever_it_was(tmp_path):
    """The score behind another end was never trained, and a policy would find the one that pays most."""
    model = tiny.policy()
    model.generation_config.eos_token_id = [tiny.EOS, tiny.PAD]
    ppo = parts.trainer(tmp_path, {"total_episodes": 64, "batch_size": 64, "missing_eos_penalty": None}, model=model)
    rollout = ppo.rollout([ppo.prompts[i % 5] for i in range(64)], seed=1)
    written, ended = rollout.sequences.completions(), rollout.sequences.ended.tolist()
    assert {ids[-1] for ids, has_ended in zip(written, ended, strict=True) if has_ended} == {tiny.EOS, tiny.PAD}
    answers = [[*ids[:-1], tiny.EOS] if has_ended else ids for ids, has_ended in zip(written, ended, strict=True)]
    rows = [[*tiny.PROMPTS[i % 5], *ids] for i, ids in enumerate(answers)]
    torch.testing.assert_close(rollout.scores, score_sequences(ppo.reward_model, rows))
