"""What `run` and the four stages have in common on the command line."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatpipe.errors import UsageError

if TYPE_CHECKING:
    from chatpipe.recipe import Recipe
    from chatpipe.run.chain import LaunchOptions

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE ...]",
        help="A recipe's name or file, then values that replace its own, e.g. ppo.kl_coef=0.1.",
        show_default=False,
    ),
]
RunWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE [KEY=VALUE ...]",
        help="A recipe's name or file, then values that replace its own, e.g. ppo.kl_coef=0.1.",
        show_default=False,
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what an earlier run left, and start over.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 when a verdict is fail.")]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="Processes; default: one per visible GPU.")]
Launch = Annotated[str | None, typer.Option("--launch", metavar="PROFILE", help="An accelerate config file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show all values, their origins and the plan.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
TemplateSettings = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="Settings of the model's chat template, e.g. '{\"enable_thinking\": false}'."),
]


def template_settings(text: str | None) -> dict[str, Any]:
    """The value of `--chat-template-kwargs`. Raises `UsageError` where it is no JSON object."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(
            f"--chat-template-kwargs is not a JSON object: {text}", "For example '{\"enable_thinking\": false}'."
        )
    return found


@dataclass(frozen=True)
class Given:
    """The positional words by kind: recipe, overrides, accelerate's flags."""

    recipe: str | None
    overrides: list[str]
    accelerate_flags: list[str]
    round: int = 1

    def check_whole_run(self, command: str) -> None:
        """Raises `UsageError` where the words name no recipe or one round, for a command about a whole run."""
        if self.recipe is None:
            given = f" The values replace those of a recipe: {' '.join(self.overrides)}." if self.overrides else ""
            raise UsageError(
                f"Which recipe?{given}",
                f"Try `chatpipe {command} pocket`, or `smol-rlhf` for a model of your own; `chatpipe recipes ls` lists "
                "them.\nA stage alone needs none: chatpipe sft --model FOLDER --data FILE --out DIR [--dry-run].",
            )
        if self.round != 1:
            raise UsageError(
                f"round = {self.round} is for one stage alone, such as `chatpipe ppo RECIPE round={self.round}`.",
                "A run takes all its rounds: rounds=N.",
            )


def tell_apart(words: Sequence[str] | None) -> Given:
    """A first word without `=` is the recipe, `KEY=VALUE`s follow; from the first with a leading `-` on, accelerate's.

    A YAML file that exists is the recipe also with a `=` in its name. Typer drops the `--` between them. `round=N` is
    no key of the recipe: it selects the round of a stage.
    """
    rest = list(words or [])
    recipe = rest.pop(0) if rest and _is_recipe(rest[0]) else None
    overrides: list[str] = []
    number = 1
    while rest and not rest[0].startswith("-"):
        word = rest.pop(0)
        if not word.partition("=")[0] or "=" not in word:
            raise UsageError(
                f"{word!r} is not understood: after the recipe come KEY=VALUE pairs.", "Example: ppo.kl_coef=0.1"
            )
        if word.startswith("round="):
            number = _round(word)
        else:
            overrides.append(word)
    return Given(recipe, overrides, rest, number)


def _round(word: str) -> int:
    number = word.partition("=")[2]
    if not number.isdecimal() or int(number) < 1:
        raise UsageError(f"{word} is no round: rounds are numbered from 1.", "Example: chatpipe ppo RECIPE round=2")
    return int(number)


def _is_recipe(word: str) -> bool:
    if word.startswith("-"):
        return False
    return "=" not in word or (word.endswith((".yaml", ".yml")) and Path(word).is_file())


def how_to_run(recipe: "Recipe", given: Given, fresh: bool) -> "LaunchOptions":
    """How the stages are run; raises `UsageError` where the launch profile or accelerate's flags cannot be used."""
    from chatpipe import console
    from chatpipe.run.chain import LaunchOptions
    from chatpipe.run.launch import check_launch, processes_of
    from chatpipe.training.ranks import is_rank

    if is_rank():  # whoever launched it has used them
        return LaunchOptions(processes_of(recipe), fresh=fresh)
    check_launch(recipe.launch, given.accelerate_flags)
    processes = processes_of(recipe)
    if processes == 1 and (recipe.launch or given.accelerate_flags):
        console.note("One process runs in place: the launch profile and accelerate's flags are not used.")
    return LaunchOptions(processes, recipe.launch, given.accelerate_flags, fresh)


def flags(**given: Any) -> dict[str, Any]:
    """The recipe keys that the given command-line options set; `__` in an option's name means a dot."""
    return {key.replace("__", "."): value for key, value in given.items() if value is not None}
