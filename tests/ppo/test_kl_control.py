"""The KL coefficient, the KL term of the loss, and what may not be in the reward."""

import math

import parts
import pytest
import tiny
import torch

from chatpipe.data.sequences import last_index
from chatpipe.errors import UsageError
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.maths import adapted_coefficient, loss_estimate
from chatpipe.recipe.ppo_settings import PpoSettings
from chatpipe.reward.rewards import penalise_missing_eos


@pytest.mark.parametrize(
    "kl, expected",
    [
        (6.0, 0.15),  # at the target it stays
        (6.6, 0.15 * (1 + 0.1 * 64 / 10_000)),  # a tenth above
        (60.0, 0.15 * (1 + 0.2 * 64 / 10_000)),  # far above: clipped
        (0.0, 0.15 * (1 - 0.2 * 64 / 10_000)),
        (-1.0, 0.15 * (1 - 0.2 * 64 / 10_000)),
    ],
)
def test_adapted_coefficient(kl, expected):
    assert adapted_coefficient(0.15, kl, target=6.0, episodes=64, horizon=10_000) == pytest.approx(expected, rel=1e-12)


def test_coefficient_follows_the_controller_and_is_the_one_rewards_are_made_with(tmp_path):
    settings = {"adaptive_kl_target": 0.5, "adaptive_kl_horizon": 64, "total_episodes": 96, "learning_rate": 1e-2}
    ppo = parts.trainer(tmp_path, settings)
    made = tiny.recorded_experience(ppo)
    ppo.train()
    lines = tiny.logged_iterations(ppo)
    expected = 0.05
    for line, experience in zip(lines, made, strict=True):
        assert line["objective/kl_coef"] == pytest.approx(expected, rel=1e-12)
        inner = torch.ones(experience.num_tokens, dtype=torch.bool)
        inner[last_index(experience.sequences.completion_lengths)] = False  # there the score is added
        k1 = experience.logprobs - experience.ref_logprobs
        assert torch.allclose(experience.rewards[inner], -expected * k1[inner], rtol=0, atol=1e-6)
        expected = adapted_coefficient(expected, line["objective/kl"], 0.5, 16, 64)
    assert lines[-1]["objective/kl_coef"] != lines[0]["objective/kl_coef"]


def test_loss_estimates_and_their_gradients():
    logprobs = torch.tensor([-1.0, -2.0, -0.3], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-1.5, -1.0, -0.3], dtype=torch.float64)
    d = (logprobs - ref).detach()
    for estimator, value, gradient in (("k2", d**2 / 2, d), ("k3", (-d).exp() - 1 + d, 1 - (-d).exp())):
        estimate = loss_estimate(logprobs, ref, estimator)
        assert torch.allclose(estimate, value, rtol=0, atol=1e-15)
        assert torch.allclose(torch.autograd.grad(estimate.sum(), logprobs)[0], gradient, rtol=0, atol=1e-15)
        assert (estimate >= 0).all()


def test_k2_has_the_gradient_of_the_kl_at_a_state_and_k3_that_of_the_other_direction():
    torch.manual_seed(0)
    logits, ref_logits = torch.randn(2, 5, dtype=torch.float64)
    logits.requires_grad_()
    log_pi, log_ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    pi = log_pi.exp().detach()  # the share of each action among samples
    for estimator, kl in (
        ("k2", (log_pi.exp() * (log_pi - log_ref)).sum()),
        ("k3", (log_ref.exp() * (log_ref - log_pi)).sum()),
    ):
        ours = torch.autograd.grad((pi * loss_estimate(log_pi, log_ref, estimator)).sum(), logits, retain_graph=True)[0]
        theirs = torch.autograd.grad(kl, logits, retain_graph=True)[0]
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-14), estimator


def test_kl_loss_pulls_the_policy_back(tmp_path):
    kl = {}
    for coef in (None, 5.0):
        term = {} if coef is None else {"kl_loss": "k3", "kl_loss_coef": coef}
        ppo = parts.trainer(tmp_path, {"total_episodes": 64, "kl_coef": 0.0, "learning_rate": 1e-2, **term})
        ppo.train()
        lines = tiny.logged_iterations(ppo)
        kl[coef] = lines[-1]["objective/kl"]
        assert ("loss/kl_avg" in lines[0]) == (coef is not None)
    assert kl[5.0] < 0.5 * kl[None]


def test_penalty_of_a_missing_eos():
    scores, ended = torch.tensor([3.0, 3.0, -4.0]), torch.tensor([True, False, False])
    assert penalise_missing_eos(scores, ended, None).tolist() == [3, 3, -4]
    assert penalise_missing_eos(scores, ended, 1.5).tolist() == [3, 1.5, -5.5]
    assert penalise_missing_eos(scores, ended, 1.5, "replace").tolist() == [3, -1.5, -1.5]
    nan = torch.tensor([math.nan])  # what is replaced is not read
    assert penalise_missing_eos(nan, torch.tensor([False]), 1.0, "replace").tolist() == [-1]


def test_replaced_scores_are_those_that_are_trained_on_and_logged(tmp_path):
    ppo = parts.trainer(tmp_path, {"missing_eos": "replace", "missing_eos_penalty": 7.0, "kl_coef": 0.0})
    made = tiny.make_experience(ppo)
    rewards = torch.stack([row[-1] for row in made.rewards.split(made.sequences.completion_lengths.tolist())])
    expected = torch.where(made.sequences.ended, made.scores, torch.full_like(made.scores, -7.0))
    assert rewards.equal(expected)
    assert {True, False} == set(made.sequences.ended.tolist())
    assert ppo.metrics["objective/scores"] == pytest.approx(expected.mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"missing_eos": "drop"}, "missing_eos = drop: "),
        ({"value_model": "mine"}, "value_model = mine: "),
        ({"kl_loss": "k1", "kl_loss_coef": 0.1}, "kl_loss = k1: "),
        ({"kl_loss": "k2"}, "belong together"),
        ({"kl_loss_coef": 0.1}, "belong together"),
        ({"target_kl": 0.0}, "target_kl = 0.0: "),
        ({"kl_budget": -1.0}, "kl_budget"),
        ({"value_model_learning_rate": 0.0}, "value_model_learning_rate"),
        ({"adaptive_kl_target": 6.0, "kl_coef": 0.0}, "adaptive_kl_target .* kl_coef"),
        ({"adaptive_kl_target": 6.0, "adaptive_kl_horizon": 4}, "adaptive_kl_horizon = 4 is below the 16 completions"),
        ({"value_model_warmup_iterations": 2}, "value_model_warmup_iterations = 2 .* total_episodes"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message) as refused:
        parts.config(tmp_path, **settings)
    assert refused.value.hint


def test_all_settings_that_are_out_of_bounds_are_named(tmp_path):
    with pytest.raises(UsageError) as refused:
        parts.config(tmp_path, kl_coef=-1.0, gamma=2.0, num_ppo_epochs=0)
    lines = refused.value.message.splitlines()
    assert sorted(line.split(" = ")[0] for line in lines) == ["gamma", "kl_coef", "num_ppo_epochs"]
    assert all(name in refused.value.hint for name in ("gamma", "kl_coef", "num_ppo_epochs"))


def test_episodes_follow_from_epochs_over_the_prompts(tmp_path):
    ppo = parts.trainer(tmp_path, {"total_episodes": None, "num_train_epochs": 8})
    assert ppo.args.total_episodes == 8 * len(tiny.PROMPTS)
    assert ppo.args.max_steps == 3 * 4


def test_the_recipe_and_the_config_have_the_same_defaults():
    """But for those that follow from the data, which a trainer does not know, and for the size of a rollout."""
    others = {"total_episodes": None, "response_length": 48, "num_mini_batches": 1}
    for name, field in PpoSettings.model_fields.items():
        if name in others:
            assert PPOConfig.__dataclass_fields__[name].default == others[name], name
            continue
        assert PPOConfig.__dataclass_fields__[name].default == field.default, name


@pytest.mark.parametrize("name, remedy", [("stop_token", "stop_token_id"), ("kl_estimator", "from-trl.md")])
def test_a_setting_of_trl_that_is_gone_is_named(tmp_path, name, remedy):
    with pytest.raises(UsageError, match=f"no setting {name}") as refused:
        parts.config(tmp_path, **{name: "eos"})
    assert remedy in refused.value.hint
