"""What `run` and the four stages have in common on the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from chatpipe.errors import UsageError

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE ...]",
        help="A recipe's name or file, then values that replace its own, e.g. ppo.kl_coef=0.1.",
        show_default=False,
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over; what an earlier run left is deleted.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 when a verdict is fail.")]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="Processes; default: one per visible GPU.")]
Launch = Annotated[str | None, typer.Option("--launch", metavar="PROFILE", help="An accelerate config file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, with each value's origin.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]


@dataclass(frozen=True)
class Given:
    """The positional words, told apart."""

    recipe: str | None
    overrides: list[str]
    accelerate_flags: list[str]


def tell_apart(words: Sequence[str] | None) -> Given:
    """A first word without `=` is the recipe, `KEY=VALUE`s follow; from the first with a leading `-` on, accelerate's.

    Typer drops the `--` between them.
    """
    rest = list(words or [])
    recipe = rest.pop(0) if rest and "=" not in rest[0] and not rest[0].startswith("-") else None
    overrides: list[str] = []
    while rest and not rest[0].startswith("-"):
        word = rest.pop(0)
        if "=" not in word:
            raise UsageError(
                f"{word!r} is not understood: after the recipe come KEY=VALUE pairs.", "Example: ppo.kl_coef=0.1"
            )
        overrides.append(word)
    return Given(recipe, overrides, rest)


def flags(**given: Any) -> dict[str, Any]:
    """Recipe keys that command-line options stand for, without those that were not given (`__` stands for a dot)."""
    return {key.replace("__", "."): value for key, value in given.items() if value is not None}
