"""The metrics of one PPO iteration, each defined once. Names are TRL's; means are over the global batch.

Whatever is a mean is computed as a quotient of sums over all ranks: over tokens for what belongs to a token, over
completions for what belongs to a completion. A mean of means would weigh short micro-batches more.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from chatpipe.ppo.advantages import SumOverRanks
from chatpipe.ppo.experience import Experience
from chatpipe.ppo.kl import k1
from chatpipe.ppo.loss import Statistics
from chatpipe.reward.rewards import MissingEos, penalise_missing_eos

Metrics = dict[str, float]


def experience_metrics(
    experience: Experience,
    raw_advantages: Tensor,
    kl_coef: float,
    missing_eos_penalty: float | None,
    sum_over_ranks: SumOverRanks,
    *,
    missing_eos: MissingEos = "subtract",
    judged: Mapping[str, Tensor] | None = None,
) -> Metrics:
    """What the rollout shows of the policy before the update; raw_advantages [N] are those before whitening.

    `objective/kl` sums k1 over a completion, `objective/entropy` -log pi of the sampled tokens (never negative); both
    and the scores are means over completions, and `objective/kl_se` is the standard error of the first.
    `objective/rlhf_reward` is what PPO maximises. `judged`: by name what else belongs to each completion, [n]; its mean
    is logged.
    """
    sequences, returns, judged = experience.sequences, experience.returns, judged or {}
    errors = returns - experience.values
    penalised = penalise_missing_eos(experience.scores, sequences.ended, missing_eos_penalty, missing_eos)
    per_token = k1(experience.logprobs, experience.ref_logprobs).double()
    per_completion = torch.stack([row.sum() for row in per_token.split(sequences.completion_lengths.tolist())])
    total = {
        "completions": torch.tensor(len(experience)),
        "tokens": torch.tensor(experience.num_tokens),
        **_moments("kl", per_completion),
        "logprobs": experience.logprobs.double().sum(),
        "raw_scores": experience.scores.double().sum(),
        "scores": penalised.double().sum(),
        "ended": sequences.ended.sum(),
        **_moments("returns", returns),
        **_moments("errors", errors),
        **_moments("advantages", raw_advantages),
        **{f"judged {name}": values.double().sum() for name, values in judged.items()},
    }
    pooled = _pool(total, sum_over_ranks)
    completions, tokens = pooled["completions"], pooled["tokens"]
    kl, scores = pooled["kl"] / completions, pooled["scores"] / completions
    returns_variance = _variance("returns", pooled, tokens)
    return {
        "objective/kl": kl,
        "objective/kl_se": (_variance("kl", pooled, completions) / max(completions - 1, 1)) ** 0.5,
        "objective/kl_coef": kl_coef,
        "objective/entropy": -pooled["logprobs"] / completions,
        "objective/non_score_reward": -kl_coef * kl,
        "objective/scores": scores,
        "objective/scores_raw": pooled["raw_scores"] / completions,
        "objective/rlhf_reward": scores - kl_coef * kl,
        **{name: pooled[f"judged {name}"] / completions for name in judged},
        "val/explained_variance": 1 - _quotient(_variance("errors", pooled, tokens), returns_variance),
        "returns/mean": pooled["returns"] / tokens,
        "returns/var": returns_variance,
        "advantages/mean": pooled["advantages"] / tokens,
        "advantages/var": _variance("advantages", pooled, tokens),
        "val/num_eos_tokens": pooled["ended"],
        "response/eos_frac": pooled["ended"] / completions,
        "response/length": tokens / completions,
    }


class UpdateStatistics:
    """Collects the losses' statistics over the optimizer steps of one iteration."""

    def __init__(self) -> None:
        self.first_step: Statistics = {}
        self.all_steps: Statistics = {}

    def add(self, step: Statistics) -> None:
        """Add those of one optimizer step."""
        self.first_step = self.first_step or step
        self.all_steps = add_statistics(self.all_steps, step)

    def metrics(self, sum_over_ranks: SumOverRanks, max_over_ranks: Callable[[Tensor], Tensor]) -> Metrics:
        """What the update did, over all its steps: every token counts once an epoch.

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

    def padding(self, sum_over_ranks: SumOverRanks) -> float:
        """`perf/padding`: the share of padding among the tokens that went through the policy in the update."""
        pooled = _pool({name: self.all_steps[name] for name in ("read", "read_tokens")}, sum_over_ranks)
        return 1 - pooled["read_tokens"] / pooled["read"]


def add_statistics(total: Statistics, more: Statistics) -> Statistics:
    """Pool two sets of statistics: sums add up in float64, `max_...` take the larger one."""
    if not total:
        return {name: value.double() for name, value in more.items()}
    return {
        name: torch.maximum(total[name], value.double()) if name.startswith("max_") else total[name] + value.double()
        for name, value in more.items()
    }


def _pool(sums: Statistics, sum_over_ranks: SumOverRanks) -> Metrics:
    """The sums over all ranks as numbers, in one reduction; without the `max_...`, which do not add up."""
    names = [name for name in sums if not name.startswith("max_")]
    pooled = sum_over_ranks(torch.stack([sums[name].double() for name in names]))
    return dict(zip(names, pooled.tolist(), strict=True))


def _moments(name: str, values: Tensor) -> Statistics:
    wide = values.double()
    return {name: wide.sum(), f"{name}_squared": wide.square().sum()}


def _variance(name: str, pooled: Metrics, count: float) -> float:
    return max(pooled[f"{name}_squared"] / count - (pooled[name] / count) ** 2, 0.0)


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")
