"""The metrics of one PPO iteration, each defined once. Names are TRL's; means are over the global batch.

A mean is a quotient of sums over all ranks: over tokens for what belongs to a token, over completions for what belongs
to a completion. A mean of means would give short micro-batches more weight.
"""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

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
