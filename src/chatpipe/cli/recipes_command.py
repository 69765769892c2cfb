"""`chatpipe recipes`: the packaged recipes."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List, show and copy the packaged recipes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A recipe's name.")]


@app.command("ls")
def ls() -> None:
    """List the packaged recipes, with the first line of each."""
    from chatpipe import console
    from chatpipe.recipe import packaged_recipes

    for name, path in packaged_recipes().items():
        headline = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        console.data(f"{name:<14} {headline}")


@app.command("show")
def show(name: Name) -> None:
    """Print a recipe."""
    from chatpipe import console
    from chatpipe.recipe import find_recipe

    console.data(find_recipe(name).read_text(encoding="utf-8").rstrip())


@app.command("copy")
def copy(name: Name, to: Annotated[str | None, typer.Argument(help="Default: NAME.yaml here.")] = None) -> None:
    """Copy a recipe, to change it."""
    from chatpipe import console
    from chatpipe.errors import UsageError
    from chatpipe.recipe import find_recipe

    source = find_recipe(name)
    target = Path(to or f"{source.stem}.yaml")
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise UsageError(f"{target} exists already.", "Name another file: chatpipe recipes copy NAME FILE")
    if not target.parent.is_dir():
        raise UsageError(f"There is no folder {target.parent}.", "Make it first.")
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    console.note(f"Copied to {target}. Run it with: chatpipe run {target if '/' in str(target) else f'./{target}'}")
