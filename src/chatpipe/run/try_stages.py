"""Tries stages on the first rows of their data, in a temporary folder: their checks, and what they would take.

`chatpipe check` reports the folder, data, models and checks of all stages of a recipe, and all problems at once. A dry
run of a stage takes a few steps of it.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState

from chatpipe import console
from chatpipe.checks.gate import CheckResult, run_checks
from chatpipe.errors import TrainingError, UsageError, is_out_of_memory
from chatpipe.generation import Completion, SamplingParams, generate
from chatpipe.generation.engine import bytes_per_position, usual_slots
from chatpipe.generation.ways import Way, way_of
from chatpipe.models.pretrained import training_device
from chatpipe.recipe.schema import TRAINING_STAGES, DataBlock, Recipe, checks_of
from chatpipe.run.chain import memory_remedy, out_of_memory
from chatpipe.run.folder import check_run_folder
from chatpipe.run.launch import processes_of
from chatpipe.run.memory_estimate import GIB
from chatpipe.run.status import check_statuses
from chatpipe.run.step_checks import recipe_checks
from chatpipe.run.steps import STAGES, stage_module, step_of, steps_of
from chatpipe.stages.shared import REHEARSED_STEPS, Rehearsal
from chatpipe.stages.step import Step, TrainingStage
from chatpipe.training.arguments import recomputes
from chatpipe.training.callbacks import StepClock
from chatpipe.training.machine import (
    begin_peak,
    free_memory,
    give_back_freed_memory,
    peak_memory,
    prepare_process,
    used_memory,
)
from chatpipe.training.progress import format_duration

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
        failed = any(one.status == "failed" for one in found[stage])
        reason = "first mend what has failed" if failed else _why_not_yet(step)
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


def _why_not_yet(step: Step) -> str | None:
    """Why the stage's model cannot be tried on its rows: the run has to make one of both. None where it can."""
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


# ---- the rehearsal of a stage: a few steps, timed ----

REHEARSAL_SECONDS = 6.0
PROMPT_TOKENS, WRITING_ROWS, FEW_TOKENS, WRITTEN_TOKENS = 48, 8, 8, 32
"""A rehearsal answers so many prompts, of which it reads the end alone, in so many tokens; two prompts in a few."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Speeds:
    """Seconds of a rehearsal, and bytes.

    `step`: of the optimizer. The others are seconds a token: `trained` with gradients, `read` without, `written`.
    `answer` is how many tokens an answer has on average; `peak` the most memory that the process held.
    """

    step: float
    trained: float
    read: float
    written: float
    answer: float
    peak: int


def rehearsed(step: Step, processes: int, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The memory and time of a stage that a dry run forecasts, from a few steps of the real model on real rows.

    `plan` is that of the step. Raises `UsageError` where the model cannot be trained. Nothing is fetched from the hub:
    what depends on it, or on what the run makes first, is `unknown`.
    """
    reason = _why_unknown(step)
    if reason is not None:
        return {"train_seconds": f"unknown: {reason}"}
    with tempfile.TemporaryDirectory() as folder, console.progress("rehearsing", total=None, lines=False):
        few = step_of(_on_few_rows(step.recipe), step.stage, step.round, Path(folder) / step.stage)
        begin_peak(training_device())
        with console.silence():
            try:
                rehearsal = stage_module(step.stage).rehearse(few, processes, plan)
                found = _rehearsed(rehearsal)
            except TrainingError as problem:
                named = f"{step.stage}.model = {step.models['model']}"
                raise UsageError(f"{named} cannot be trained: {problem.message}", problem.hint) from problem
            except Exception as problem:
                if is_out_of_memory(problem):
                    raise out_of_memory(step, problem) from problem
                raise
    _check_memory(step, found.peak, processes)
    return _forecast(step, rehearsal, found, processes, plan)


def _why_unknown(step: Step) -> str | None:
    """Why a stage cannot be rehearsed; None where it can."""
    away = [name for name in step.models.values() if not _is_here(name)]
    if away:
        return f"{away[0]} is not here"
    return _why_not_yet(step)


def _is_here(model: str) -> bool:
    """Whether a model is a folder, or was fetched from the hub before."""
    return Path(model).expanduser().is_dir() or isinstance(try_to_load_from_cache(model, "config.json"), str)


def _check_memory(step: Step, peak: int, processes: int) -> None:
    """Raises `UsageError` where the device has less than `peak` for each process that it has to hold."""
    device = training_device()
    free = free_memory(device) + used_memory(device)
    needed = peak * (processes if device.type == "cpu" else 1)
    if needed > free:
        raise UsageError(
            f"{step.stage} takes {needed / GIB:.1f} GiB of memory, but this {device.type} has {free / GIB:.1f} GiB "
            "free.",
            memory_remedy(step),
        )


def _forecast(
    step: Step, rehearsal: Rehearsal, found: Speeds, processes: int, plan: Mapping[str, Any]
) -> dict[str, Any]:
    """The plan's lines on memory and time, and what the recipe leaves to the model and the memory."""
    work, args = rehearsal.work(found.answer), rehearsal.trainer.args
    training = (work.trained * found.trained + work.read * found.read + work.written * found.written) / processes
    seconds = work.steps * found.step + training
    evaluating = (work.validated * found.read + work.answered * found.written) / processes
    counted = plan.get("memory_gib", {})
    total = max(found.peak / GIB, counted.get("total", 0.0))
    parts = {name: size for name, size in counted.items() if name != "total"}
    lines: dict[str, Any] = {
        "memory_gib": {**parts, "rest": round(total - sum(parts.values()), 2), "total": round(total, 2)},
        "train_seconds": round(seconds, 3),
        "train_time": format_duration(seconds),
        "evaluation_seconds": round(evaluating, 3),
        "evaluation_time": format_duration(evaluating),
        "tokens_per_second": round(work.trained / seconds, 1),
        "micro_batch": rehearsal.micro_batch,
        "bf16": args.bf16,
        "gradient_checkpointing": recomputes(args),
    }
    if rehearsal.prompts:
        lines["longest_answer"] = rehearsal.new_tokens
    return lines


class _Rehearsing(StepClock):
    """The clock of a rehearsal, which counts the bytes of its steps.

    `standing`: what the process holds after a step, with the optimizer's state. A step of `largest` tokens at most held
    `peak`. Both are known from the second step on.
    """

    standing = peak = largest = 0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measures what is allocated, with the first step's optimizer."""
        if len(self.tokens) == 1:
            give_back_freed_memory()
            self.standing = used_memory(args.device)
            begin_peak(args.device)
        super().on_step_begin(args, state, control)

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measures the peak of the largest step."""
        super().on_pre_optimizer_step(args, state, control)
        self.peak, self.largest = peak_memory(args.device), max(self.tokens[1:], default=0)


def _rehearsed(rehearsal: Rehearsal) -> Speeds:
    """Takes the steps of a rehearsal, has it read and answer, and returns what that took."""
    trainer = rehearsal.trainer
    device = trainer.args.device
    rehearsal.read()  # warms up
    read_seconds, read = _timed(rehearsal.read, device)
    written, answer, cache = _write(rehearsal, device)
    clock = _Rehearsing(REHEARSAL_SECONDS, 0.0, REHEARSED_STEPS, rehearsal.tokens_of)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(clock)
    trainer.max_nonfinite_steps = 1
    before = peak_memory(device)
    trainer.train()
    more = _bytes_of(rehearsal, rehearsal.largest) - _bytes_of(rehearsal, clock.largest)
    peak = max(before, clock.peak + more, clock.standing + cache)
    return Speeds(clock.medians()[1], clock.seconds_of_a_token(), read_seconds / read, written, answer, peak)


def _bytes_of(rehearsal: Rehearsal, tokens: int) -> int:
    """What a micro-batch of so many tokens keeps in memory for its backward pass."""
    args = rehearsal.trainer.args
    return replace(rehearsal.reading, tokens=tokens).row_bytes(recomputes(args), args.bf16)


def _write(rehearsal: Rehearsal, device: torch.device) -> tuple[float, float, int]:
    """Seconds of a written token, tokens of an average answer, and bytes of the cache of the longest answers.

    A step of decoding takes as much longer as there are more rows: that is measured with 2 rows and with a few.
    """
    model, most = rehearsal.model, rehearsal.new_tokens
    if not rehearsal.prompts:
        return 0.0, 0.0, 0
    prompts = rehearsal.prompts[: usual_slots(model)]
    some = [prompt[-PROMPT_TOKENS:] for prompt in prompts[:WRITING_ROWS]]

    def step_seconds(rows: int, tokens: int) -> tuple[float, list[Completion]]:
        params = [SamplingParams(max_new_tokens=number) for number in (1, tokens)]
        (first, _), (seconds, completions) = (
            _timed(partial(generate, model, some[:rows], each, rehearsal.eos_token_id, seed=0), device)
            for each in params
        )
        steps = max(len(done.ids) for done in completions) - 1
        return max(seconds - first, 0.0) / max(steps, 1), completions

    few, _ = step_seconds(2, min(most, FEW_TOKENS))
    many, completions = step_seconds(len(some), min(most, WRITTEN_TOKENS))
    of_a_row = max(many - few, 0.0) / max(len(some) - 2, 1)
    step = many + of_a_row * (len(prompts) - len(some))
    ends = sum(done.ended for done in completions) / sum(len(done.ids) for done in completions)
    average = (1 - (1 - ends) ** most) / ends if ends else most
    positions = len(prompts) * (max(map(len, prompts)) + most)
    cache = positions * bytes_per_position(model) if way_of(model) is Way.ENGINE else 0
    return step / len(prompts), average, cache


def _timed(run: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    start = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result
