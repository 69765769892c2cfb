"""What a verdict is: pass, warn or fail, the measured reasons, and the remedies. The rules are in `*_verdicts.py`.

Verdicts are pure functions of the metrics that a stage stores. A number that is not finite never passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "warn", "fail"]
SEVERITY: tuple[Status, ...] = ("fail", "warn", "pass")

CHANCE_OF_A_PAIR = 0.5
FAILING_EOS_SHARE, MIN_EOS_SHARE = 0.80, 0.95
"""An answer that does not stop is cut off in chat and penalised in ppo: 1 in 20 is a nuisance, 1 in 5 a defect."""

Reason = tuple[Status, str]
"""A status, and the sentence that gives the measured reason."""


@dataclass(frozen=True)
class Verdict:
    """Whether a stage has reached its aim, and the measured reasons, the most serious first."""

    status: Status
    reasons: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As stored in the manifest and printed by `--json`."""
        return asdict(self)


def reason(good: bool, measured: str, remedy: str, otherwise: Status = "fail") -> Reason:
    """`measured` is a clause without its full stop; where it is not `good`, the `remedy` follows as "Try: ..."."""
    return ("pass", f"{measured}.") if good else (otherwise, f"{measured}. Try: {remedy}.")


def verdict_of(reasons: Sequence[Reason]) -> Verdict:
    """The most serious status of all reasons, and their sentences from the most serious down."""
    ordered = sorted(reasons, key=lambda reason: SEVERITY.index(reason[0]))
    return Verdict(ordered[0][0], [sentence for _, sentence in ordered])


def started_from(metrics: Mapping[str, Any]) -> str:
    """The stage whose policy ppo started from; `round` is there in later rounds."""
    return f"ppo of round {metrics['round'] - 1}" if "round" in metrics else "sft"
