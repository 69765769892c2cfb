"""Memory of this process: how much it holds, the most it held, and how much is left."""

import contextlib
import re
import resource
import sys
from pathlib import Path

import psutil
import torch

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
CONTAINER_USE = Path("/sys/fs/cgroup/memory.current")
OWN_STATUS = Path("/proc/self/status")
OWN_PEAK = Path("/proc/self/clear_refs")


def begin_peak(device: torch.device) -> None:
    """`peak_memory` counts from here on, where the system can forget the peak before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        OWN_PEAK.write_text("5")  # proc_pid_clear_refs(5)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held: of main memory, or what torch took of a GPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", OWN_STATUS.read_text())
    except OSError:  # not Linux
        found = None
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def used_memory(device: torch.device) -> int:
    """Bytes that this process holds: of main memory, or of a GPU's what torch keeps, for tensors or freed by them."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return psutil.Process().memory_info().rss


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take on `device`: of a CPU what the machine and its container leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        limit = int(CONTAINER_LIMIT.read_text()) - int(CONTAINER_USE.read_text())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, limit)
