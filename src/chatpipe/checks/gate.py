"""Running the checks of a stage: all of them, so that one error names all problems."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import CheckSwitches

MOST_IN_FULL = 3
"""Findings shown with their remedy, two lines each. With the first and the last line, an error has eight lines."""


@dataclass(frozen=True)
class Finding:
    """A problem that a check found: what is wrong and where, and what to do; one line each."""

    what: str
    remedy: str


Checks = Mapping[str, Callable[[], Finding | None]]
"""Checks by name, in the order in which they run; a check returns None where it finds nothing."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check; `finding` is given only if it failed."""

    name: str
    stage: str
    status: Literal["ok", "failed", "off"]
    finding: Finding | None = None


def enforce(stage: str, switches: CheckSwitches, checks: Checks) -> list[CheckResult]:
    """Runs `checks` and raises `UsageError` with all findings.

    Every rank runs them on the same data and models, so that all ranks stop together.
    """
    results = run_checks(stage, switches, checks)
    failed = [result for result in results if result.finding is not None]
    if failed:
        raise _stop(stage, failed)
    return results


def refuse(checks: Checks) -> None:
    """Runs checks that cannot be turned off, and raises `UsageError` with all findings."""
    found = [finding for check in checks.values() if (finding := check()) is not None]
    if len(found) == 1:
        raise UsageError(found[0].what, found[0].remedy)
    if found:
        shown = found[:MOST_IN_FULL]
        lines = [line for finding in shown for line in (finding.what, f"  {finding.remedy}")]
        raise UsageError("\n".join(lines), f"{len(found)} problems in all; mend these first.")


def run_checks(stage: str, switches: CheckSwitches, checks: Checks) -> list[CheckResult]:
    """The outcome of each check, in order; a check that `switches` turn off does not run."""
    return [
        _run(name, stage, check) if getattr(switches, name) else CheckResult(name, stage, "off")
        for name, check in checks.items()
    ]


def _run(name: str, stage: str, check: Callable[[], Finding | None]) -> CheckResult:
    finding = check()
    return CheckResult(name, stage, "ok" if finding is None else "failed", finding)


def _stop(stage: str, failed: Sequence[CheckResult]) -> UsageError:
    shown = failed if len(failed) <= MOST_IN_FULL else failed[: MOST_IN_FULL - 1]
    lines = [f"{stage} would go wrong without any error, so it stops before its first step."]
    for result in shown:
        assert result.finding is not None
        lines += [f"checks.{result.name}: {result.finding.what}", f"  {result.finding.remedy}"]
    if len(shown) < len(failed):
        rest = ", ".join(f"checks.{result.name}" for result in failed[len(shown) :])
        lines.append(f"... and {len(failed) - len(shown)} more: {rest}")
    others = "" if len(failed) == 1 else " (likewise for the others)"
    return UsageError("\n".join(lines), f"To train anyway, turn this check off: checks.{failed[0].name}=false{others}.")
