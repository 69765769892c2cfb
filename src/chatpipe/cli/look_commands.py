"""`chatpipe check` and `chatpipe data show`: a recipe and its data, looked at without training."""

from typing import Annotated

import typer

from chatpipe.cli.options import Json, Words, flags, tell_apart
from chatpipe.cli.stage_command import Data

CHECK_EPILOG = "Example: chatpipe check pocket sft.data=chats.jsonl"
SHOW_EPILOG = "Example: chatpipe data show pocket sft --data chats.jsonl --model gpt2"

data_app = typer.Typer(help="Look at a stage's data.", no_args_is_help=True)


def check(words: Words = None, json: Json = False) -> None:
    """Look at recipe, data, models and checks of all stages, without training. Exits with 2 where something failed."""
    from chatpipe import console
    from chatpipe.cli.show import show_checks
    from chatpipe.errors import ExitCode, UsageError
    from chatpipe.recipe import load_recipe

    given = tell_apart(words)
    if given.recipe is None:
        raise UsageError("Which recipe?", "Try `chatpipe check pocket`; `chatpipe recipes ls` lists them.")
    given.check_whole_run()
    resolved = load_recipe(given.recipe, given.overrides)

    from chatpipe.run.check_run import check_all

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
        str | None, typer.Option("--model", help="Whose tokenizer reads it: a folder or a hub id.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows are shown.")] = 3,
    json: Json = False,
) -> None:
    """Show the first rows as the model will see them, and what all of them come to."""
    from chatpipe import console
    from chatpipe.cli.show_data import show_data
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
