import subprocess
import sys

import pytest
import torch
from tiny_tokens import CONTEXT
from tiny_trainer import tiny_trainer
from torch import nn

from chatpipe.training import machine, run_trainer
from chatpipe.training.machine import begin_peak, give_back_freed_memory, peak_memory, used_memory

MB = 2**20
CPU = torch.device("cpu")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a peak cannot be forgotten")


@linux
def test_the_peak_is_the_most_since_it_was_begun():
    begin_peak(CPU)
    before = used_memory(CPU)
    large = torch.ones(200 * MB // 4)
    assert peak_memory(CPU) > before + 190 * MB
    del large
    give_back_freed_memory()  # other tests in this process may have it kept
    begin_peak(CPU)
    assert peak_memory(CPU) < before + 100 * MB


@linux
def test_freed_memory_is_kept_until_it_is_given_back():
    script = """
import torch
from chatpipe.training.machine import used_memory
from chatpipe.training.machine import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
tensors = [torch.ones(2**21) for _ in range(25)]
cpu = torch.device("cpu")
full = used_memory(cpu)
del tensors
kept = used_memory(cpu)
give_back_freed_memory()
print((full - kept) // 2**20, (full - used_memory(cpu)) // 2**20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    at_once, given_back = map(int, done.stdout.split())
    assert at_once < 20 < 180 < given_back


@pytest.mark.parametrize("bias", [False, True])
def test_a_large_model_keeps_no_cast_of_its_weights_for_the_backward_pass(monkeypatch, bias):
    monkeypatch.setattr(machine, "LARGE", 100)
    torch.manual_seed(0)
    model, rows = (
        nn.Sequential(nn.Linear(8, 24, bias=bias), nn.SiLU(), nn.Linear(24, 8, bias=bias)),
        torch.randn(3, 5, 8),
    )

    def loss_kept_and_gradients():
        kept = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda saved: (kept.append(saved), saved)[1], lambda saved: saved),
            torch.autocast("cpu", torch.bfloat16),
        ):
            loss = model(rows).float().square().sum()
        model.zero_grad()
        loss.backward()
        casts = sum(each.dtype == torch.bfloat16 and {*each.shape} == {8, 24} for each in kept)
        return loss.detach(), casts, [weight.grad for weight in model.parameters()]

    plain, casts, gradients = loss_kept_and_gradients()
    assert casts > 0
    machine.train_leanly(model)
    lean, none, same = loss_kept_and_gradients()
    assert none == 0
    assert lean.equal(plain)
    assert all(one.equal(other) for one, other in zip(same, gradients, strict=True))
    assert model(rows).equal(functional_of(model, rows))


def functional_of(model, rows):
    """Without autocast the layers are what they were."""
    for layer in model:
        rows = nn.functional.linear(rows, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(rows)
    return rows


@pytest.mark.parametrize("large, times", [(True, 2 + 2 * 3), (False, 2)])
def test_a_large_model_s_training_gives_memory_back_after_each_micro_batch(tmp_path, monkeypatch, large, times):
    """Every training does so at its beginning and its end."""
    given_back = []
    monkeypatch.setattr(run_trainer, "is_large", lambda model: large)
    monkeypatch.setattr(run_trainer, "give_back_freed_memory", lambda: given_back.append(1))
    trainer = tiny_trainer(tmp_path, max_steps=2, gradient_accumulation_steps=3)
    run_trainer.run_trainer(trainer, trainer.model, "pretrain", tmp_path, CONTEXT, 3)
    assert len(given_back) == times


def test_a_small_model_is_left_alone():
    model = nn.Sequential(nn.Linear(8, 8))
    machine.train_leanly(model)
    assert type(model[0]) is nn.Linear
