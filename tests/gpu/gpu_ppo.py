"""PPOTrainer on the pretended GPU. `test_pretended_gpu.py` runs it in a process that has one."""

import pytest
import tiny
import torch

from chatpipe.ppo import maths


def trained(folder, **options):
    ppo = tiny.trainer(folder, **options)
    ppo.train()
    return ppo


def test_training_gives_the_numbers_of_the_cpu(gpu, tmp_path):
    shown = ("loss", "objective/kl", "grad_norm", "objective/scores")
    lines = [
        [[line[name] for name in shown] for line in tiny.logged_iterations(trained(tmp_path / place, use_cpu=use_cpu))]
        for place, use_cpu in (("cpu", True), ("gpu", False))
    ]
    torch.testing.assert_close(*map(torch.tensor, lines), atol=1e-4, rtol=1e-4)


def test_training_in_bf16_multiplies_and_waits_on_the_gpu_alone(gpu, tmp_path):
    ppo = tiny.trainer(tmp_path, use_cpu=False, bf16=True)
    gpu.reset()
    ppo.train()
    assert tiny.logged_iterations(ppo)
    assert gpu.cpu_share() < 0.01, gpu.flops["cpu"].most_common(5)


def test_a_count_on_the_cpu_is_caught(gpu, tmp_path, monkeypatch):
    """The bug that this had: every PPO run on a GPU ended at its first log line."""
    true = maths.value_loss

    def counted_on_the_cpu(*args):
        loss, statistics = true(*args)
        return loss, {name: value.cpu() for name, value in statistics.items()}

    monkeypatch.setattr(maths, "value_loss", counted_on_the_cpu)
    with pytest.raises(RuntimeError, match="same device"):
        trained(tmp_path, use_cpu=False)
