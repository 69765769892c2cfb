"""Models that are read side by side give what they give one after the other."""

import threading

import pytest
import torch
from torch import nn

from chatpipe.models.side_by_side import side_by_side

CPU = torch.device("cpu")


def made():
    """Two models, and readings of them: an output with and one without gradient, and one output."""
    generator = torch.Generator().manual_seed(0)
    one, other = (nn.Linear(3, 3, dtype=torch.float64) for _ in range(2))
    for parameter in (*one.parameters(), *other.parameters()):
        nn.init.normal_(parameter, generator=generator)
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    return (one, other), [lambda: (one(x).tanh(), one(x).detach()), lambda: (other(x).sigmoid(),)]


def gradients(models, readings):
    (first, constant), (second,) = side_by_side(readings, CPU)
    assert (first.requires_grad, constant.requires_grad, second.requires_grad) == (True, False, True)
    loss = (first * second * constant).sum()
    loss.backward()
    return [loss.detach(), *(parameter.grad for model in models for parameter in model.parameters())]


def test_outputs_and_gradients_are_those_of_one_after_the_other(two_cores):
    side = gradients(*made())
    torch.set_num_threads(1)
    for one, other in zip(side, gradients(*made()), strict=True):
        assert torch.equal(one, other)


def test_readings_meet_each_other(two_cores):
    """Each waits until the other has begun too: one after the other they would wait in vain."""
    barrier = threading.Barrier(2, timeout=20)

    def reading():
        barrier.wait()
        return (torch.tensor(torch.get_num_threads()),)

    with torch.no_grad():
        results = side_by_side([reading, reading], CPU)
    assert [threads.item() for (threads,) in results] == [1, 1]
    assert torch.get_num_threads() == 2


def test_one_thread_or_another_device_reads_one_after_the_other():
    here = []
    for device in (CPU, torch.device("meta")):
        side_by_side([lambda: here.append(threading.current_thread()) or ()] * 2, device)
        torch.set_num_threads(2)
    torch.set_num_threads(1)
    assert set(here) == {threading.current_thread()}


def test_the_callers_modes_hold_in_the_threads(two_cores):
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        results = side_by_side([lambda: (layer(x),)] * 2, CPU)
    assert [(out.dtype, out.requires_grad) for (out,) in results] == [(torch.bfloat16, False)] * 2
    with torch.no_grad():
        assert side_by_side([lambda: (layer(x),)] * 2, CPU)[1][0].dtype == torch.float32


def test_an_error_of_a_reading_reaches_the_caller(two_cores):
    def fails():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        side_by_side([lambda: (torch.zeros(()),), fails], CPU)
    assert torch.get_num_threads() == 2
