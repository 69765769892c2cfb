"""`chatpipe check`, `data show`, `recipes`, `schema` and `env`: commands that look and train nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatpipe import console
from chatpipe.cli.options import Json, RunWords, flags, tell_apart
from chatpipe.cli.stage_command import Data

if TYPE_CHECKING:
    from chatpipe.run.data_view import DataView

CHECK_EPILOG = "Example: chatpipe check pocket sft.data=chats.jsonl"
SHOW_EPILOG = "Example: chatpipe data show pocket sft --data chats.jsonl --model gpt2"

data_app = typer.Typer(help="Look at a stage's data.", no_args_is_help=True)


def check(words: RunWords = None, json: Json = False) -> None:
    """Check recipe, data and models of all stages without training. Exits with 2 if a check failed."""
    from chatpipe.cli.show import show_checks
    from chatpipe.errors import ExitCode
    from chatpipe.recipe import load_recipe

    given = tell_apart(words)
    given.check_whole_run("check")
    resolved = load_recipe(given.recipe, given.overrides)

    from chatpipe.run.try_stages import check_all

    checked = check_all(resolved.recipe)
    failed = [one for one in checked if one.status == "failed"]
    show_checks(checked)
    if json:
        console.json_object({"recipe": given.recipe, "ok": not failed, "checks": [one.to_json() for one in checked]})
    if failed:
        raise SystemExit(int(ExitCode.USAGE))


@data_app.callback()
def _group() -> None:
    """Look at a stage's data."""


@data_app.command("show", epilog=SHOW_EPILOG)
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.")],
    stage: Annotated[str, typer.Argument(help="pretrain, sft, rm or ppo.")],
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE ...]", help="Values that replace the recipe's.", show_default=False),
    ] = None,
    data: Data = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model whose tokenizer reads the data: a folder or a hub id.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows to show.")] = 3,
    json: Json = False,
) -> None:
    """Show the first rows as the model reads them, and a summary of all rows."""
    from chatpipe.errors import UsageError
    from chatpipe.recipe import TRAINING_STAGES, load_recipe

    if stage not in TRAINING_STAGES:
        raise UsageError(f"There is no stage {stage}.", f"Stages: {', '.join(TRAINING_STAGES)}.")
    given = tell_apart([recipe, *(values or [])])
    resolved = load_recipe(given.recipe, given.overrides, flags(**{f"{stage}__data": data}))

    from chatpipe.run.data_view import view_data
    from chatpipe.run.steps import step_of

    view = view_data(step_of(resolved.recipe, stage, given.round), model, rows)
    show_data(view)
    if json:
        console.json_object(view.to_json())


MAX_CHARACTERS = 2000
"""Of a document without a tokenizer, which has no blocks yet."""


def show_data(view: "DataView") -> None:
    """Prints the rows as the model reads them, the trained part in colour, then the summary."""
    if view.tokenizer is None:
        console.note(f"{view.stage}: no model is there yet to read this, so there are no tokens (--model gives one).")
    else:
        console.note(f"{view.stage}: read with the tokenizer of {view.tokenizer}.")
    for number, row in enumerate(view.rows, start=1):
        split = " (validation)" if row.get("split") == "validation" else ""
        tokens = f": {row['tokens']} tokens" if "tokens" in row else ""
        is_cut = "kept_tokens" in row and row["kept_tokens"] < row["tokens"]
        cut = f", {row['kept_tokens']} of them kept" if is_cut else ""
        console.note(f"--- row {number}{split}{tokens}{cut}")
        _show_row(row)
    console.table(f"{view.stage}.data", ("", ""), _summary_rows(view.summary))


def _show_row(row: dict[str, Any]) -> None:
    if row.get("parts"):
        console.marked([(part["text"], part.get("trained", part.get("ends_document"))) for part in row["parts"]])
    elif "messages" in row:
        if "parts" in row:
            too_long = "its last answer, with what was asked, is longer than max_length"
            console.warn(f"left out: {row.get('left_out', too_long)}.")
        _show_messages(row["messages"])
    elif "prompt" in row:
        if "text" in row:
            console.note(row["text"])
        else:
            _show_messages(row["prompt"])
        for answer in row.get("answers", []):
            tokens = f" ({answer['tokens']} tokens)" if "tokens" in answer else ""
            said = "".join(f" [{turn['role']}] {turn['content']}" for turn in answer.get("turns", ()))
            said += " [assistant]" if said else ""
            console.note(f"[rank {answer['rank']}]{tokens}{said} {answer['text']}")
    else:
        more = " ..." if len(row["text"]) > MAX_CHARACTERS else ""
        console.note(row["text"][:MAX_CHARACTERS] + more)


def _show_messages(messages: list[dict[str, str]]) -> None:
    for message in messages:
        console.note(f"{message['role']}: {message['content']}")


def _summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [line for source in summary["sources"] for line in _source_rows(source)]
    rows.append(("rows", f"{summary['train_rows']:,} to train on, {summary['validation_rows']:,} for validation"))
    if not summary.get("read_whole", True):
        rows.append(("", "of the beginning of the text"))
    if summary.get("all_tied"):
        rows.append(("all answers tied", f"{summary['all_tied']:,} rows, which teach nothing"))
    if summary.get("without_reasoning"):
        rows.append(("reasoning", f"left out of {summary['without_reasoning']:,} rows: the chat template writes none"))
    lengths = summary["lengths"]
    if summary["measured_rows"]:
        columns = (("smallest", "min"), ("median", "median"), ("95 %", "percentile_95"), ("largest", "max"))
        numbers = ", ".join(f"{name} {lengths[key]:,.0f}" for name, key in columns)
        rows.append((f"{lengths['unit']} of {summary['measured_rows']:,} rows", numbers))
    if "max_length" in summary:
        rows.append(("max_length", f"{summary['max_length']:,}"))
    shares = (
        ("truncated_share", "longer than that"),
        ("left_out_share", "left out as too long"),
        ("eos_trained_share", "end-of-turn token trained"),
    )
    rows += [(name, f"{summary[key]:.1%}") for key, name in shares if summary.get(key) is not None]
    return rows


def _source_rows(source: dict[str, Any]) -> list[tuple[str, str]]:
    taken_for = " and ".join(source["formats"]) or "nothing that can be used"
    counted = f": {source['rows']:,} rows" if "rows" in source else ""
    rows = [(source["source"], f"read as {taken_for}{counted}")]
    rows += [
        ("  left out", f"{one['rows']:,}: {one['reason']} (first at {one['first']})")
        for one in source.get("left_out", [])
    ]
    rows += [
        (f"  {what} not read", ", ".join(source[f"{what}_not_read"]))
        for what in ("fields", "files")
        if source.get(f"{what}_not_read")
    ]
    if source.get("with_tools"):
        rows.append(("  tools", f"in {source['with_tools']:,} rows; a chat template without tools leaves them out"))
    if source.get("stops_the_stage"):
        rows.append(("", "more than max_skipped allows: the stage would stop"))
    return rows


# ---- what is installed here ----

recipes = typer.Typer(help="List, show and copy the packaged recipes.", no_args_is_help=True)

RecipeName = Annotated[str, typer.Argument(help="A recipe's name.")]


@recipes.command("ls")
def list_recipes() -> None:
    """List the packaged recipes, with the first line of each."""
    from chatpipe.recipe import packaged_recipes

    for name, path in packaged_recipes().items():
        headline = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        console.data(f"{name:<14} {headline}")


@recipes.command("show")
def show_recipe(name: RecipeName) -> None:
    """Print a recipe."""
    from chatpipe.recipe import find_recipe

    console.data(find_recipe(name).read_text(encoding="utf-8").rstrip())


@recipes.command("copy")
def copy_recipe(
    name: RecipeName, to: Annotated[str | None, typer.Argument(help="Default: NAME.yaml here.")] = None
) -> None:
    """Copy a recipe, to change it."""
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

    from chatpipe.recipe import Recipe

    console.data(json.dumps(Recipe.model_json_schema(), indent=2))


def env(json: Json = False) -> None:
    """Print versions, devices, and how stages are launched on this machine."""
    import os

    import torch

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
