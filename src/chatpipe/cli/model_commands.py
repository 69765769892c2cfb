"""`chatpipe chat`, `eval` and `sample`: talk to a model, measure it, or have it write answers to rank."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatpipe.cli.options import Json, TemplateSettings, tell_apart, template_settings
from chatpipe.errors import less_memory

if TYPE_CHECKING:
    from chatpipe.ranking.completions import Written

EVAL_EPILOG = "Example: chatpipe eval runs/pocket/sft --data chats.jsonl evaluation.temperature=0"


def chat(
    model: Annotated[str, typer.Argument(help="A model folder or a hub id.")],
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Sampling temperature; 0 always takes the likeliest token.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Sample from the k likeliest tokens; 0 means all.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens whose probabilities add up to p."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Leave out tokens that are less than p times as likely as the likeliest."),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End an answer before this text. Can be given several times."),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    chat_template_kwargs: TemplateSettings = None,
) -> None:
    """Talk to a model. Ctrl-C stops an answer, /reset forgets the conversation, /quit ends.

    It answers as the model's generation_config.json says, unless an option says otherwise; without either at a
    temperature of 0.7, and with 512 tokens at most.
    """
    from chatpipe.models.model_folder import check_model

    settings = template_settings(chat_template_kwargs)
    check_model(model, "causal", "MODEL")
    from chatpipe.generation.chat_loop import chat as talk

    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {name: value for name, value in {**options, "min_p": min_p, "stop": stop}.items() if value is not None}
    with less_memory("Lower --max-new-tokens, or take a smaller model."):
        talk(model, given, seed, system, settings)


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
    from chatpipe.models.model_folder import check_model

    given = tell_apart(values)
    if given.recipe is not None:
        raise UsageError(f"{given.recipe!r} is not understood: after the model come KEY=VALUE pairs.", EVAL_EPILOG)
    check_model(model, None, "MODEL")  # a wrong folder is answered without torch

    from chatpipe.evaluation.evaluate_model import evaluate_model
    from chatpipe.training.machine import prepare_process

    prepare_process()
    with less_memory("Lower evaluation.max_new_tokens or evaluation.prompts, leave out long rows, or use a GPU."):
        measurement = evaluate_model(model, data, given.overrides, limit)
    show_measurement(measurement)
    if json:
        console.json_object(measurement.to_json())


SAMPLE_EPILOG = "Example: chatpipe sample runs/pocket/sft --prompts prompts.jsonl -k 4 -o answers.jsonl"


def sample(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL ...", help="Chat models; they share the answers of each prompt.")
    ],
    prompts: Annotated[str, typer.Option("--prompts", metavar="FILE", help="A file of prompts, or pocketworld.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The completions file to write.")],
    k: Annotated[
        int | None, typer.Option("-k", min=1, max=9, help="Answers per prompt; default: 4, with --best-of 1.")
    ] = None,
    best_of: Annotated[
        int | None, typer.Option(min=2, help="Sample N answers and keep the one that --reward scores highest.")
    ] = None,
    reward: Annotated[str | None, typer.Option(metavar="MODEL", help="The reward model for --best-of.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0.01, help="Sampling temperature; higher values give more different answers.")
    ] = 1.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample from the likeliest tokens whose probabilities add up to p.")
    ] = 1.0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="The longest answer, in tokens; default: 512, or half of the model's context if that is less."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Answer only the first prompts.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answers.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace an existing completions file.")] = False,
    chat_template_kwargs: TemplateSettings = None,
    json: Json = False,
) -> None:
    """Sample K different answers to each prompt, to be ranked; with --best-of, the best answer of N."""
    from chatpipe.errors import UsageError
    from chatpipe.ranking.completions import Sampling, make_completions, read_prompts

    _check_models(models, best_of, reward)
    sampling = Sampling(
        k=k or (4 if best_of is None else 1),
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        best_of=best_of or 1,
        reward=reward,
        chat_template_kwargs=template_settings(chat_template_kwargs),
    )
    if len(models) > sampling.k:
        raise UsageError(f"{len(models)} models for {sampling.k} answers a prompt.", f"Raise -k to {len(models)}.")
    asked, ids = read_prompts(prompts, models[0])
    asked = asked[:limit]

    from chatpipe.training.machine import prepare_process

    prepare_process()
    with less_memory("Lower --max-new-tokens, leave out long prompts, or take a smaller model."):
        written = make_completions(output, models, asked, sampling, overwrite=fresh, ids=ids)
    _show_result(output, written, sampling.k, json)


def _check_models(models: list[str], best_of: int | None, reward: str | None) -> None:
    """Raises `UsageError` where the models cannot answer, or the reward model cannot choose; without torch."""
    from chatpipe.errors import UsageError
    from chatpipe.models.model_folder import check_model

    if (best_of is None) != (reward is None):
        raise UsageError("--best-of and --reward belong together.", "Give both, or leave both out.")
    if len(set(models)) < len(models):
        raise UsageError(
            f"{max(models, key=models.count)} is given twice.", "Give each model once; -k sets how many answers."
        )
    for model in models:
        check_model(model, "causal", "MODEL")
    if reward is not None:
        check_model(reward, "reward", "--reward")


def _show_result(output: Path, written: "Written | None", k: int, json: bool) -> None:
    from chatpipe import console

    if written is None:
        console.note(f"{output} is complete already.")
    else:
        console.note(f"{written.prompts} prompts answered, {k} times each at most, in {output}")
        if written.left_out:
            console.note(
                f"{written.left_out} prompts left out: too few different answers that end, or no room for one."
            )
    if json:
        answered = sum(1 for _ in output.open(encoding="utf-8"))
        console.json_object(
            {
                "out": str(output),
                "prompts": answered,
                "left_out": written.left_out if written else 0,
                "skipped": written is None,
            }
        )
