"""Prints plans and results for people: the dry run, a stage's verdict, and the table at the end of a run."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from chatpipe import console
from chatpipe.errors import ExitCode
from chatpipe.evaluation.verdict import started_from
from chatpipe.recipe import Resolved
from chatpipe.recipe.loading import flatten
from chatpipe.run.chain import How, StepResult
from chatpipe.run.plan import plan_stage
from chatpipe.stages.step import Step

if TYPE_CHECKING:
    from chatpipe.checks.gate import CheckResult
    from chatpipe.evaluation.evaluate_model import Measurement

CHECK_STYLES = {"ok": "green", "failed": "red", "off": "yellow", "not yet": "dim"}
STYLES = {"pass": "green", "warn": "yellow", "fail": "red"}


def show_plan(
    resolved: Resolved,
    steps: Sequence[Step],
    how: How,
    json: bool,
    more: dict[str, Any] | None = None,
) -> None:
    """Every value with its origin, then for each stage parameters, steps, tokens and the command.

    `more` is what else is known of the last stage.
    """
    plans = [plan_stage(step, how) for step in steps]
    plans[-1].update(more or {})
    rows = resolved.rows()
    if json:
        typed = flatten(resolved.recipe.model_dump(mode="json"))
        values = {key: {"value": typed[key], "origin": origin} for key, _, origin in rows}
        console.json_object({"recipe": values, "stages": plans})
        return
    for key, value, origin in rows:
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
        for i, (what, before, after) in enumerate(_measured(result.step.stage, metrics)):
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


def _measure(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_measure(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else _shown(value)


def strict_exit(results: Sequence[StepResult]) -> None:
    """With `--strict`, a failed verdict makes the command fail."""
    if any(result.manifest.verdict.get("status") == "fail" for result in results):
        raise SystemExit(int(ExitCode.FAILED))


def _measured(stage: str, metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, before, after) of a stage, from its metrics."""
    if stage == "sample":
        return [(f"prompts answered {metrics['k']} times at most", "", f"{metrics['prompts']:,}")]
    if stage == "rank":
        return [("rankings", "", f"{metrics['rankings']:,}")]
    if stage == "pretrain" and "unigram_loss" in metrics:
        before = metrics.get("untrained_eval_loss", metrics.get("eval_loss_before"))
        what = f"nats per hidden token (by frequency: {metrics['unigram_loss']:.2f})"
        return [(what, f"{before:.2f}", f"{metrics['eval_loss']:.2f}")]
    if stage == "pretrain":
        trigram = metrics["trigram_bits_per_byte"]
        before = metrics.get("untrained_bits_per_byte", metrics.get("bits_per_byte_before"))
        what = f"bits per byte (3-gram model: {trigram:.2f})"
        return [(what, f"{before:.2f}", f"{metrics['bits_per_byte']:.2f}")]
    if stage == "sft":
        rows = [("validation loss, nats a token", f"{metrics['eval_loss_before']:.2f}", f"{metrics['eval_loss']:.2f}")]
        if "right" in metrics:
            what = f"correct answers at temperature {metrics['eval_temperature']:g} (before: chance)"
            rows.append((what, _percent(metrics["chance"]), _percent(metrics["right"])))
        return [*rows, ("answers that stop", "", _percent(metrics["eos_share"]))]
    if stage == "rm":
        accuracy = _percent(metrics["eval_accuracy"])
        what = f"pairs ordered correctly (before: the {metrics['length_rule']} one)"
        rows = [(what, _percent(metrics["length_baseline"]), accuracy)]
        if "words_baseline" in metrics:
            rows.append(("the same (before: by words and length)", _percent(metrics["words_baseline"]), accuracy))
        return rows
    start = started_from(metrics)
    rows = [("reward it was trained on", *_scores(metrics, "reward"))]
    if "oracle_score" in metrics:
        rows.append(("oracle's score", *_scores(metrics, "oracle")))
        rows.append((f"win rate by the oracle over {start}", "50 %", _percent(metrics["win_rate"])))
        rows.append(("correct answers", _percent(metrics["right_before"]), _percent(metrics["right"])))
    if "oracle_reward_score" in metrics:
        rows.append(("ppo.oracle_reward_model's score", *_scores(metrics, "oracle_reward")))
        rows.append((f"win rate over {start} (by that model)", "50 %", _percent(metrics["oracle_reward_win_rate"])))
    if not metrics.keys() & {"oracle_score", "oracle_reward_score"}:
        rows.append((f"win rate over {start} (by that reward)", "50 %", _percent(metrics["reward_win_rate"])))
    if "win_rate_over_first" in metrics:
        rates = _percent(metrics["win_rate_over_first_before"]), _percent(metrics["win_rate_over_first"])
        rows.append(("win rate over the policy of the first round's start", *rates))
    return [*rows, (f"KL to {start}, nats an answer", "0.0", f"{metrics['objective/kl']:.1f}")]


def _scores(metrics: dict[str, Any], scorer: str) -> tuple[str, str]:
    """The scores before and after."""
    return f"{metrics[f'{scorer}_score_before']:.2f}", f"{metrics[f'{scorer}_score']:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
