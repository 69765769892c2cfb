"""The formulas of PPO as pure functions on ragged tensors: KL, rewards, advantages, losses.

PPO maximises E[r(x, y)] - beta * KL(pi || pi_ref) (InstructGPT, arXiv 2203.02155, eq. 2). Numbers that belong to
completion tokens lie in flat tensors [N], completion after completion; `lengths` [n] are the completions' tokens.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from chatpipe.data.sequences import last_index
from chatpipe.ppo.experience import Experience
from chatpipe.reward.rewards import MissingEos, penalise_missing_eos

SumOverRanks = Callable[[Tensor], Tensor]
"""Adds a tensor up over all processes, so that statistics are those of the whole batch."""

Statistics = dict[str, Tensor]
"""Sums over tokens by name, and `max_ratio`, all on one device."""

MAX_CHANGE = 0.2
"""The largest relative distance between KL and its target that changes the coefficient."""


def on_one_rank(sums: Tensor) -> Tensor:
    """`SumOverRanks` for a single process."""
    return sums


# ---- KL and rewards ----


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The estimator k1 of KL(pi || pi_ref) for each token, [N]: log pi(a|s) - log pi_ref(a|s), without gradient.

    http://joschu.net/blog/kl-approx.html. Its sum over a completion is unbiased for the sequence's KL; it may be
    negative for a sample.
    """
    return (logprobs - ref_logprobs).detach()


def loss_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k2", "k3"]) -> Tensor:
    """A KL term for the loss, [N], never negative, with its gradient: d = log pi(a|s) - log pi_ref(a|s).

    k2 = d^2 / 2; its gradient is d * grad log pi: on samples of pi that of KL(pi || pi_ref) at each state.
    k3 = exp(-d) - 1 + d; its gradient is (1 - exp(-d)) * grad log pi, which is that of KL(pi_ref || pi): another one.
    (http://joschu.net/blog/kl-approx.html; arXiv 2512.21852). Neither sees how a token changes the states after it,
    which k1 in the reward does.
    """
    difference = logprobs - ref_logprobs
    return 0.5 * difference.square() if estimator == "k2" else (-difference).expm1() + difference


def adapted_coefficient(kl_coef: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """The KL coefficient after an iteration of `episodes` completions whose mean KL was `kl` nats.

    beta * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon)   (Ziegler et al., arXiv 1909.08593, section 2.2)

    It does not change where the KL is the target.
    """
    error = min(max(kl / target - 1, -MAX_CHANGE), MAX_CHANGE)
    return kl_coef * (1 + error * episodes / horizon)


def shape_rewards(
    scores: Tensor,
    ended: Tensor,
    k1: Tensor,
    lengths: Tensor,
    kl_coef: float,
    missing_eos_penalty: float | None,
    missing_eos: MissingEos = "subtract",
) -> Tensor:
    """The reward of each completion token, [N]: -kl_coef * k1, and in addition the score on the completion's last.

    scores, ended, lengths: [n]; k1: [N]. The KL penalty is a number without gradient: it acts through the advantages
    (lm-human-preferences, `compute_rewards`); k3 in its place has another optimum (arXiv 2510.01555). The last token is
    the EOS, or where the completion was cut off its last token; not the position after it (trl #1893, #3750).
    """
    rewards = -kl_coef * k1
    penalised = penalise_missing_eos(scores, ended, missing_eos_penalty, missing_eos)
    rewards[last_index(lengths)] += penalised.to(rewards.dtype)
    return rewards


# ---- advantages ----


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages [N] of completions whose rewards and values are [N].

    A_t = delta_t + gamma * lam * A_{t+1},  delta_t = r_t + gamma * V_{t+1} - V_t   (GAE, arXiv 1506.02438, eq. 16)

    V_t is the value before token t. After a completion's last token both V and A are 0: the episode is over, also where
    the completion was cut off. The returns, the value model's targets, are A + V.
    """
    advantages = torch.empty_like(rewards)
    starts = lengths.cumsum(0) - lengths
    next_value, next_advantage = rewards.new_zeros(2, len(lengths))
    for t in range(int(lengths.max()) - 1, -1, -1):
        (alive,) = (lengths > t).nonzero(as_tuple=True)  # completions that have a token t; the others wait at 0
        at = starts[alive] + t
        delta = rewards[at] + gamma * next_value[alive] - values[at]
        advantages[at] = delta + gamma * lam * next_advantage[alive]
        next_value[alive], next_advantage[alive] = values[at], advantages[at]
    return advantages


def whiten(advantages: Tensor, sum_over_ranks: SumOverRanks = on_one_rank) -> Tensor:
    """Advantages [N] shifted and scaled to mean 0 and variance 1 over the tokens of all ranks.

    (A - mean) / sqrt(var + 1e-8), var = mean((A - mean)^2)   (lm-human-preferences, `whiten`)

    Equal advantages become 0. The returns are sums of raw advantages, so they are computed before.
    """
    wide = advantages.double()
    count, total = sum_over_ranks(torch.stack([wide.new_tensor(len(wide)), wide.sum()]))
    centred = wide - total / count
    variance = sum_over_ranks(centred.square().sum()) / count
    return (centred * (variance + 1e-8).rsqrt()).to(advantages.dtype)


# ---- losses (arXiv 1707.06347, with the constants of lm-human-preferences) ----
#
# All are sums over tokens. The caller divides by the number of completion tokens of the whole optimizer step over all
# ranks, so that neither the micro-batch size nor the number of ranks changes the gradient, and every token has the same
# weight (a mean per sequence would favour the tokens of short completions).


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Statistics]:
    """The clipped surrogate as a loss: sum_t max(-A_t rho_t, -A_t clip(rho_t, 1 - eps, 1 + eps)); all inputs [N].

    rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)   (eq. 7, whose min is a max of the negatives)

    The gradient is 0 where the ratio has already gone further than eps in the direction that A asks for, and only
    there. `clipped` counts tokens whose clipped loss is the larger one.
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    statistics = {"clipped": (clipped > unclipped).sum(), **ratio_statistics(log_ratio.detach())}
    return torch.max(unclipped, clipped).sum(), statistics


def ratio_statistics(log_ratio: Tensor) -> Statistics:
    """Sums of rho, rho^2, 1/2 (log rho)^2 and (rho - 1) - log rho over tokens [N], in float64, and the largest rho.

    The last two sums, `approxkl` and `k3`, estimate the KL between the old and the new policy.
    """
    wide = log_ratio.double()
    ratio = wide.exp()
    return {
        "approxkl": 0.5 * wide.square().sum(),
        "k3": (wide.expm1() - wide).sum(),
        "ratio": ratio.sum(),
        "ratio_squared": ratio.square().sum(),
        "max_ratio": ratio.max(),
    }


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float
) -> tuple[Tensor, Statistics]:
    """The clipped value loss: 1/2 sum_t max((V_t - R_t)^2, (V_t^clip - R_t)^2); all inputs [N].

    V^clip is V held within `cliprange_value` of the old value (lm-human-preferences, `loss`). `value_clipped` counts
    tokens whose clipped loss is the larger one.
    """
    # not old + clip(new - old), which differs from the new value by rounding where nothing is clipped
    held = values.clamp(old_values - cliprange_value, old_values + cliprange_value)
    unclipped = (values - returns).square()
    clipped = (held - returns).square()
    return 0.5 * torch.max(unclipped, clipped).sum(), {"value_clipped": (clipped > unclipped).sum().detach()}


def ppo_loss(
    logprobs: Tensor,
    values: Tensor,
    experience: Experience,
    cliprange: float,
    cliprange_value: float,
    vf_coef: float,
    *,
    policy_coef: float = 1.0,
    kl_loss: Literal["k2", "k3"] | None = None,
    kl_loss_coef: float = 0.0,
) -> tuple[Tensor, Statistics]:
    """policy_coef * (policy loss + kl_loss_coef * KL term) + vf_coef * value loss, a sum over the N tokens.

    logprobs and values: [N], new, of the tokens of `experience`, which is on the same device. The KL term to the
    reference is `loss_estimate`. policy_coef is 0 while the value model alone is trained. Returns the loss with the
    statistics of all terms, among them `tokens`, N.
    """
    policy, policy_statistics = policy_loss(logprobs, experience.logprobs, experience.advantages, cliprange)
    value, value_statistics = value_loss(values, experience.values, experience.returns, cliprange_value)
    statistics = {
        "tokens": torch.full((), experience.num_tokens, device=logprobs.device),
        "policy_loss": policy.detach(),
        "value_loss": value.detach(),
        **policy_statistics,
        **value_statistics,
    }
    if kl_loss is not None:
        kl = loss_estimate(logprobs, experience.ref_logprobs, kl_loss).sum()
        statistics["kl_loss"] = kl.detach()
        policy = policy + kl_loss_coef * kl
    return policy_coef * policy + vf_coef * value, statistics
