"""`chatpipe check`: the folder, data, models and checks of all stages of a recipe, and all problems at once.

The checks are those of the stages, on the first rows of their data, in a temporary folder.
"""

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from chatpipe import console
from chatpipe.checks.gate import CheckResult, run_checks
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import TRAINING_STAGES, DataBlock, Recipe, checks_of
from chatpipe.run.folder import check_run_folder
from chatpipe.run.launch import processes_of
from chatpipe.run.status import check_statuses
from chatpipe.run.step_checks import Check, recipe_checks
from chatpipe.run.steps import stage_module, step_of, steps_of
from chatpipe.stages.step import STAGES, Step
from chatpipe.training.machine import prepare_process

ROWS = 1000
"""Rows read of each source for training, and as many for validation: enough to know a share to about 1 %."""
TOKENIZER_BYTES = 2_000_000

Status = Literal["ok", "failed", "off", "not yet"]


@dataclass(frozen=True)
class Checked:
    """One line of the table: the stage, the recipe key or check (`what`), its outcome, the finding and the remedy."""

    stage: str
    what: str
    status: Status
    found: str = ""
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """One object of the list in `--json`."""
        return asdict(self)


def check_all(recipe: Recipe) -> list[Checked]:
    """The outcome of every check of every stage, in order. Problems are returned, not raised."""
    found: dict[str, list[Checked]] = {stage: [] for stage in ("", *STAGES)}
    found[""].append(_run("", "out", partial(_folder, recipe)))
    for stage, key, check in recipe_checks(recipe):
        found[stage].append(_run(stage, key, check))
    for stage in TRAINING_STAGES:
        step = step_of(recipe, stage)
        found[stage].append(_run(stage, f"{stage}.batch_size", partial(_batches, step)))
        reason = _why_not_yet(step, found[stage])
        if reason is None:
            found[stage] += _checks(step)
        else:
            found[stage] += [_not_run(recipe, stage, name, reason) for name in checks_of(stage)]
    return [checked for some in found.values() for checked in some]


def _run(stage: str, what: str, check: Check) -> Checked:
    try:
        return Checked(stage, what, "ok", check())
    except UsageError as problem:
        return Checked(stage, what, "failed", problem.message, problem.hint)


def _folder(recipe: Recipe) -> str:
    check_run_folder(recipe)
    check_statuses(steps_of(recipe))
    return recipe.out


def _batches(step: Step) -> str:
    parts = step.section.micro_batches(processes_of(step.recipe), step.stage)
    return f"{step.section.batch_size}, in micro-batches of {parts['per_device_train_batch_size']}"


# ---- checks ----


def _checks(step: Step) -> list[Checked]:
    """The outcomes of the stage's checks on the first rows of its data."""
    recipe, stage = step.recipe, step.stage
    results: list[CheckResult] = []
    with tempfile.TemporaryDirectory() as folder, console.silence():
        prepare_process()
        few = replace(step_of(_on_few_rows(recipe), stage, out=Path(folder) / stage), models=step.models)
        try:
            for checks in stage_module(stage).checks(few):
                results += run_checks(stage, recipe.checks, checks)
        except UsageError as problem:
            return [*map(_of_result, results), Checked(stage, "start", "failed", problem.message, problem.hint)]
    gc.collect()  # the models of the stage
    done = [_of_result(result) for result in results]
    if stage != "pretrain":
        return done
    late = [name for name in checks_of(stage) if name not in {result.name for result in results}]
    return done + [_not_run(recipe, stage, name, "shows once the text is tokenised") for name in late]


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


def _why_not_yet(step: Step, checked: Sequence[Checked]) -> str | None:
    """Why the stage's checks cannot run; None where they can."""
    if any(one.status == "failed" for one in checked):
        return "first mend what has failed"
    for key, makers in step.makers.items():
        if key in step.models and not (Path(step.models[key]) / "config.json").is_file():
            return f"there is no {step.models[key]} yet; {makers[0]} makes it"
        if key in step.data and not Path(step.data[key][-1].source).exists():
            return "there are no rankings yet; the run makes them"
    return None


def _of_result(result: CheckResult) -> Checked:
    finding = result.finding
    text = (finding.what, finding.remedy) if finding else ("", "")
    return Checked(result.stage, f"checks.{result.name}", result.status, *text)


def _not_run(recipe: Recipe, stage: str, name: str, reason: str) -> Checked:
    if not getattr(recipe.checks, name):
        return Checked(stage, f"checks.{name}", "off")
    return Checked(stage, f"checks.{name}", "not yet", reason)
