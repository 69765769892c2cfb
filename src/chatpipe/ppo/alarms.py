"""Alarms: signs that a PPO run goes wrong, as pure functions of the iterations' metrics.

Each alarm is a sentence with what was measured and what to try. A trend counts by the t statistic of a straight line
through the last `WINDOW` iterations, so that the noise of single rollouts raises no alarm.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from chatpipe.checks.model_checks import RATIO_TOLERANCE, RATIO_TOLERANCE_BF16

History = Sequence[Mapping[str, float]]
"""The metrics of all iterations so far, the newest last."""

NEGATIVE_KL_ERRORS = 3
"""The number of standard errors by which a KL below zero is not chance."""
KL_ROUNDING = 1e-3
"""Nats per completion that rounding can cause."""
WINDOW = 20
"""Iterations of a trend. With 12, a fall of the oracle's score was found 13 iterations later on pocketworld, and noise
without a trend raised an alarm in 12 % of runs of 40 iterations; with 20 in 7 %."""
SHORTEST_WINDOW = 8
"""A run with fewer iterations than WINDOW has trends over all of them, from this number on."""
TREND, SHORT_TREND = 3.0, 4.5
"""The t statistic from which a trend counts (18 degrees of freedom: 1 in 260 by chance), and that of a run shorter than
WINDOW (6 degrees of freedom: 1 in 490)."""
MIN_EOS_FALL = 0.02
"""The smallest fall of the share of completions with EOS that raises an alarm."""
VALUE_MODEL_WARMUP, VALUE_MODEL_WINDOW = 8, 12
"""Iterations after the warm-up in which a value model may be worse than a constant, and iterations over which it must
then be better on average."""


def alarms(history: History, value_model_warmup_iterations: int = 0, bf16: bool = False) -> dict[str, str]:
    """The alarms that hold after the newest iteration, by name, each with its sentence."""
    found = {
        "ratio_first": _ratio_first(history[-1], RATIO_TOLERANCE_BF16 if bf16 else RATIO_TOLERANCE),
        "negative_kl": _negative_kl(history[-1]),
        "eos_falling": _eos_falling(history),
        "value_model": _value_model(history, value_model_warmup_iterations + VALUE_MODEL_WARMUP),
        "oracle_falling": _oracle_falling(history),
    }
    return {name: sentence for name, sentence in found.items() if sentence is not None}


def trend(values: Sequence[float]) -> tuple[float, float]:
    """The least-squares line through equally spaced values [n > 2]: its rise from first to last, and the slope's t."""
    x, y = np.arange(len(values)) - (len(values) - 1) / 2, np.asarray(values, dtype=float)
    slope = (x @ y) / (x @ x)
    residual = y - y.mean() - slope * x
    error = np.sqrt((residual @ residual) / (len(values) - 2) / (x @ x))
    t = slope / error if error > 0 else np.sign(slope) * np.inf if slope else 0.0
    return float(slope * (len(values) - 1)), float(t)


def _ratio_first(now: Mapping[str, float], tolerance: float) -> str | None:
    ratio = now["val/ratio_first"]
    if abs(ratio - 1) <= tolerance:
        return None
    return (
        f"The ratio of new to old policy is {ratio:.4f} before an iteration's first step, where it must be 1: the "
        "policy that was read is not the one that is trained. Try: train in float32 (bf16: false), and a model whose "
        "forward pass gives the same numbers twice (no dropout, no noise)."
    )


def _negative_kl(now: Mapping[str, float]) -> str | None:
    kl, error = now["objective/kl"], now["objective/kl_se"]
    if kl >= -max(NEGATIVE_KL_ERRORS * error, KL_ROUNDING):
        return None
    return (
        f"KL to the reference is {kl:.3f} nats per completion, with a standard error of {error:.3f}; it cannot be "
        "below zero, so the samples are not the policy's. Try: the same dtype and attention for policy and reference, "
        "and nothing that changes the sampling (top-k, a minimum length)."
    )


def _eos_falling(history: History) -> str | None:
    if not (_rises(history, "objective/scores") and _falls(history, "response/eos_frac")):
        return None
    fall, _ = trend(_last(history, "response/eos_frac"))
    if fall > -MIN_EOS_FALL:
        return None
    return (
        f"Completions stop less and less (by {-fall:.0%} in {_seen(history)} iterations) while scores rise: the reward "
        "is collected by not stopping. Try: raise missing_eos_penalty, or missing_eos=replace; raise response_length."
    )


def _value_model(history: History, warmup: int) -> str | None:
    if len(history) < warmup + VALUE_MODEL_WINDOW:
        return None
    explained = float(np.mean(_last(history, "val/explained_variance")[-VALUE_MODEL_WINDOW:]))
    if not explained < 0:
        return None
    return (
        f"The value model explains {explained:.2f} of the returns' variance over {VALUE_MODEL_WINDOW} iterations; "
        "below 0 a constant would predict better, and advantages are noise. Try: value_model_warmup_iterations, a "
        "higher value_model_learning_rate or vf_coef, or more num_ppo_epochs."
    )


def _oracle_falling(history: History) -> str | None:
    if not (_rises(history, "objective/scores") and _falls(history, "objective/oracle")):
        return None
    fall, _ = trend(_last(history, "objective/oracle"))
    return (
        f"Scores rise while the oracle's fall (by {-fall:.2f} in {_seen(history)} iterations): the reward is being "
        "exploited. Try: raise kl_coef, or set kl_budget to the KL at which the oracle's score was highest; and train "
        "the reward model on more rankings."
    )


def _last(history: History, name: str) -> list[float]:
    return [line[name] for line in history[-WINDOW:] if name in line]


def _seen(history: History) -> int:
    return min(len(history), WINDOW)


def _rises(history: History, name: str, sign: int = 1) -> bool:
    values = _last(history, name)
    if len(values) < max(SHORTEST_WINDOW, _seen(history)):
        return False
    return sign * trend(values)[1] > (TREND if len(values) == WINDOW else SHORT_TREND)


def _falls(history: History, name: str) -> bool:
    return _rises(history, name, sign=-1)
