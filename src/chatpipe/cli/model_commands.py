"""`chatpipe chat` and `chatpipe eval`: talk to a model, or measure it."""

from typing import Annotated

import typer

from chatpipe.cli.options import Json, tell_apart

EVAL_EPILOG = "Example: chatpipe eval runs/pocket/sft --data chats.jsonl evaluation.temperature=0"


def chat(
    model: Annotated[str, typer.Argument(help="A model folder or a hub id.")],
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Sampling temperature; 0 always takes the likeliest token.")
    ] = 0.7,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k likeliest tokens; 0 means all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens whose probabilities add up to p.")
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Leave out tokens that are less than p times as likely as the likeliest."),
    ] = 0.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End an answer before this text. Can be given several times."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
) -> None:
    """Talk to a model. Ctrl-C stops an answer, /reset forgets the conversation, /quit ends."""
    from chatpipe.models.model_folder import check_model

    check_model(model, "causal", "MODEL")
    from chatpipe.generation import SamplingParams
    from chatpipe.generation.chat_loop import chat as talk

    talk(model, SamplingParams(max_new_tokens, temperature, top_k, top_p, min_p, tuple(stop or ())), seed, system)


def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder or a hub id.")],
    data: Annotated[str, typer.Option("--data", help="Files, separated by commas, or pocketworld.")],
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE ...]", help="Settings of the evaluation: evaluation.*, pocketworld.*, seed."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Read only the first rows.")] = None,
    json: Json = False,
) -> None:
    """Measure a model on data: losses, answers, or pairs, depending on the kinds of model and data."""
    from chatpipe import console
    from chatpipe.cli.show import show_measurement
    from chatpipe.errors import UsageError
    from chatpipe.models.model_folder import looks_like_path, model_kind

    given = tell_apart(values)
    if given.recipe is not None:
        raise UsageError(f"{given.recipe!r} is not understood: after the model come KEY=VALUE pairs.", EVAL_EPILOG)
    if looks_like_path(model):
        model_kind(model, "MODEL")  # a wrong folder is answered without torch

    from chatpipe.evaluation.evaluate_model import evaluate_model
    from chatpipe.training.machine import prepare_process

    prepare_process()
    measurement = evaluate_model(model, data, given.overrides, limit)
    show_measurement(measurement)
    if json:
        console.json_object(measurement.to_json())
