import pytest
import torch

from chatpipe.training.machine import peak_flops, peak_of_gpu


@pytest.mark.parametrize(
    ("name", "bf16", "tf32", "fp32"),
    [
        ("NVIDIA H200", 989e12, 495e12, 67e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 495e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12, 51e12),
        ("NVIDIA H100 NVL", 835e12, 418e12, 60e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12, 19.5e12),
        ("NVIDIA GeForce RTX 4090", 165e12, 82.6e12, 82.6e12),
        ("Tesla T4", None, 8.1e12, 8.1e12),
    ],
)
def test_a_gpu_has_a_peak_for_each_type(name, bf16, tf32, fp32):
    assert peak_of_gpu(name, torch.bfloat16, tf32=True) == bf16
    assert peak_of_gpu(name, torch.float32, tf32=True) == tf32
    assert peak_of_gpu(name, torch.float32, tf32=False) == fp32


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA T400", "AMD Radeon", "NVIDIA GH200 480GB"])
def test_a_gpu_that_is_not_in_the_table_has_none(name):
    assert peak_of_gpu(name, torch.bfloat16, tf32=False) is None


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H200 NVL",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 SUPER",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
)
def test_a_variant_of_a_gpu_in_the_table_has_none(name):
    assert peak_of_gpu(name, torch.bfloat16, tf32=False) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's peak comes from the table")
def test_a_cpu_s_peak_is_measured():
    assert peak_flops(torch.float32) > 1e8
