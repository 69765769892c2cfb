"""T7: with a learning rate of 0 nothing moves: ratio 1, no KL between old and new policy, none to the reference."""

import pytest
import tiny
import torch

from sampled_logprobs import recorded_logprobs


def check_nothing_moves(folder):
    """The models have GPT-2's dropout of 0.1, which would make ratios random if it were left on."""
    for line in lines_without_learning(folder):
        for name in ("val/ratio", "val/ratio_first", "val/ratio_max"):
            assert line[name] == pytest.approx(1, abs=1e-5)
        assert line["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)
        assert line["policy/k3_avg"] == pytest.approx(0, abs=1e-6)
        assert line["val/ratio_var"] == pytest.approx(0, abs=1e-10)
        assert line["policy/clipfrac_avg"] == 0
        assert line["objective/kl"] == 0
        assert line["objective/rlhf_reward"] == line["objective/scores"]


def lines_without_learning(folder):
    ppo = tiny.trainer(folder, learning_rate=0.0, temperature=0.7, total_episodes=48)
    ppo.train()
    lines = tiny.logged_iterations(ppo)
    assert len(lines) == 3
    return lines


def check_sampler_is_what_is_trained(folder):
    """Old log-probs come from the training forward pass; those of sampling are the same numbers, at any temperature."""
    ppo = tiny.trainer(folder, temperature=0.7)
    with recorded_logprobs() as drawn:
        experience = tiny.make_experience(ppo)
    sampled = torch.tensor([logprob for place in range(len(drawn)) for logprob in drawn[place]])
    assert sampled.shape == experience.logprobs.shape
    assert (sampled - experience.logprobs).abs().max() < 1e-5


def test_nothing_moves(tmp_path):
    check_nothing_moves(tmp_path)


def test_what_is_sampled_is_what_is_trained(tmp_path):
    check_sampler_is_what_is_trained(tmp_path)
