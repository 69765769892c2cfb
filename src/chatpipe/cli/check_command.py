"""`chatpipe check`: a recipe before it runs."""

from chatpipe.cli.options import Json, Words, tell_apart

EPILOG = "Example: chatpipe check pocket sft.data=chats.jsonl"


def check(words: Words = None, json: Json = False) -> None:
    """Look at recipe, data, models and checks of all stages, without training. Exits with 2 where something failed."""
    from chatpipe import console
    from chatpipe.cli.show import show_checks
    from chatpipe.errors import ExitCode, UsageError
    from chatpipe.recipe import load_recipe

    given = tell_apart(words)
    if given.recipe is None:
        raise UsageError("Which recipe?", "Try `chatpipe check pocket`; `chatpipe recipes ls` lists them.")
    resolved = load_recipe(given.recipe, given.overrides)

    from chatpipe.run.check_run import check_all

    checked = check_all(resolved.recipe)
    failed = [one for one in checked if one.status == "failed"]
    show_checks(checked)
    if json:
        console.json_object({"recipe": given.recipe, "ok": not failed, "checks": [one.to_json() for one in checked]})
    if failed:
        raise SystemExit(int(ExitCode.USAGE))
