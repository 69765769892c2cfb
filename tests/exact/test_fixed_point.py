"""T2: sampled PPO ends at the optimum of E[r] - beta KL, which is pi*(y|x) ~ pi_ref(y|x) exp(r(x, y) / beta)."""

import pytest
import tabular
import torch

from chatpipe.data.sequences import flat_index
from chatpipe.ppo.maths import ppo_loss

ITERATIONS, ROLLOUT, EPOCHS, MINIBATCHES = 100, 3 * 512, 4, 2
LEARNING_RATE, VALUE_LEARNING_RATE = 0.04, 0.1


def check_fixed_point(beta, temperature):
    """Three seeds side by side: each prompt has a reference, scores, samples and parameters of its own."""
    torch.manual_seed(0)
    ref_logits, scores = tabular.random_world()
    logits = ref_logits.clone().requires_grad_()
    values = torch.zeros(len(ref_logits), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [logits], "lr": LEARNING_RATE}, {"params": [values], "lr": VALUE_LEARNING_RATE}], eps=1e-5
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: 1 - iteration / ITERATIONS)
    args = tabular.settings(kl_coef=beta, missing_eos_penalty=None, vf_coef=1.0)

    for _ in range(ITERATIONS):
        policy = logits.detach() / temperature
        drawn = torch.multinomial(tabular.probabilities(policy), ROLLOUT // 3, replacement=True)
        pairs = (drawn + torch.arange(3)[:, None] * len(tabular.COMPLETIONS)).flatten()
        experience = tabular.experience_of(pairs, policy, ref_logits / temperature, values.detach(), scores, args)
        for _ in range(EPOCHS):
            for rows in torch.randperm(ROLLOUT).chunk(MINIBATCHES):
                part = experience.select(rows)
                new_values = values[tabular.STATES[flat_index(tabular.LENGTHS, pairs[rows])]]
                new_logprobs = tabular.token_logprobs(logits / temperature, pairs[rows])
                loss, _ = ppo_loss(
                    new_logprobs, new_values, part, args.cliprange, args.cliprange_value, vf_coef=args.vf_coef
                )
                optimizer.zero_grad()
                (loss / part.num_tokens).backward()
                optimizer.step()
        schedule.step()

    before, reached = (tabular.probabilities(table / temperature) for table in (ref_logits, logits.detach()))
    optimum = (before.log() + scores.view(3, -1) / beta).softmax(-1)
    assert total_variation(before, optimum).min() > 0.1  # there was something to learn
    assert total_variation(reached, optimum).max() < 0.01


def total_variation(one, other):
    """For each prompt: [3]."""
    return 0.5 * (one - other).abs().sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.1, 0.3, 1.0])
def test_fixed_point(beta, temperature):
    check_fixed_point(beta, temperature)
