"""The KL penalty, its coefficient, and the reward of each token.

PPO maximises E[r(x, y)] - beta * KL(pi || pi_ref) (InstructGPT, arXiv 2203.02155, eq. 2). The KL term is spread over
the tokens as -beta * (log pi - log pi_ref), the estimator k1, and is part of the reward: a number without gradient,
whose effect on the policy comes through the advantages (lm-human-preferences, `compute_rewards`). k3 in its place has
another optimum (arXiv 2510.01555); k2 and k3 can be added to the loss instead (`loss_estimate`).
"""

from typing import Literal

from torch import Tensor

from chatpipe.data.sequences import last_index
from chatpipe.reward.rewards import MissingEos, penalise_missing_eos

MAX_CHANGE = 0.2
"""How far off its target the KL counts at most when the coefficient is adapted, as a share of the target."""


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

    It stays where the KL is the target.
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
    """The reward of each completion token, [N]: -kl_coef * k1, and the score in addition on the completion's last.

    scores, ended, lengths: [n]; k1: [N]. The last token is the EOS, or where the completion was cut off just its last
    token; not the position after it (trl #1893, #3750).
    """
    rewards = -kl_coef * k1
    penalised = penalise_missing_eos(scores, ended, missing_eos_penalty, missing_eos)
    rewards[last_index(lengths)] += penalised.to(rewards.dtype)
    return rewards
