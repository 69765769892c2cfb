"""`chatpipe recipes ls|show|copy`, `chatpipe schema`, `chatpipe env`: what is installed here."""

from pathlib import Path
from typing import Annotated

import typer

from chatpipe.cli.options import Json

recipes = typer.Typer(help="List, show and copy the packaged recipes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A recipe's name.")]


@recipes.command("ls")
def ls() -> None:
    """List the packaged recipes, with the first line of each."""
    from chatpipe import console
    from chatpipe.recipe import packaged_recipes

    for name, path in packaged_recipes().items():
        headline = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        console.data(f"{name:<14} {headline}")


@recipes.command("show")
def show(name: Name) -> None:
    """Print a recipe."""
    from chatpipe import console
    from chatpipe.recipe import find_recipe

    console.data(find_recipe(name).read_text(encoding="utf-8").rstrip())


@recipes.command("copy")
def copy(name: Name, to: Annotated[str | None, typer.Argument(help="Default: NAME.yaml here.")] = None) -> None:
    """Copy a recipe, to change it."""
    from chatpipe import console
    from chatpipe.errors import UsageError
    from chatpipe.recipe import find_recipe

    source = find_recipe(name)
    target = Path(to or f"{source.stem}.yaml")
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise UsageError(f"{target} exists already.", "Name another file: chatpipe recipes copy NAME FILE")
    if not target.parent.is_dir():
        raise UsageError(f"There is no folder {target.parent}.", "Make it first.")
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    console.note(f"Copied to {target}. Run it with: chatpipe run {target if '/' in str(target) else f'./{target}'}")


def schema() -> None:
    """Print the JSON Schema of recipes, for editors (`# yaml-language-server: $schema=FILE`)."""
    import json

    from chatpipe import console
    from chatpipe.recipe import Recipe

    console.data(json.dumps(Recipe.model_json_schema(), indent=2))


def env(json: Json = False) -> None:
    """Print versions, devices, and how stages are launched on this machine."""
    import os

    import torch

    from chatpipe import console
    from chatpipe.models.manifest import versions
    from chatpipe.run.launch import accelerate_command, default_processes
    from chatpipe.training.machine import peak_flops

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
