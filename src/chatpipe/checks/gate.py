"""Running checks: all of a list, so that one error names all problems.

A check with a switch (`checks.NAME` in the recipe) finds what would go wrong without any error; the others find what
cannot work at all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import CheckSwitches

MOST_IN_FULL = 3
"""Findings shown with their remedy, two lines each. With the first and the last line, an error has eight lines."""


@dataclass(frozen=True)
class Finding:
    """A problem that a check found: what is wrong and where, and what to do."""

    what: str
    remedy: str


Check = Callable[[], Finding | str | None]
"""Returns what is wrong; else None, or in a few words what it looked at."""

Checks = Mapping[str, Check]
"""Checks in the order in which they run, by the name of their switch; those without one by the recipe key they ask."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check. `what` is `checks.NAME` or a recipe key; `found` what is wrong or was looked at."""

    stage: str
    what: str
    status: Literal["ok", "failed", "off", "not yet"]
    found: str = ""
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """One object of the list that `chatpipe check --json` prints."""
        return asdict(self)


def enforce(stage: str, switches: CheckSwitches, checks: Checks) -> list[CheckResult]:
    """Runs `checks` and raises `UsageError` with all findings.

    Every rank runs them on the same data and models, so that all ranks stop together.
    """
    results = run_checks(stage, switches, checks)
    failed = [result for result in results if result.status == "failed"]
    if failed:
        raise _stop(stage, failed)
    return results


def refuse(checks: Checks) -> None:
    """Runs checks that cannot be turned off, and raises `UsageError` with all findings."""
    found = [finding for check in checks.values() if isinstance(finding := check(), Finding)]
    if len(found) == 1:
        raise UsageError(found[0].what, found[0].remedy)
    if found:
        shown = found[:MOST_IN_FULL]
        lines = [line for finding in shown for line in (finding.what, f"  {finding.remedy}")]
        raise UsageError("\n".join(lines), f"{len(found)} problems in all; mend these first.")


def run_checks(stage: str, switches: CheckSwitches, checks: Checks) -> list[CheckResult]:
    """The outcome of each check, in order; a check that `switches` turn off does not run."""
    return [
        _result(stage, f"checks.{name}", check())
        if getattr(switches, name)
        else CheckResult(stage, f"checks.{name}", "off")
        for name, check in checks.items()
    ]


def run_without_switches(stage: str, checks: Checks) -> list[CheckResult]:
    """The outcome of each check that cannot be turned off; a `UsageError` that it raises is a finding."""

    def asked(check: Check) -> Finding | str | None:
        try:
            return check()
        except UsageError as problem:
            return Finding(problem.message, problem.hint)

    return [_result(stage, key, asked(check)) for key, check in checks.items()]


def _result(stage: str, what: str, found: Finding | str | None) -> CheckResult:
    if isinstance(found, Finding):
        return CheckResult(stage, what, "failed", found.what, found.remedy)
    return CheckResult(stage, what, "ok", found or "")


def _stop(stage: str, failed: Sequence[CheckResult]) -> UsageError:
    shown = failed if len(failed) <= MOST_IN_FULL else failed[: MOST_IN_FULL - 1]
    lines = [f"{stage} would go wrong without any error, so it stops before its first step."]
    for result in shown:
        lines += [f"{result.what}: {result.found}", f"  {result.remedy}"]
    if len(shown) < len(failed):
        rest = ", ".join(result.what for result in failed[len(shown) :])
        lines.append(f"... and {len(failed) - len(shown)} more: {rest}")
    others = "" if len(failed) == 1 else " (likewise for the others)"
    return UsageError("\n".join(lines), f"To train anyway, turn this check off: {failed[0].what}=false{others}.")
