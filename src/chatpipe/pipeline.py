"""Chains the stages of a recipe: what is done is skipped, what broke off goes on, rankings are made in between."""

import importlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chatpipe import console
from chatpipe.checkpoints import Manifest, read_manifest, write_manifest
from chatpipe.data.load import check_sources, load_rankings
from chatpipe.durable import replace_text
from chatpipe.errors import ChatpipeError, ExitCode, UsageError
from chatpipe.recipe.loading import flatten
from chatpipe.recipe.schema import STAGES, Recipe
from chatpipe.stages.job import Job, Outcome, Standing, rankings_blocks, rankings_file, recipe_section
from chatpipe.training import launch
from chatpipe.training.batches import micro_batches

RECIPE_FILE = "recipe.yaml"
HEADER = "# Every value of this run; `chatpipe run` on this file gives the same run.\n"
# Keys that say where and how a recipe runs, not what it makes.
WHERE_AND_HOW = {"out", "processes", "launch", "report_to"}
HOW_SUFFIXES = (".logging_steps", ".save_steps")


@dataclass(frozen=True)
class How:
    """How the stages are run: started over or not, in how many processes, with which accelerate flags."""

    processes: int
    launch: str | None = None
    accelerate_flags: Sequence[str] = ()
    fresh: bool = False


@dataclass
class StageResult:
    """What a stage has to say for itself; `skipped` when it was done already."""

    stage: str
    out: Path
    manifest: Manifest
    skipped: bool
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object of the contract."""
        return {
            "stage": self.stage,
            "out": str(self.out),
            "seconds": round(self.manifest.seconds, 1),
            "processes": self.manifest.processes,
            "skipped": self.skipped,
            "metrics": self.manifest.metrics,
            "verdict": self.manifest.verdict,
        }


def run_recipe(recipe: Recipe, how: How, on_result: Callable[[StageResult], None]) -> list[StageResult]:
    """Runs all four stages of a recipe in its folder; `on_result` hears of each as soon as it is there."""
    if launch.is_rank():
        raise UsageError(
            "`chatpipe run` starts its processes itself, and runs under no launcher.",
            "Use --processes N, or launch the stages one by one: chatpipe pretrain, sft, rm, ppo.",
        )
    check_recipe(recipe)
    for stage in STAGES:
        micro_batches(recipe_section(recipe, stage), how.processes, stage)
    run = Path(recipe.out)
    _take_folder(recipe, how.fresh)
    jobs = [Job.of(recipe, stage) for stage in STAGES]
    if how.fresh:
        for job in jobs:
            job.clear()
        rankings_file(recipe).unlink(missing_ok=True)
    results = []
    for job in jobs:
        if job.stage == "rm":
            _ensure_rankings(recipe)
        results.append(run_stage(job, how, run / RECIPE_FILE, _standing(job, how)))
        on_result(results[-1])
    return results


def run_one(recipe: Recipe, stage: str, how: How, out: str | None, recipe_file: Path | None) -> StageResult:
    """Runs one stage, in the run's folder or in the folder `out` of its own."""
    job = check_stage(recipe, stage, out)
    micro_batches(job.section, how.processes, stage)
    if how.fresh and job.is_main:
        job.clear()
        if stage == "rm" and recipe.rm.data is None and out is None:
            rankings_file(recipe).unlink(missing_ok=True)
    if stage == "rm" and job.is_main:
        _ensure_rankings(recipe, write_read_ones=out is None)
    standing = _standing(job, how)
    if out is None and job.is_main:
        write_recipe(recipe, Path(recipe.out) / RECIPE_FILE)
    return run_stage(job, how, recipe_file, standing)


def check_recipe(recipe: Recipe) -> None:
    """Raises `UsageError` for whatever can be known to be wrong before the first stage starts, without torch."""
    done: frozenset[str] = frozenset()
    for stage in STAGES:
        job = Job.of(recipe, stage)
        job.check(made_by_this_run=done)
        done |= {stage}
    if recipe.rm.data is None:
        _check_rankings_can_be_made(recipe)


def run_stage(job: Job, how: How, recipe_file: Path | None, standing: Standing) -> StageResult:
    """Runs one stage in place or through the launcher, unless it is done already."""
    if standing == "done":
        manifest = read_manifest(job.folder)
        assert manifest is not None
        return StageResult(job.stage, job.folder, manifest, skipped=True)
    if how.processes > 1 and not launch.is_rank():
        _run_launched(job, how, recipe_file)
    else:
        _run_here(job)
    manifest = read_manifest(job.folder)
    assert manifest is not None or not job.is_main, f"{job.stage} left no manifest"
    return StageResult(job.stage, job.folder, manifest or job.manifest(), skipped=False)


def _standing(job: Job, how: How) -> Standing:
    """How far the stage is; raises `UsageError` where its folder holds something else."""
    # What was cleared is new, also to ranks that may still see it; and a parent has looked before it launched.
    return "new" if how.fresh or launch.has_parent() else job.standing()


def _run_here(job: Job) -> None:
    """Runs the stage in this process, which may be one rank of several."""
    _quiet_libraries()
    if launch.is_rank():
        launch.join_world(job.processes)
    if job.is_main:
        job.begin()
    start = time.monotonic()
    # Imported here since a stage brings torch along, which a wrong command must not wait for.
    module = importlib.import_module(f"chatpipe.stages.{job.stage}")
    try:
        outcome: Outcome | None = getattr(module, f"run_{job.stage}")(job)
    except UsageError:
        if not launch.has_parent():  # which reads there what went wrong, and then withdraws it itself
            job.withdraw()
        raise
    if outcome is None:
        return
    manifest = job.manifest()
    manifest.metrics, manifest.verdict = outcome.metrics, outcome.verdict
    manifest.seconds = time.monotonic() - start
    write_manifest(job.folder, manifest)


def _run_launched(job: Job, how: How, recipe_file: Path | None) -> None:
    """Starts the stage again in several processes, from a recipe file that holds every value."""
    job.begin()  # from now on the folder is known as ours, also if no rank lives to say so
    path = recipe_file or job.folder / RECIPE_FILE
    if recipe_file is None:
        write_recipe(job.recipe, path)
    arguments = [job.stage, str(path), "--out", str(job.folder)]
    command = launch.accelerate_command(how.processes, how.launch, how.accelerate_flags, arguments)
    try:
        launch.launch(command, how.processes, job.stage, job.folder)
    except ChatpipeError as problem:
        if problem.exit_code == ExitCode.USAGE:
            job.withdraw()
        raise


def _ensure_rankings(recipe: Recipe, write_read_ones: bool = True) -> None:
    """Makes the run's rankings file where it is missing: ranked now, or written down as `rm.data` was read."""
    from chatpipe.ranking.making import make_rankings, write_rankings

    path = rankings_file(recipe)
    if path.exists():
        return
    if recipe.rm.data is None:
        _quiet_libraries()
        count = make_rankings(recipe, Job.of(recipe, "rm").models["model"], path)
        console.note(f"rank: {count} rankings of {recipe.sample.k} answers written to {path}")
    elif write_read_ones:
        loaded = load_rankings(rankings_blocks(recipe), recipe.pocketworld, "rm.data")
        write_rankings(path, [*loaded.train, *loaded.held_out])


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes every value of a recipe; running the file gives the same run. Replaces only what chatpipe wrote."""
    text = HEADER + yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    before = path.read_text(encoding="utf-8") if path.exists() else HEADER
    if not before.startswith(HEADER):
        raise UsageError(f"{path} is a recipe of your own; the run would replace it.", "Choose another folder: out=.")
    if before != text:
        replace_text(path, text)


def _take_folder(recipe: Recipe, fresh: bool) -> None:
    """Makes the run's folder ours; refuses one that holds something else or a run of another recipe."""
    run = Path(recipe.out)
    path = run / RECIPE_FILE
    if run.exists() and not run.is_dir():
        raise UsageError(f"out = {run} is a file.", "Choose a folder with out=.")
    if not path.exists():
        if run.exists() and any(run.iterdir()):
            raise UsageError(f"out = {run} holds something that chatpipe did not make.", "Choose another folder: out=.")
    elif not fresh:
        changed = _changed_keys(path, recipe)
        if changed:
            shown = changed[:4] + ([f"... and {len(changed) - 4} more"] if len(changed) > 4 else [])
            raise UsageError(
                "\n".join([f"{run} holds another run:", *shown]),
                "Choose another folder with out=, or start over with --fresh (the old run is deleted).",
            )
    write_recipe(recipe, path)


def _changed_keys(path: Path, recipe: Recipe) -> list[str]:
    try:
        before = flatten(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, AttributeError) as problem:
        raise UsageError(f"{path} cannot be read.", "Choose another folder with out=.") from problem
    now = flatten(recipe.model_dump(mode="json"))
    return [
        f"{key} was {before.get(key, 'not set')}, is {now.get(key, 'not set')} now"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and key not in WHERE_AND_HOW and not key.endswith(HOW_SUFFIXES)
    ]


def check_stage(recipe: Recipe, stage: str, out: str | None) -> Job:
    """The job of one stage; raises `UsageError` where its data, its models or its folder cannot be used."""
    job = Job.of(recipe, stage, out)
    if stage == "rm" and recipe.rm.data is None:
        _check_rankings_can_be_made(recipe)
    job.check()
    return job


def _check_rankings_can_be_made(recipe: Recipe) -> None:
    """Rankings of people come with `chatpipe rank`; until then a run makes them in the built-in world alone."""
    check_sources(recipe.sample.data, "rm.data (or sample.data, to have rankings made)")


def _quiet_libraries() -> None:
    from chatpipe.training.quiet import quiet_libraries

    quiet_libraries()


def processes_of(recipe: Recipe) -> int:
    """How many processes a recipe runs in: what it says, else as many as visible GPUs, one on a CPU."""
    if launch.is_rank():
        return int(os.environ["WORLD_SIZE"])
    return recipe.processes or launch.default_processes()
