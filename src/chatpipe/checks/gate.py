"""Running the checks of a stage: all of them, so that one error names everything that is wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from chatpipe.errors import UsageError
from chatpipe.recipe.check_switches import CheckSwitches

MOST_IN_FULL = 3
"""Two lines each; with the first and the last line that makes the eight an error may have."""


@dataclass(frozen=True)
class Finding:
    """What a check found: what is wrong and where, and what to do; a line each."""

    what: str
    remedy: str


Checks = Mapping[str, Callable[[], Finding | None]]
"""The checks of a stage by name, in the order in which they run; None: nothing was found."""


@dataclass(frozen=True)
class CheckResult:
    """How a check went; `finding` only where it failed."""

    name: str
    stage: str
    status: Literal["ok", "failed", "off"]
    finding: Finding | None = None


def enforce(stage: str, switches: CheckSwitches, checks: Checks) -> list[CheckResult]:
    """Runs `checks`, and raises `UsageError` with all that was found.

    Every rank runs them on the same data and models, so all stop together.
    """
    results = run_checks(stage, switches, checks)
    failed = [result for result in results if result.finding is not None]
    if failed:
        raise _stop(stage, failed)
    return results


def refuse(checks: Checks) -> None:
    """Runs checks that have no switch, and raises `UsageError` with all that was found."""
    found = [finding for check in checks.values() if (finding := check()) is not None]
    if len(found) == 1:
        raise UsageError(found[0].what, found[0].remedy)
    if found:
        shown = found[:MOST_IN_FULL]
        lines = [line for finding in shown for line in (finding.what, f"  {finding.remedy}")]
        raise UsageError("\n".join(lines), f"{len(found)} problems in all; mend these first.")


def run_checks(stage: str, switches: CheckSwitches, checks: Checks) -> list[CheckResult]:
    """How each of `checks` went, in their order; one that `switches` turn off does not run."""
    return [
        _run(name, stage, check) if getattr(switches, name) else CheckResult(name, stage, "off")
        for name, check in checks.items()
    ]


def _run(name: str, stage: str, check: Callable[[], Finding | None]) -> CheckResult:
    finding = check()
    return CheckResult(name, stage, "ok" if finding is None else "failed", finding)


def _stop(stage: str, failed: Sequence[CheckResult]) -> UsageError:
    shown = failed if len(failed) <= MOST_IN_FULL else failed[: MOST_IN_FULL - 1]
    lines = [f"{stage} could only fail silently; it is stopped before its first step."]
    for result in shown:
        assert result.finding is not None
        lines += [f"checks.{result.name}: {result.finding.what}", f"  {result.finding.remedy}"]
    if len(shown) < len(failed):
        rest = ", ".join(f"checks.{result.name}" for result in failed[len(shown) :])
        lines.append(f"... and {len(failed) - len(shown)} more: {rest}")
    others = "" if len(failed) == 1 else ", the others likewise"
    return UsageError("\n".join(lines), f"If it is meant: checks.{failed[0].name}=false turns this check off{others}.")
