"""`chatpipe check`: the folder, data, models and checks of all stages of a recipe, and all problems at once.

The checks are those of the stages, on the first rows of their data, in a temporary folder.
"""

import gc
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from chatpipe import console
from chatpipe.checks.gate import CheckResult, run_checks
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import TRAINING_STAGES, DataBlock, Recipe, checks_of
from chatpipe.run.folder import check_run_folder
from chatpipe.run.launch import processes_of
from chatpipe.run.status import check_statuses
from chatpipe.run.step_checks import recipe_checks
from chatpipe.run.steps import STAGES, stage_module, step_of, steps_of
from chatpipe.stages.step import Step, TrainingStage
from chatpipe.training.machine import prepare_process

ROWS = 1000
"""Rows read of each source: enough to know a share to about 1 %."""
TOKENIZER_BYTES = 2_000_000


def check_all(recipe: Recipe) -> list[CheckResult]:
    """The outcome of every check of every stage, in order. Problems are returned, not raised."""
    found: dict[str, list[CheckResult]] = {stage: [] for stage in ("", *STAGES)}
    found[""] += run_checks("", {"out": partial(_folder, recipe)})
    for stage, checks in recipe_checks(recipe):
        found[stage] += run_checks(stage, checks)
    for stage, step in {step.stage: step for step in reversed(steps_of(recipe)) if step.trains}.items():
        found[stage] += run_checks(stage, {f"{stage}.batch_size": partial(_batches, step)})
        reason = _why_not_yet(step, found[stage])
        found[stage] += _stage_checks(step) if reason is None else _not_run(step, checks_of(stage), reason)
        gc.collect()  # the models of the stage
    return [result for some in found.values() for result in some]


def _folder(recipe: Recipe) -> str:
    check_run_folder(recipe)
    check_statuses(steps_of(recipe))
    return recipe.out


def _batches(step: Step) -> str:
    step.section.micro_batches(processes_of(step.recipe), step.stage)
    micro = step.section.per_device_train_batch_size
    return f"{step.section.batch_size}{f', in micro-batches of {micro}' if micro else ''}"


# ---- the checks of a stage ----


def _stage_checks(step: Step) -> list[CheckResult]:
    """The outcomes of the stage's checks on the first rows of its data."""
    recipe, stage = step.recipe, step.stage
    results: list[CheckResult] = []
    with tempfile.TemporaryDirectory() as folder, console.silence():
        prepare_process()
        few = step_of(_on_few_rows(recipe), stage, out=Path(folder) / stage)
        try:
            module: TrainingStage = stage_module(stage)
            for checks in module.checks(few):
                results += run_checks(stage, checks, recipe.checks)
        except UsageError as problem:
            return [*results, CheckResult(stage, "start", "failed", problem.message, problem.hint)]
    done = {result.what for result in results}
    late = [name for name in checks_of(stage) if f"checks.{name}" not in done]
    return results + _not_run(step, late, "shows once the stage has made its data")


def _on_few_rows(recipe: Recipe) -> Recipe:
    """The recipe with the first rows of its sources. The share of unusable rows is checked before, on all rows."""
    sections = {}
    for name in (*TRAINING_STAGES, "sample"):
        section = getattr(recipe, name)
        sections[name] = section.model_copy(update={"data": section.data and list(map(_first_rows, section.data))})
    tokenizer = recipe.pretrain.tokenizer
    few_bytes = tokenizer.model_copy(update={"train_bytes": min(tokenizer.train_bytes, TOKENIZER_BYTES)})
    sections["pretrain"] = sections["pretrain"].model_copy(update={"tokenizer": few_bytes})
    sections["ppo"] = sections["ppo"].model_copy(update={"ptx_coef": 0.0})  # no check reads that text
    return recipe.model_copy(update=sections)


def _first_rows(block: DataBlock) -> DataBlock:
    return block.model_copy(update={"limit": min(block.limit or ROWS, ROWS), "max_skipped": 1.0})


def _why_not_yet(step: Step, checked: Sequence[CheckResult]) -> str | None:
    """Why the stage's checks cannot run; None where they can."""
    if any(one.status == "failed" for one in checked):
        return "first mend what has failed"
    for key, makers in step.makers.items():
        if key in step.models and not (Path(step.models[key]) / "config.json").is_file():
            return f"there is no {step.models[key]} yet; {makers[0]} makes it"
        if key in step.data and not Path(step.data[key][-1].source).exists():
            return "there are no rankings yet; the run makes them"
    return None


def _not_run(step: Step, names: Iterable[str], reason: str) -> list[CheckResult]:
    return [
        CheckResult(step.stage, f"checks.{name}", "not yet", reason)
        if getattr(step.recipe.checks, name)
        else CheckResult(step.stage, f"checks.{name}", "off")
        for name in names
    ]
