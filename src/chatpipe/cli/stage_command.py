"""`chatpipe pretrain | sft | rm | ppo`: one stage, of a recipe or of its own."""

import os.path
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import typer

from chatpipe.cli.options import (
    DryRun,
    Fresh,
    Json,
    Launch,
    Processes,
    RunWords,
    Strict,
    Words,
    flags,
    how_to_run,
    tell_apart,
)

Model = Annotated[str | None, typer.Option("--model", help="The model to start from: a folder or a hub id.")]
Data = Annotated[str | None, typer.Option("--data", help="Files, separated by commas, or pocketworld.")]
Out = Annotated[
    str | None, typer.Option("--out", metavar="DIR", help="Output folder; default: inside the run's folder.")
]
Reward = Annotated[
    str | None, typer.Option("--reward", metavar="MODEL", help="The reward model, or a function: module:function.")
]

EPILOGS = {
    "pretrain": "Example: chatpipe pretrain --data corpus.txt --out base",
    "sft": "Example: chatpipe sft --model base --data chats.jsonl --out chat",
    "rm": "Example: chatpipe rm --model chat --data pairs.jsonl --out reward",
    "ppo": "Example: chatpipe ppo --model chat --reward reward --data prompts.jsonl --out tuned",
}


def _command(stage: str, summary: str) -> Callable[..., None]:
    """The command of a stage that reads one model and data; `summary` is the first line of its help."""

    def command(
        words: Words = None,
        model: Model = None,
        data: Data = None,
        out: Out = None,
        fresh: Fresh = False,
        strict: Strict = False,
        processes: Processes = None,
        launch: Launch = None,
        dry_run: DryRun = False,
        json: Json = False,
    ) -> None:
        given = flags(**{f"{stage}__model": model, f"{stage}__data": data}, processes=processes, launch=launch)
        _run_stage(stage, words, given, out, fresh, strict, dry_run, json)

    command.__doc__ = summary
    return command


def ppo(
    words: Words = None,
    model: Model = None,
    reward: Reward = None,
    data: Data = None,
    out: Out = None,
    fresh: Fresh = False,
    strict: Strict = False,
    processes: Processes = None,
    launch: Launch = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Improve a chat model with PPO against a reward model."""
    from chatpipe.recipe.stage_sections import FUNCTION

    key = "ppo__reward" if reward is not None and re.fullmatch(FUNCTION, reward) else "ppo__reward_model"
    given = flags(**{"ppo__model": model, key: reward, "ppo__data": data}, processes=processes, launch=launch)
    _run_stage("ppo", words, given, out, fresh, strict, dry_run, json)


COMMANDS: dict[str, Callable[..., None]] = {
    "pretrain": _command("pretrain", "Train a base model, and its tokenizer, from raw text."),
    "sft": _command("sft", "Fine-tune a causal model on conversations."),
    "rm": _command("rm", "Train a reward model on rankings or pairs."),
    "ppo": ppo,
}


def step(name: str, recipe: str, out: Annotated[str, typer.Option("--out")]) -> None:
    """Run one step as one of several processes, from the recipe in its folder; `chatpipe` launches this itself."""
    from chatpipe.recipe import load_recipe
    from chatpipe.run.chain import run_here
    from chatpipe.run.steps import step_named
    from chatpipe.training.ranks import check_world, stop_with_parent

    check_world(None)
    stop_with_parent()
    run_here(step_named(load_recipe(recipe).recipe, name, out))


def _run_stage(
    stage: str,
    words: Sequence[str] | None,
    recipe_flags: dict[str, object],
    out: str | None,
    fresh: bool,
    strict: bool,
    dry_run: bool,
    json: bool,
) -> None:
    from chatpipe import console
    from chatpipe.cli.show import show_plan, show_stage, strict_exit
    from chatpipe.errors import UsageError, WaitingForRankings
    from chatpipe.recipe import load_recipe
    from chatpipe.run.chain import StepResult, check_stage, run_stage
    from chatpipe.run.steps import STAGES, stage_module
    from chatpipe.training.ranks import check_world, is_main, is_rank

    given = tell_apart(words)
    out = None if out is None else os.path.expanduser(out)  # of --out=~/x, which a shell leaves as it is
    resolved = load_recipe(given.recipe, given.overrides, recipe_flags)
    if given.recipe is None and out is None and "out" not in resolved.origins:
        raise UsageError(f"Where should {stage} write to?", "Give a recipe, or a folder with --out.")
    if is_rank():
        check_world(resolved.recipe.processes)
    needs_data = not (dry_run and STAGES[stage].foreseen_without_data)
    steps = check_stage(resolved.recipe, stage, given.round, out, fresh, reads_data=needs_data)
    how = how_to_run(resolved.recipe, given, fresh)
    if dry_run:
        stage_module(stage)  # the run loads this too, so it counts as its memory
        from chatpipe.run.forecast import foresee

        show_plan(resolved, steps[-1:], how, json, partial(foresee, steps[-1], how.processes))
        return
    results: list[StepResult] = []

    def on_result(result: StepResult) -> None:
        results.append(result)
        if result.step is steps[-1] or not result.skipped:
            show_stage(result)

    try:
        run_stage(steps, how, out, on_result)
    except WaitingForRankings as waiting:
        if json:
            waits = f"{waiting.message} {waiting.hint}"
            console.json_object({"stage": stage, "out": str(steps[-1].folder), "waiting": waits})
        raise
    if not is_main():
        return
    if json:
        console.json_object(results[-1].to_json())
    if strict:
        strict_exit(results)


RUN_EPILOG = "Example: chatpipe run pocket out=runs/mine seed=3"


def run(
    words: RunWords = None,
    fresh: Fresh = False,
    strict: Strict = False,
    processes: Processes = None,
    launch: Launch = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run all stages of a recipe: pretrain, sft, sample and rank, rm, ppo. Done stages are skipped."""
    from chatpipe import console
    from chatpipe.cli.show import show_plan, show_run_table, show_stage, strict_exit
    from chatpipe.errors import WaitingForRankings
    from chatpipe.recipe import load_recipe
    from chatpipe.run.chain import StepResult, check_run, run_recipe

    given = tell_apart(words)
    given.check_whole_run("run")
    resolved = load_recipe(given.recipe, given.overrides, flags(processes=processes, launch=launch))
    steps = check_run(resolved.recipe, fresh)
    how = how_to_run(resolved.recipe, given, fresh)
    if dry_run:
        show_plan(resolved, steps, how, json)
        return
    start = time.monotonic()
    results: list[StepResult] = []

    def on_result(result: StepResult) -> None:
        results.append(result)
        show_stage(result)

    def show_json(**more: str) -> None:
        stages = [result.to_json() for result in results]
        seconds = round(time.monotonic() - start, 1)
        console.json_object({"run": resolved.recipe.out, "stages": stages, "seconds": seconds, **more})

    try:
        run_recipe(resolved.recipe, how, on_result)
    except WaitingForRankings as waiting:
        if json:
            show_json(waiting=f"{waiting.message} {waiting.hint}")
        raise
    show_run_table(results)
    if json:
        show_json()
    if strict:
        strict_exit(results)
