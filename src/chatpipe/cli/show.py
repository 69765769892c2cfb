"""Prints plans and results for people: the dry run, a stage's verdict, and the table at the end of a run."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from chatpipe import console
from chatpipe.errors import ExitCode
from chatpipe.recipe import Resolved
from chatpipe.recipe.loading import DEFAULT, flatten
from chatpipe.run.chain import LaunchOptions, StepResult, plan_step
from chatpipe.stages.step import Step

if TYPE_CHECKING:
    from chatpipe.checks.gate import CheckResult
    from chatpipe.evaluation.evaluate_model import Measurement

CHECK_STYLES = {"ok": "green", "failed": "red", "off": "yellow", "not yet": "dim"}
STYLES = {"pass": "green", "warn": "yellow", "fail": "red"}


def show_plan(
    resolved: Resolved,
    steps: Sequence[Step],
    how: LaunchOptions,
    json: bool,
    foresee: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Values with their origin, then for each stage parameters, steps, tokens and the command.

    The values of the stages come first, and among these those that differ from the default; of everything else only
    what differs. `foresee` adds what else the plan of the last stage tells.
    """
    plans = [plan_step(step, how) for step in steps]
    if foresee is not None:
        plans[-1].update(foresee(plans[-1]))
    rows = resolved.rows()
    if json:
        typed = flatten(resolved.recipe.model_dump(mode="json"))
        values = {key: {"value": typed[key], "origin": origin} for key, _, origin in rows}
        console.json_object({"recipe": values, "stages": plans})
        return
    stages = {step.stage for step in steps}
    ordered = sorted(rows, key=lambda row: (row[0].split(".")[0] not in stages, row[2] == DEFAULT))
    for key, value, origin in ordered:
        if origin == DEFAULT and key.split(".")[0] not in stages and len(stages) == 1:
            continue
        console.data(f"{key:<44} {value:<28} {origin}")
    for plan in plans:
        console.data("")
        for key, value in plan.items():
            console.data(f"{key:<20} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def show_stage(result: StepResult) -> None:
    """One line for a stage that is done, its verdict's reasons, and whether the recipe now measures in another way."""
    status = result.manifest.verdict.get("status", "?")
    state = "done before" if result.skipped else f"{result.manifest.seconds:.0f} s{_evaluating(result)}"
    console.note(f"{result.step.name}: {status} ({state}) -> {result.step.folder}")
    for reason in result.manifest.verdict.get("reasons", []):
        console.note(f"  - {reason}")
    if result.measured_otherwise:
        name, changes = result.step.name, "; ".join(result.measured_otherwise)
        console.warn(f"{name} was measured with other settings: {changes} (--fresh trains and measures again)")


def _evaluating(result: StepResult) -> str:
    """The share of the stage's time that its verdict took."""
    seconds = result.manifest.metrics.get("evaluation_seconds")
    return "" if seconds is None else f", {seconds:.0f} s of it evaluating"


def show_run_table(results: Sequence[StepResult]) -> None:
    """For each stage metrics before and after, verdict, seconds in all and evaluating; then answers to one question."""
    rows, styles = [], []
    for result in results:
        metrics, verdict = result.manifest.metrics, result.manifest.verdict
        for i, (what, before, after) in enumerate(result.step.gains(metrics)):
            times = result.manifest.seconds, metrics.get("evaluation_seconds", 0.0)
            closing = (verdict["status"], *(f"{time:.0f}" for time in times)) if i == 0 else ("", "", "")
            rows.append((result.step.name if i == 0 else "", what, before, after, *closing))
            styles.append(STYLES.get(verdict["status"], ""))
    console.table(
        "What each stage gained", ("stage", "measured", "before", "after", "verdict", "s", "evaluating"), rows, styles
    )
    examples = [(result.step.name, result.manifest.metrics.get("example", {})) for result in results]
    answers = [(stage, example["answer"]) for stage, example in examples if example]
    if answers:
        question = next(example["question"] for _, example in examples if example)
        console.table(f"Asked: {question}", ("stage", "answer"), answers)


def show_checks(checked: "Sequence[CheckResult]") -> None:
    """A table of checks: stage, subject, outcome, finding; a failed check has its remedy in the next line.

    Checks of a stage with the same outcome share a row.
    """
    rows, styles = [], []
    for (stage, is_switch, status, found), some in groupby(checked, _outcome):
        same = list(some)
        if is_switch and status != "failed":
            names = ", ".join(one.what.removeprefix("checks.") for one in same)
            rows.append((stage, f"{len(same)} {'check' if len(same) == 1 else 'checks'}: {names}", status, found))
            styles.append(CHECK_STYLES[status])
            continue
        for one in same:
            rows.append((stage, one.what, status, f"{found}\n{one.remedy}" if status == "failed" else found))
            styles.append(CHECK_STYLES[status])
    console.table("Before it runs", ("stage", "what", "", "found"), rows, styles)


def _outcome(one: "CheckResult") -> tuple[str, bool, str, str]:
    return one.stage, one.what.startswith("checks."), one.status, one.found


def show_measurement(measurement: "Measurement") -> None:
    """A table of the metrics, one line each, then the model's samples and answers."""
    metrics = measurement.metrics
    title = f"{measurement.model} on {measurement.data}, read as {measurement.format}: {measurement.rows:,} rows"
    rows = [(name, _measure(value)) for name, value in metrics.items() if not isinstance(value, list)]
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in measurement.skipped_rows.items()]
    rows += [("sample", text) for text in metrics.get("samples", [])]
    rows += [("answer", f"{one['question']} -> {one['answer']}") for one in metrics.get("answers", [])]
    console.table(title, ("measured", ""), rows)
    if metrics.get("eos_share", 1.0) < 1:
        limit = metrics["longest_answer"]
        console.note(
            f"{1 - metrics['eos_share']:.0%} of the answers are cut at {limit} tokens (evaluation.max_new_tokens)"
        )


def _measure(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_measure(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else _shown(value)


def strict_exit(results: Sequence[StepResult]) -> None:
    """With `--strict`, a failed verdict makes the command fail."""
    if any(result.manifest.verdict.get("status") == "fail" for result in results):
        raise SystemExit(int(ExitCode.FAILED))
