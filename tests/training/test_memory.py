import subprocess
import sys

import pytest
import torch

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
