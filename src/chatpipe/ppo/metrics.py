"""The metrics of a PPO iteration, each defined once, and the alarms that they raise.

The names of metrics are TRL's; means are over the global batch. A mean is a quotient of sums over all ranks: over
tokens for what belongs to a token, over completions for what belongs to a completion. A mean of means would give short
micro-batches more weight.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from chatpipe.checks.model_checks import RATIO_TOLERANCE, RATIO_TOLERANCE_BF16
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import Experience
from chatpipe.ppo.maths import Statistics, SumOverRanks, k1
from chatpipe.reward.rewards import penalise_missing_eos

Metrics = dict[str, float]


def rollout_metrics(
    experience: Experience,
    by_source: Mapping[str, Tensor],
    kl_coef: float,
    args: PPOConfig,
    sum_over_ranks: SumOverRanks,
) -> Metrics:
    """What the rollout shows of the policy before the update.

    `objective/kl` sums k1 over a completion, `objective/entropy` -log pi of the sampled tokens (never negative); both
    and the scores are means over completions, and `objective/kl_se` is the standard error of the first.
    `objective/rlhf_reward` is what PPO maximises. `by_source`: more scores of completions, [n] by metric name. The
    advantages are those before whitening, returns - values.
    """
    sequences, returns = experience.sequences, experience.returns
    penalised = penalise_missing_eos(
        experience.scores,
        sequences.ended,
        args.missing_eos_penalty,
        args.missing_eos,  # type: ignore[arg-type]  # checked by PPOConfig
    )
    per_token = k1(experience.logprobs, experience.ref_logprobs).double()
    per_completion = torch.stack([row.sum() for row in per_token.split(sequences.completion_lengths.tolist())])
    sums = {
        "completions": torch.tensor(len(experience)),
        "tokens": torch.tensor(experience.num_tokens),
        **_moments("kl", per_completion),
        "logprobs": experience.logprobs.double().sum(),
        "raw_scores": experience.scores.double().sum(),
        "scores": penalised.double().sum(),
        "ended": sequences.ended.sum(),
        **_moments("returns", returns),
        **_moments("advantages", returns - experience.values),
        **{f"source {name}": scores.double().sum() for name, scores in by_source.items()},
    }
    pooled = _pool(sums, sum_over_ranks)
    completions, tokens = pooled["completions"], pooled["tokens"]
    kl, scores = pooled["kl"] / completions, pooled["scores"] / completions
    returns_variance = _variance("returns", pooled, tokens)
    advantages_variance = _variance("advantages", pooled, tokens)
    return {
        "objective/kl": kl,
        "objective/kl_se": (_variance("kl", pooled, completions) / max(completions - 1, 1)) ** 0.5,
        "objective/kl_coef": kl_coef,
        "objective/entropy": -pooled["logprobs"] / completions,
        "objective/non_score_reward": -kl_coef * kl,
        "objective/scores": scores,
        "objective/scores_raw": pooled["raw_scores"] / completions,
        "objective/rlhf_reward": scores - kl_coef * kl,
        **{name: pooled[f"source {name}"] / completions for name in by_source},
        "val/explained_variance": 1 - advantages_variance / returns_variance if returns_variance else float("nan"),
        "returns/mean": pooled["returns"] / tokens,
        "returns/var": returns_variance,
        "advantages/mean": pooled["advantages"] / tokens,
        "advantages/var": advantages_variance,
        "val/num_eos_tokens": pooled["ended"],
        "response/eos_frac": pooled["ended"] / completions,
        "response/length": tokens / completions,
    }


class UpdateStatistics:
    """The losses' statistics over the optimizer steps of one iteration, and how much the models read."""

    def __init__(self) -> None:
        self.first_step: Statistics = {}
        self.all_steps: Statistics = {}
        self.started = time.perf_counter()
        self.tokens_read, self.positions_read = 0, 0
        """Tokens that this process has read in the update, without and with padding."""
        self.ended, self.skipped_steps = False, 0
        """Whether the rest of the steps is skipped; how many were."""

    def add(self, step: Statistics) -> None:
        """Adds those of one optimizer step."""
        self.first_step = self.first_step or step
        self.all_steps = add_statistics(self.all_steps, step)

    def metrics(self, sum_over_ranks: SumOverRanks, max_over_ranks: Callable[[Tensor], Tensor]) -> Metrics:
        """The metrics of the update, over all its steps: every token counts once an epoch.

        `val/ratio_first` is the mean ratio of the first step, where the policy is still the one that sampled: 1.
        `loss/kl_avg` and `loss/ptx`, where such a term is trained on, are means per token without their coefficients.
        """
        first, pooled = _pool(self.first_step, sum_over_ranks), _pool(self.all_steps, sum_over_ranks)
        tokens = pooled["tokens"]
        ratio = pooled["ratio"] / tokens
        optional = {}
        if "kl_loss" in pooled:
            optional["loss/kl_avg"] = pooled["kl_loss"] / tokens
        if "ptx_loss" in pooled:
            optional["loss/ptx"] = pooled["ptx_loss"] / pooled["ptx_tokens"]
        return {
            "policy/approxkl_avg": pooled["approxkl"] / tokens,
            "policy/k3_avg": pooled["k3"] / tokens,
            "policy/clipfrac_avg": pooled["clipped"] / tokens,
            "policy/entropy_avg": pooled["entropy"] / tokens,
            "loss/policy_avg": pooled["policy_loss"] / tokens,
            "loss/value_avg": pooled["value_loss"] / tokens,
            **optional,
            "val/ratio": ratio,
            "val/ratio_var": max(pooled["ratio_squared"] / tokens - ratio**2, 0.0),
            "val/ratio_max": float(max_over_ranks(self.all_steps["max_ratio"].double())),
            "val/ratio_first": first["ratio"] / first["tokens"],
            "val/clipfrac_avg": pooled["value_clipped"] / tokens,
        }

    def reading(self, sum_over_ranks: SumOverRanks) -> tuple[int, float]:
        """Tokens that all processes have read in the update, and the share of padding among their positions."""
        tokens, positions = sum_over_ranks(torch.tensor([self.tokens_read, self.positions_read])).tolist()
        return tokens, 1 - tokens / positions


def add_statistics(total: Statistics, more: Statistics) -> Statistics:
    """Pools two sets of statistics: sums add up in float64; of `max_ratio` the larger one counts."""
    if not total:
        return {name: value.double() for name, value in more.items()}
    return {
        name: torch.maximum(total[name], value.double()) if name == "max_ratio" else total[name] + value.double()
        for name, value in more.items()
    }


def _pool(sums: Statistics, sum_over_ranks: SumOverRanks) -> Metrics:
    """The sums over all ranks as numbers, in one reduction; without `max_ratio`, which does not add up."""
    names = [name for name in sums if name != "max_ratio"]
    pooled = sum_over_ranks(torch.stack([sums[name].double() for name in names]))
    return dict(zip(names, pooled.tolist(), strict=True))


def _moments(name: str, values: Tensor) -> Statistics:
    wide = values.double()
    return {name: wide.sum(), f"{name}_squared": wide.square().sum()}


def _variance(name: str, pooled: Metrics, count: float) -> float:
    return max(pooled[f"{name}_squared"] / count - (pooled[name] / count) ** 2, 0.0)


# ---- alarms: signs that a run goes wrong, as pure functions of the iterations' metrics ----
#
# Each alarm is a sentence with what was measured and what to try. A trend counts by the t statistic of a straight line
# through the last `WINDOW` iterations, so that the noise of single rollouts raises no alarm.

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
MIN_ENDED = 0.5
"""The smallest share of completions with EOS that raises no alarm."""
VALUE_MODEL_WARMUP, VALUE_MODEL_WINDOW = 8, 12
"""Iterations after the warm-up in which a value model may be worse than a constant, and iterations over which it must
then be better on average."""


def over_budget(kl: float, iteration: int, args: PPOConfig) -> str | None:
    """Why training ends where the KL of a rollout, after so many finished iterations, is above `kl_budget`."""
    if args.kl_budget is None or not kl > args.kl_budget:
        return None
    return (
        f"Training ended after {iteration} of {args.num_iterations} iterations: {kl:.2f} nats of KL are above the "
        f"budget of {args.kl_budget:g}"
    )


def alarms(history: History, value_model_warmup_iterations: int = 0, bf16: bool = False) -> dict[str, str]:
    """The alarms that hold after the newest iteration, by name, each with its sentence."""
    found = {
        "ratio_first": _ratio_first(history[-1], RATIO_TOLERANCE_BF16 if bf16 else RATIO_TOLERANCE),
        "negative_kl": _negative_kl(history[-1]),
        "completions_cut": _completions_cut(history[-1]),
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


def _completions_cut(now: Mapping[str, float]) -> str | None:
    ended = now["response/eos_frac"]
    if ended >= MIN_ENDED:
        return None
    return (
        f"{1 - ended:.0%} of the completions are cut at response_length before they end: the reward sees pieces of "
        "answers, and missing_eos_penalty teaches to be short. Try: raise response_length, or start from a policy "
        "that ends its answers."
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
