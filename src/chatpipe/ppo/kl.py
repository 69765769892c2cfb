"""The KL penalty and the reward of each token.

PPO maximises E[r(x, y)] - beta * KL(pi || pi_ref) (InstructGPT, arXiv 2203.02155, eq. 2). The KL term is spread over
the tokens as -beta * (log pi - log pi_ref), the estimator k1, and is part of the reward: a number without gradient,
whose effect on the policy comes through the advantages (lm-human-preferences, `compute_rewards`). k3 in its place has
another optimum (arXiv 2510.01555).
"""

import torch
from torch import Tensor

from chatpipe.ppo.experience import last_index


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The estimator k1 of KL(pi || pi_ref) for each token, [N]: log pi(a|s) - log pi_ref(a|s), without gradient.

    http://joschu.net/blog/kl-approx.html. Its sum over a completion is unbiased for the sequence's KL; it may be
    negative for a sample.
    """
    return (logprobs - ref_logprobs).detach()


def penalise_missing_eos(scores: Tensor, ended: Tensor, penalty: float | None) -> Tensor:
    """Subtract `penalty` from the scores [n] of completions that did not end with EOS (ended [n] is False).

    TRL's way; lm-human-preferences replaces the score instead. None is no penalty.
    """
    return scores if penalty is None else torch.where(ended, scores, scores - penalty)


def shape_rewards(
    scores: Tensor,
    ended: Tensor,
    k1: Tensor,
    lengths: Tensor,
    kl_coef: float,
    missing_eos_penalty: float | None,
) -> Tensor:
    """The reward of each completion token, [N]: -kl_coef * k1, and the score in addition on the completion's last.

    scores, ended, lengths: [n]; k1: [N]. The last token is the EOS, or where the completion was cut off just its last
    token; not the position after it (trl #1893, #3750).
    """
    rewards = -kl_coef * k1
    rewards[last_index(lengths)] += penalise_missing_eos(scores, ended, missing_eos_penalty).to(rewards.dtype)
    return rewards
