"""The losses of PPO (arXiv 1707.06347) with the constants' meaning of lm-human-preferences.

All are sums over tokens. The caller divides by the number of completion tokens of the whole optimizer step over all
ranks, so that neither the micro-batch size nor the number of ranks changes the gradient, and every token weighs the
same (a mean per sequence would favour the tokens of short completions).
"""

from typing import Literal

import torch
from torch import Tensor

from chatpipe.ppo.experience import Experience
from chatpipe.ppo.kl import loss_estimate

Statistics = dict[str, Tensor]
"""Sums over tokens by name, and `max_...`: they pool exactly over micro-batches, steps and ranks (see `.metrics`)."""


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Statistics]:
    """The clipped surrogate, as a loss: sum_t max(-A_t rho_t, -A_t clip(rho_t, 1 - eps, 1 + eps)); all inputs [N].

    rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)   (eq. 7, whose min is a max of the negatives)

    The gradient is 0 where the ratio has already gone further than eps in the direction that A asks for, and only
    there. `clipped` counts tokens whose clipped loss is the larger one; `approxkl` sums 1/2 (log rho)^2, `k3` sums
    (rho - 1) - log rho: both estimate the KL between the old and the new policy.
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    wide = log_ratio.detach().double()
    statistics = {
        "clipped": (clipped > unclipped).sum(),
        "approxkl": 0.5 * wide.square().sum(),
        "k3": (wide.expm1() - wide).sum(),
        "ratio": wide.exp().sum(),
        "ratio_squared": wide.exp().square().sum(),
        "max_ratio": wide.exp().max(),
    }
    return torch.max(unclipped, clipped).sum(), statistics


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

    logprobs and values: [N], new, of the tokens of `experience`. The KL term to the reference is `kl.loss_estimate`.
    policy_coef is 0 while the value model alone is trained. Returns the loss with the statistics of all terms, among
    them `tokens`, N.
    """
    policy, policy_statistics = policy_loss(logprobs, experience.logprobs, experience.advantages, cliprange)
    value, value_statistics = value_loss(values, experience.values, experience.returns, cliprange_value)
    statistics = {
        "tokens": torch.tensor(experience.num_tokens, device=logprobs.device),
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
