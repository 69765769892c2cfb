"""The pretended GPU itself: what it refuses, where the CPU waits, what it counts. Run by `test_pretended_gpu.py`."""

import gc

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss


def on_gpu(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device="cuda")


REFUSED = {
    "two vectors": lambda: on_gpu(3) + torch.ones(3),
    "a vector and a matrix": lambda: on_gpu(2, 3) @ torch.ones(3),
    "scalars that are stacked": lambda: torch.stack([on_gpu(), torch.ones(())]),
    "a scalar on the CPU that is written to": lambda: torch.ones(()).add_(on_gpu()),
    "a GPU index into a CPU tensor": lambda: torch.ones(3)[torch.zeros(1, dtype=torch.long, device="cuda")],
    "token ids on the CPU": lambda: nn.Embedding(4, 2, device="cuda")(torch.zeros(1, dtype=torch.long)),
    "a loss with labels on the CPU": lambda: mse_loss(on_gpu(3), torch.ones(3)),
    "values on the CPU that are put into the GPU": lambda: on_gpu(3).index_put_((torch.tensor([1]),), torch.ones(1)),
}
ACCEPTED = {
    "a scalar on the CPU": lambda: on_gpu(3) * torch.tensor(2.0),
    "a number": lambda: on_gpu(3) * 2,
    "a copy": lambda: on_gpu(3).copy_(torch.zeros(3)),
    "an index on the CPU": lambda: on_gpu(3)[torch.tensor([0, 1])],
}


@pytest.mark.parametrize("mix", REFUSED.values(), ids=REFUSED)
def test_mixed_devices_are_refused(mix):
    with pytest.raises(RuntimeError, match="same device"):
        mix()


@pytest.mark.parametrize("mix", ACCEPTED.values(), ids=ACCEPTED)
def test_what_cuda_accepts_is_accepted(mix):
    assert mix().is_cuda


def test_numpy_is_refused():
    with pytest.raises(TypeError, match="cuda:0"):
        on_gpu(2).numpy()


@pytest.mark.parametrize(
    "work, waits",
    [
        (lambda x: x.item(), 1),
        (lambda x: bool(x > 0), 1),
        (lambda x: x.expand(3).tolist(), 1),
        (lambda x: x.expand(3).nonzero(), 1),
        (lambda x: x.expand(3)[x.expand(3) > 0], 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.tensor([1, 2], device="cuda"), 1),
        (lambda x: torch.ones(2).to("cuda", non_blocking=True), 0),
        (lambda x: torch.where(x > 0, x, 0).sum() * 3, 0),
    ],
)
def test_waits_are_counted(gpu, work, waits):
    value = on_gpu()
    gpu.reset()
    work(value)
    assert gpu.waits.total() == waits


def test_operations_and_bytes_are_counted(gpu):
    gc.collect()
    before = gpu.live_bytes
    left, right = on_gpu(4, 8), on_gpu(8, 2)
    assert gpu.live_bytes - before == 4 * (32 + 16)
    del left
    assert gpu.live_bytes - before == 4 * 16
    gpu.reset()
    on_gpu(4, 8) @ right
    torch.ones(4, 8) @ torch.ones(8, 2)
    assert gpu.flops["gpu"].total() == gpu.flops["cpu"].total() == 2 * 4 * 8 * 2
    assert gpu.cpu_share() == 0.5


def test_memory_is_limited(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "memory", gpu.live_bytes + 1000)
    with pytest.raises(torch.OutOfMemoryError):
        on_gpu(251)


def test_a_recording_runs_nothing_and_refuses_to_wait(gpu):
    total, graph = torch.zeros(2, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total += 1
    assert total.tolist() == [0, 0]
    graph.replay()
    graph.replay()
    assert total.tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        total.sum().item()


def test_autocast_computes_in_bf16_and_casts_a_weight_once(gpu):
    layer = nn.Linear(64, 64, bias=False).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(on_gpu(1, 64)).dtype == torch.bfloat16
        assert layer(on_gpu(1, 64)).softmax(-1).dtype == torch.float32
    layer(on_gpu(1, 64)).sum().backward()
    assert layer.weight.grad.is_cuda
