"""`chatpipe run`: all four stages of a recipe."""

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
    from chatpipe.errors import UsageError
    from chatpipe.pipeline import check_folder, check_recipe, run_recipe
    from chatpipe.recipe import STAGES, load_recipe

    given = tell_apart(words)
    if given.recipe is None:
        raise UsageError("Which recipe?", "Try `chatpipe run pocket`; `chatpipe recipes ls` lists them.")
    resolved = load_recipe(given.recipe, given.overrides, flags(processes=processes, launch=launch))
    check_recipe(resolved.recipe)
    check_folder(resolved.recipe, fresh)
    how = how_to_run(resolved.recipe, given, fresh)
    if dry_run:
        show_plan(resolved, STAGES, how, json)
        return
    start = time.monotonic()
    results = run_recipe(resolved.recipe, how, show_stage)
    seconds = round(time.monotonic() - start, 1)
    show_run_table(results)
    if json:
        console.json_object(
            {"run": resolved.recipe.out, "stages": [result.to_json() for result in results], "seconds": seconds}
        )
    if strict:
        strict_exit(results)
