"""`chatpipe env`: versions, devices, and what accelerate would do."""

from typing import Annotated

import typer


def env(json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Print versions, devices, and how stages would be launched here."""
    import os

    import torch

    from chatpipe import console
    from chatpipe.models.manifest import versions
    from chatpipe.run.launch import accelerate_command, default_processes
    from chatpipe.training.speed import peak_flops

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    processes = default_processes()
    peak = peak_flops(torch.bfloat16)
    facts = {
        "versions": versions(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
        "bf16_peak_tflops": round(peak / 1e12, 3) if peak else "unknown",
        "processes": processes,
        "process_group": "nccl" if gpus else "gloo",
        "launch_of_two": " ".join(["accelerate", "launch", *accelerate_command(2, None, [], ["sft", "RECIPE"])[3:]]),
    }
    if json:
        console.json_object(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        console.data(f"{name:<17} {value}")
