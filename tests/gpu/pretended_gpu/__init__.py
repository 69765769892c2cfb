"""A pretended GPU: a process that has it runs code for `cuda` on the CPU, and fails where a real GPU would.

    import pretended_gpu
    gpu = pretended_gpu.install("chatpipe")         # before transformers and accelerate are imported
    torch.ones(2, device="cuda") + torch.ones(2)    # RuntimeError: Expected all tensors to be on the same device, ...
    gpu.flops["cpu"].total(), gpu.waits, gpu.live_bytes

`tensor.py` holds the tensors, `rules.py` what a GPU refuses and where the CPU waits for it, `ledger.py` the counts,
`graphs.py` and `autocast.py` what their names say, and `process.py` what replaces `torch.cuda`.

The device is torch's PrivateUse1 backend in Python, so autograd (with a thread of its own), optimizers and modules are
torch's own. What it cannot show: speed, rounding, kernels that a GPU lacks, streams, fragmentation of memory, several
GPUs, torch.compile, and code in Python threads that the main thread did not start.

It needs private functions of torch 2.13 (`REQUIRED`); `missing()` names those that this torch does not have.
"""

import importlib

REQUIRED = (
    "torch._C._set_only_lift_cpu_tensors",
    "torch._C._ExcludeDispatchKeyGuard",
    "torch.utils.backend_registration._setup_privateuseone_for_python_backend",
)


def missing() -> list[str]:
    """The private functions that the pretended GPU needs and the installed torch does not have."""
    return [
        path for path in REQUIRED if not hasattr(importlib.import_module(path.rpartition(".")[0]), path.split(".")[-1])
    ]


def install(package: str, memory: int = 80 * 2**30):
    """Give this process one GPU of `memory` bytes, until the process ends.

    Counts are kept by the line of `package` that caused them. Returns the `Ledger` of the GPU.
    """
    from pretended_gpu.process import install_for_process

    return install_for_process(package, memory)
