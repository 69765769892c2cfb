"""Running checks: all of a list, so that one error names all problems.

A check with a switch (`checks.NAME` in the recipe) finds what would go wrong without any error; the others find what
cannot work at all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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


def run_checks(stage: str, checks: Checks, switches: CheckSwitches | None = None) -> Iterator[CheckResult]:
    """The outcome of each check, in order, as soon as it has run; one that `switches` turn off does not run.

    Without `switches` the names of the checks are recipe keys, and a `UsageError` that a check raises is a finding.
    """
    for name, check in checks.items():
        if switches is None:
            yield _result(stage, name, _asked(check))
        elif getattr(switches, name):
            yield _result(stage, f"checks.{name}", check())
        else:
            yield CheckResult(stage, f"checks.{name}", "off")


def enforce(stage: str, checks: Checks, switches: CheckSwitches) -> None:
    """Raises `UsageError` with all that the checks of a stage find.

    Every rank runs them on the same data and models, so that all ranks stop together.
    """
    failed = [result for result in run_checks(stage, checks, switches) if result.status == "failed"]
    if failed:
        raise _stop(stage, failed)


def refuse(checks: Checks) -> None:
    """Raises `UsageError` with all that checks without a switch find."""
    found = [finding for check in checks.values() if isinstance(finding := check(), Finding)]
    if len(found) == 1:
        raise UsageError(found[0].what, found[0].remedy)
    if found:
        shown = found[:MOST_IN_FULL]
        lines = [line for finding in shown for line in (finding.what, f"  {finding.remedy}")]
        raise UsageError("\n".join(lines), f"{len(found)} problems in all; mend these first.")


def _asked(check: Check) -> Finding | str | None:
    try:
        return check()
    except UsageError as problem:
        return Finding(problem.message, problem.hint)


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
