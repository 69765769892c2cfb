"""Runs steps one after the other: done steps are skipped, interrupted ones resumed.

A step runs in this process, or in several that accelerate's launcher starts with `chatpipe step`.
"""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatpipe.data.durable import folder_lock
from chatpipe.errors import TrainingError, UsageError, is_out_of_memory, reason_of
from chatpipe.models.manifest import Manifest, read_manifest, write_manifest
from chatpipe.recipe.schema import Recipe
from chatpipe.run import launch
from chatpipe.run.folder import (
    RECIPE_FILE,
    check_run_can_be_deleted,
    check_run_folder,
    check_same_run,
    clear,
    drop_resume_points,
    note_in_run,
    recipe_of_run,
    steps_in_folder,
    write_recipe,
)
from chatpipe.run.status import begin, check_statuses, evaluation_of, status
from chatpipe.run.step_checks import check_recipe, check_step
from chatpipe.run.steps import parameters_of, stage_module, steps_for, steps_of
from chatpipe.stages.step import Outcome, Stage, Step
from chatpipe.training import ranks


@dataclass(frozen=True)
class LaunchOptions:
    """How steps are run: in how many processes, with which accelerate flags, and whether they start over."""

    processes: int
    launch: str | None = None
    accelerate_flags: Sequence[str] = ()
    fresh: bool = False


@dataclass
class StepResult:
    """The manifest of a finished step; `skipped` when it was done already.

    `measured_otherwise` names the settings of the evaluation that differ from those of the stored result.
    """

    step: Step
    manifest: Manifest
    skipped: bool
    measured_otherwise: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {
            "stage": self.step.stage,
            "round": self.step.round,
            "out": str(self.step.folder),
            "seconds": round(self.manifest.seconds, 1),
            "processes": self.manifest.processes,
            "skipped": self.skipped,
            "metrics": self.manifest.metrics,
            "verdict": self.manifest.verdict,
        }


OnResult = Callable[[StepResult], None]


def check_run(recipe: Recipe, fresh: bool = False) -> list[Step]:
    """The steps of a run; raises `UsageError` for whatever is known to be wrong before the first one starts.

    Changes nothing, and imports no torch.
    """
    check_recipe(recipe)
    check_run_folder(recipe, replaces=fresh)
    steps = steps_of(recipe)
    if fresh:
        check_run_can_be_deleted(recipe)
    else:
        check_statuses(steps)
    return steps


def run_recipe(recipe: Recipe, how: LaunchOptions, on_result: OnResult) -> None:
    """Runs all steps of a recipe that `check_run` has passed; `on_result` gets each result as soon as it is there.

    Raises `WaitingForRankings` where people are to rank first.
    """
    if ranks.is_rank():
        raise UsageError(
            "`chatpipe run` starts its processes itself, and runs under no launcher.",
            "Use --processes N, or launch the stages one by one: chatpipe pretrain, sft, rm, ppo.",
        )
    steps = steps_of(recipe)
    _check_batches(steps, how)
    with folder_lock(Path(recipe.out)):
        if how.fresh:
            clear(steps_in_folder(recipe))
        write_recipe(recipe, Path(recipe.out) / RECIPE_FILE)
        for step in steps:
            on_result(_run_step(step, how))


def check_stage(
    recipe: Recipe, stage: str, number: int = 1, out: str | None = None, fresh: bool = False, reads_data: bool = True
) -> list[Step]:
    """The steps of one stage, itself the last; raises `UsageError` where they cannot be run.

    Without `reads_data` the data may be missing.
    """
    if out == "":  # as of a shell variable that is not set
        raise UsageError("--out is empty.", "Give a folder, or leave it out.")
    steps = steps_for(recipe, stage, number, out)
    if out is None or len(steps) > 1:
        before = recipe_of_run(Path(recipe.out))
        if before is not None:
            check_same_run(before, recipe)
    made = {step.name for step in steps[:-1]}
    for step in steps:
        check_step(step, made, reads_data)
    check_statuses(steps, cleared=_cleared(steps, out) if fresh else ())
    return steps


def run_stage(steps: Sequence[Step], how: LaunchOptions, out: str | None, on_result: OnResult) -> None:
    """Runs the steps of one stage that `check_stage` has passed, in the run's folder or in the folder `out`.

    Under a launcher of somebody else this process is one rank: all ranks run the same steps together.
    """
    _check_batches(steps, how)
    stage = steps[-1]
    if how.fresh:
        if ranks.is_rank():
            ranks.join_world(stage.processes)  # all ranks see what is left
        if stage.is_main:
            with folder_lock(Path(out or stage.recipe.out)):  # apart, since the folder that is held may be deleted
                clear(_cleared(steps, out))
        ranks.wait_for_all()
    with ExitStack() as held:
        if stage.is_main:
            for folder in _folders_to_hold(steps, out):
                held.enter_context(folder_lock(folder))
            check_statuses(steps)  # what people ranked has not been cleared
            if out is None:
                note_in_run(stage)
        for step in steps:
            result = _run_step(step, how)
            if step.is_main:
                on_result(result)


def run_here(step: Step) -> None:
    """Runs the step in this process, which may be one rank of several."""
    start = time.monotonic()
    module: Stage = stage_module(step.stage)
    if not step.asks_people:  # they need no torch
        _prepare_process()
    if ranks.is_rank():
        ranks.join_world(step.processes)
    # Taken now: what is edited while the step runs is not what it was made from.
    manifest = begin(step) if step.is_main else None
    try:
        outcome: Outcome | None = module.run(step)
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        raise out_of_memory(step, problem) from problem
    _free_memory()
    if manifest is not None and outcome is not None:
        manifest.metrics, manifest.verdict = outcome.metrics, outcome.verdict
        manifest.seconds = time.monotonic() - start
        write_manifest(step.folder, manifest)
        if not step.recipe.keep_checkpoints:
            drop_resume_points(step)
    ranks.wait_for_all()  # the manifest is there for all


def plan_step(step: Step, how: LaunchOptions) -> dict[str, Any]:
    """What the step would do, without running it: parameters, optimizer steps, tokens and the command.

    Raises `UsageError` where the processes cannot share the batches.
    """
    _check_batches([step], how)
    plan: dict[str, Any] = {"stage": step.stage, "out": str(step.folder)}
    plan["processes"] = 1 if step.runs_in_place else how.processes
    parameters: int | str = "unknown"
    if "model" in step.models or step.trains:
        plan["parameters"] = parameters = parameters_of(step)
        plan["models"] = ", ".join(step.models.values()) or "a new one"
    if step.trains:
        plan["learning_rate"] = step.section.peak_rate
    if step.trains and isinstance(parameters, int) and hasattr(step.section, "lora"):
        plan["memory_gib"] = _memory(step, parameters)
    plan.update(step.amounts(parameters))
    launched = ["accelerate", "launch", *launch_command(step, how)[3:]]
    plan["command"] = shlex.join(launched) if is_launched(step, how) else "in this process"
    return plan


def _memory(step: Step, parameters: int) -> dict[str, float]:
    """What one process holds throughout training, in GiB: float32 weights, their gradients and AdamW's two moments.

    Activations come on top of it, and adapters (`lora`), which are small. ppo trains a value model as large as the
    policy, and reads a reference (with `lora` the policy is that) and the reward models.
    """
    lora = step.section.lora is not None
    trained, frozen = (0, 1) if lora else (1, 0)
    if len(step.models) > 1:
        trained, frozen = trained + 1, len(step.models)
    weights = 4 * parameters / 2**30
    parts = {"weights": trained * weights, "gradients": trained * weights, "optimizer": 2 * trained * weights}
    parts["frozen"] = frozen * weights
    return {name: round(size, 2) for name, size in {**parts, "total": sum(parts.values())}.items()}


def out_of_memory(step: Step, problem: BaseException) -> TrainingError:
    """The error for a step that needs more memory than there is, with the keys that help."""
    what = f"{step.name} needs more memory than there is: {reason_of(problem)}"
    return TrainingError(what, f"{memory_remedy(step)} What is finished is kept.")


def memory_remedy(step: Step) -> str:
    """The keys with which a step takes less memory."""
    if not step.trains:
        return step.less_memory
    stage, section = step.stage, step.section
    longest = next(key for key in ("block_size", "response_length", "max_length") if hasattr(section, key))
    ways = [] if section.per_device_train_batch_size == 1 else [f"{stage}.per_device_train_batch_size=1"]
    ways += [] if section.gradient_checkpointing is True else [f"{stage}.gradient_checkpointing=true"]
    ways += [f"{stage}.bf16=true"] if section.bf16 is False else []
    ways += [f"a smaller {stage}.{longest}"]
    ways += [f"{stage}.lora={{}} (adapters alone)"] if getattr(section, "lora", True) is None else []
    return f"Try, in this order: {', '.join(ways)}."


def launch_command(step: Step, how: LaunchOptions) -> list[str]:
    """The command that starts the step in several processes."""
    arguments = ["step", step.name, str(step.folder / RECIPE_FILE), "--out", str(step.folder)]
    return launch.accelerate_command(how.processes, how.launch, how.accelerate_flags, arguments)


def is_launched(step: Step, how: LaunchOptions) -> bool:
    """Whether this process starts others for the step, and computes nothing itself."""
    return how.processes > 1 and not ranks.is_rank() and not step.runs_in_place


def _run_step(step: Step, how: LaunchOptions) -> StepResult:
    if status(step) == "done":
        manifest = read_manifest(step.folder)
        assert manifest is not None, f"{step.folder} has no manifest"
        if step.asks_people and step.is_main:
            stage_module(step.stage).note_newer_rankings(step)
        return StepResult(step, manifest, True, manifest.measured_otherwise(evaluation_of(step)))
    if is_launched(step, how):
        begin(step)  # marks the folder as ours, even if all ranks are killed before they write
        write_recipe(step.recipe, step.folder / RECIPE_FILE)
        launch.launch(launch_command(step, how), how.processes, step.name, step.folder)
    else:
        run_here(step)
    manifest = read_manifest(step.folder)
    assert manifest is not None, f"{step.name} left no manifest"
    return StepResult(step, manifest, skipped=False)


def _cleared(steps: Sequence[Step], out: str | None) -> Sequence[Step]:
    """The steps that --fresh deletes: the stage itself, and its rankings where they belong to the same run."""
    return steps if out is None else steps[-1:]


def _folders_to_hold(steps: Sequence[Step], out: str | None) -> list[Path]:
    """The run's folder, or the stage's own; both where a stage of its own makes rankings in the run."""
    run = Path(steps[-1].recipe.out)
    if out is None:
        return [run]
    holds_run = len(steps) > 1 and Path(out).resolve() != run.resolve()
    return [Path(out), run] if holds_run else [Path(out)]


def _check_batches(steps: Sequence[Step], how: LaunchOptions) -> None:
    for step in steps:
        if step.trains:
            step.section.micro_batches(how.processes, step.stage)


def _prepare_process() -> None:
    """Prepares this process once before it computes; imported late, for it brings torch along."""
    from chatpipe.training.machine import prepare_process

    prepare_process()
    launch.use_allowed_threads()


def _free_memory() -> None:
    """Frees what the step kept, also on a GPU, for the next step in this process or for one that is launched."""
    if "torch" not in sys.modules:
        return
    from chatpipe.training.machine import release_memory

    release_memory()
