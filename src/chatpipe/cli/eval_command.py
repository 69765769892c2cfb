"""`chatpipe eval`: what a stage's verdict measures, of any model on any data."""

from typing import Annotated

import typer

from chatpipe.cli.options import Json, tell_apart

EPILOG = "Example: chatpipe eval runs/pocket/sft --data chats.jsonl evaluation.temperature=0"


def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder or a hub id.")],
    data: Annotated[str, typer.Option("--data", help="File, several with commas between, or pocketworld.")],
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE ...]", help="How it is measured: evaluation.*, pocketworld.*, seed."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take the first rows alone.")] = None,
    json: Json = False,
) -> None:
    """Measure a model on data, all of it: losses, answers, or pairs, as the kind of both decides."""
    from chatpipe import console
    from chatpipe.cli.show import show_measurement
    from chatpipe.errors import UsageError
    from chatpipe.models.model_folder import looks_like_path, model_kind

    given = tell_apart(values)
    if given.recipe is not None:
        raise UsageError(f"{given.recipe!r} is not understood: after the model come KEY=VALUE pairs.", EPILOG)
    if looks_like_path(model):
        model_kind(model, "MODEL")  # a wrong folder is answered without torch

    from chatpipe.evaluation.measure_model import measure_model
    from chatpipe.training.process import prepare_process

    prepare_process()
    measurement = measure_model(model, data, given.overrides, limit)
    show_measurement(measurement)
    if json:
        console.json_object(measurement.to_json())
