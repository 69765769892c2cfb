"""`chatpipe run`: all steps of a recipe."""

import time

from chatpipe.cli.options import DryRun, Fresh, Json, Launch, Processes, Strict, Words, flags, how_to_run, tell_apart

EPILOG = "Example: chatpipe run pocket out=runs/mine seed=3"


def run(
    words: Words = None,
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
    from chatpipe.errors import UsageError, WaitingForRankings
    from chatpipe.recipe import load_recipe
    from chatpipe.run.chain import StepResult, check_run, run_recipe

    given = tell_apart(words)
    if given.recipe is None:
        raise UsageError("Which recipe?", "Try `chatpipe run pocket`; `chatpipe recipes ls` lists them.")
    given.check_whole_run()
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
