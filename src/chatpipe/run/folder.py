"""The folders of a run: who made them, the recipe in them, and what --fresh deletes.

    runs/X/recipe.yaml      every value of the run
    runs/X/STEP/            chatpipe.json when the step is done; before that checkpoints/stage.json

What chatpipe did not make is never replaced or deleted, and neither is what people ranked.
"""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import yaml

from chatpipe.data.durable import PARTIAL, delete_folder, file_lock, replace_text
from chatpipe.data.sources import named_files
from chatpipe.errors import UsageError
from chatpipe.models.manifest import MANIFEST
from chatpipe.ranking.store import who_ranked
from chatpipe.recipe.loading import RecipeDumper, flatten, load_recipe
from chatpipe.recipe.schema import Recipe
from chatpipe.run.steps import STAGES, step_named, step_of, steps_for
from chatpipe.stages.ranking_steps import COMPLETIONS, RANKINGS_FILE, STORE_FILE, RankStep
from chatpipe.stages.step import Step, folder_of

RECIPE_FILE = "recipe.yaml"
HEADER = "# Every value of this run; `chatpipe run` on this file gives the same run.\n"
STARTED = "checkpoints/stage.json"
"""The manifest of a step that is not finished."""
_EARLIER_RANKINGS = "rankings/round-*.jsonl"
_LEFTOVER_SUFFIXES = {PARTIAL, ".log", ".lock"}
_LAUNCH_FILES = {RECIPE_FILE, "launch-error.json", "stop-requested"}
_KEEP = "Keep these rankings: `chatpipe rankings export {store} -o FILE`, then rm.data=FILE."


# ---- whose a folder is ----


def is_foreign(folder: Path) -> bool:
    """Whether the folder holds files, but neither a manifest nor the note that a step began in it."""
    if (folder / MANIFEST).exists() or (folder / STARTED).exists():
        return False
    files = (path for path in folder.rglob("*") if path.is_file())
    return any(path.suffix not in _LEFTOVER_SUFFIXES and path.name not in _LAUNCH_FILES for path in files)


def check_can_be_deleted(step: Step) -> None:
    """Raises `UsageError` where the step's folder holds what chatpipe did not make, or cannot be deleted."""
    folder = step.folder
    if folder.exists() and is_foreign(folder):
        raise UsageError(
            f"{folder} holds something that chatpipe did not make; it is not deleted.", "Choose another folder."
        )
    if folder.is_symlink() or folder.is_mount() or folder.resolve() == Path.cwd():
        raise UsageError(
            f"{folder} is a link, a mount or the working folder, which --fresh does not delete.",
            "Empty it yourself, or choose another folder with out= or --out.",
        )


def check_apart(step: Step) -> None:
    """Raises `UsageError` where the step's folder holds what it reads, or lies in a folder that it reads whole.

    --fresh would delete the one, and the step would read its own files in the other.
    """
    blocks = [block for some in step.data.values() for block in some]
    sources: list[str | Path] = [path for block in blocks for path in named_files(block)]
    # The command that makes the step again makes those again that it began with, such as rankings by a model.
    with_it = steps_for(step.recipe, step.command, step.round)
    models = [model for each in [step, *with_it] for model in each.models.values()]
    for source in [*models, *sources]:
        if Path(source).exists() and Path(source).resolve().is_relative_to(step.folder.resolve()):
            raise UsageError(
                f"{step.folder} cannot be the folder of {step.stage}: it holds {source}, which {step.stage} reads.",
                "Choose another folder with out= or --out.",
            )
    for block in blocks:
        whole = Path(block.source).expanduser()
        if whole in named_files(block) and whole.is_dir() and _lies_openly_in(step.folder, whole):
            raise UsageError(
                f"{step.folder} cannot be the folder of {step.stage}: it lies in {whole}, all of which "
                f"{step.stage} reads.",
                "Choose another folder with out= or --out.",
            )


def _lies_openly_in(folder: Path, whole: Path) -> bool:
    """Whether `folder` is in `whole`, and not below a hidden folder, which is not read."""
    folder, whole = folder.resolve(), whole.resolve()
    return folder.is_relative_to(whole) and not any(part.startswith(".") for part in folder.relative_to(whole).parts)


# ---- the recipe in a run's folder ----


def check_run_folder(recipe: Recipe, replaces: bool = False) -> None:
    """Raises `UsageError` where the run's folder holds something else, or, unless it is replaced, another run."""
    run = Path(recipe.out)
    if not run.exists():
        return
    before = recipe_of_run(run)
    if before is None:
        if any(path.suffix != PARTIAL for path in run.iterdir()):
            raise UsageError(f"out = {run} holds something that chatpipe did not make.", "Choose another folder: out=.")
    elif not replaces:
        check_same_run(before, recipe)


def recipe_of_run(run: Path) -> Recipe | None:
    """The recipe in a run's folder; None where there is none. Raises `UsageError` for a run of an earlier layout."""
    if any(run.glob(_EARLIER_RANKINGS)):
        raise UsageError(f"out = {run} was made by an earlier chatpipe.", "Choose another folder: out=.")
    path = run / RECIPE_FILE
    return load_recipe(str(path)).recipe if path.exists() else None


def check_same_run(before: Recipe, now: Recipe) -> None:
    """The stages of a run share the seed and the world; what belongs to one stage is compared with that stage."""
    old, new = (flatten(some.model_dump(mode="json", include={"seed", *some.worlds})) for some in (before, now))
    changed = [f"{key} was {old[key]}, is {new[key]} now" for key in new if old[key] != new[key]]
    if changed:
        raise UsageError(
            "\n".join([f"{now.out} holds another run:", *changed]),
            "Choose another folder with out=, or `chatpipe run ... --fresh` (the old run is deleted).",
        )


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes every value of a recipe; running the file gives the same run. Replaces only what chatpipe wrote."""
    text = HEADER + yaml.dump(recipe.model_dump(mode="json"), Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)
    before = path.read_text(encoding="utf-8") if path.exists() else HEADER
    if not before.startswith(HEADER):
        raise UsageError(f"{path} is a recipe of your own; the run would replace it.", "Choose another folder: out=.")
    if before != text:
        replace_text(path, text)


def note_in_run(step: Step) -> None:
    """Writes the step's sections into the run's recipe; those of the other stages stay.

    A later round's step writes nothing: its sections are those of the first round, too.
    """
    recipe, run = step.recipe, Path(step.recipe.out)
    before = recipe_of_run(run)
    if before is not None:
        if step.round > 1:
            return
        sections = [kind.stage for kind in STAGES.values() if kind.command == step.stage]
        recipe = before.model_copy(update={name: getattr(recipe, name) for name in sections})
    write_recipe(recipe, run / RECIPE_FILE)


# ---- what --fresh deletes ----


def steps_in_folder(recipe: Recipe) -> list[Step]:
    """The steps of the run, and those of the further rounds that its folder holds."""
    found: list[Step] = []
    for number in itertools.count(1):
        stages = [stage for stage, kind in STAGES.items() if kind.has_place(recipe, number)]
        there = [stage for stage in stages if folder_of(recipe, stage, number).exists()]
        if number > recipe.rounds and not there:
            break
        # Sample may have been there before: rm.data may be new in this recipe.
        found += [
            step_of(recipe, each, number) for each in stages if STAGES[each].is_in(recipe, number) or each in there
        ]
    return found


def check_run_can_be_deleted(recipe: Recipe) -> None:
    """Raises `UsageError` where --fresh may not delete some folder of the run."""
    steps = steps_in_folder(recipe)
    raters = {step.models["rater"] for step in steps if "rater" in step.models}
    for step in steps:
        check_can_be_deleted(step)
        for rater in raters:
            if Path(rater).resolve().is_relative_to(step.folder.resolve()):
                raise UsageError(
                    f"rank.rater = {rater} lies in {step.folder}, which --fresh deletes.",
                    "Copy it to another place and name the copy, or choose another folder with out=.",
                )
        store = step.folder / STORE_FILE
        people = who_ranked(store)
        if people:
            raise UsageError(
                f"--fresh trains all models again, but {_named(people)} ranked answers of these in {store}.",
                f"{_KEEP.format(store=store)} Or choose another folder with out=.",
            )


def clear(steps: Sequence[Step]) -> None:
    """Deletes the folders of the steps, but not what people ranked: their answers and their store stay.

    Raises `UsageError`, and deletes nothing, where a folder may not be deleted, where somebody ranks now, or where a
    program, or `rm.data`, would replace what people ranked.
    """
    for step in steps:
        check_can_be_deleted(step)
    with ExitStack() as held:
        kept: set[Path] = set()
        for step in steps:
            store = step.folder / STORE_FILE
            if not isinstance(step, RankStep) or not step.folder.exists():
                continue
            held.enter_context(file_lock(store))  # whoever ranks holds it
            people = who_ranked(store)
            if people and not step.asks_people:
                other = "rm.data" if step.reads_given_rankings else f"rank.rater = {step.ranked_by}"
                raise UsageError(
                    f"{other} would replace what {_named(people)} ranked in {store}.",
                    f"Leave it out, or choose another folder with out=. {_KEEP.format(store=store)}",
                )
            if people:
                kept |= {step.folder, *(step_named(step.recipe, made).folder for made in step.makers[COMPLETIONS])}
        for step in steps:
            if step.folder not in kept:
                if step.folder.exists():
                    delete_folder(step.folder)
            elif isinstance(step, RankStep):
                for name in (MANIFEST, RANKINGS_FILE):
                    (step.folder / name).unlink(missing_ok=True)


def drop_resume_points(step: Step) -> None:
    """Deletes what a finished step would have resumed from: weights and optimizer, many times its model's size."""
    for path in (step.folder / STARTED).parent.glob("*"):
        if path.is_dir():
            delete_folder(path)


def _named(people: Sequence[str]) -> str:
    return ", ".join([*people[:5], *(["others"] if len(people) > 5 else [])])
