"""T2: sampled PPO ends at the optimum of E[r] - beta KL, which is pi*(y) ~ pi_ref(y) exp(r(y) / beta)."""

from dataclasses import replace

import tabular
import torch

from chatpipe.ppo.advantages import gae, whiten
from chatpipe.ppo.experience import flat_index
from chatpipe.ppo.loss import ppo_loss

BETA, ITERATIONS, ROLLOUT, EPOCHS, MINIBATCHES = 0.5, 150, 512, 4, 4
LEARNING_RATE, VALUE_LEARNING_RATE = 0.03, 0.1


def test_fixed_point():
    torch.manual_seed(0)
    ref_logits, scores = tabular.random_world()
    logits = ref_logits.clone().requires_grad_()
    values = torch.zeros(len(ref_logits), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [logits], "lr": LEARNING_RATE}, {"params": [values], "lr": VALUE_LEARNING_RATE}], eps=1e-5
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: 1 - iteration / ITERATIONS)

    for _ in range(ITERATIONS):
        completions = torch.multinomial(tabular.all_logprobs(logits).exp(), ROLLOUT, replacement=True)
        experience = tabular.experience_of(
            completions,
            logits.detach(),
            ref_logits,
            values.detach(),
            scores,
            BETA,
            lambda rewards, values, lengths: gae(rewards, values, lengths, gamma=1.0, lam=0.95),
        )
        experience = replace(experience, advantages=whiten(experience.advantages))
        for _ in range(EPOCHS):
            for rows in torch.randperm(ROLLOUT).chunk(MINIBATCHES):
                part = experience.select(rows)
                new_values = values[tabular.STATES[flat_index(tabular.LENGTHS, completions[rows])]]
                new_logprobs = tabular.token_logprobs(logits, completions[rows])
                loss, _ = ppo_loss(new_logprobs, new_values, part, cliprange=0.2, cliprange_value=0.2, vf_coef=1.0)
                optimizer.zero_grad()
                (loss / part.num_tokens).backward()
                optimizer.step()
        schedule.step()

    optimum = (tabular.all_logprobs(ref_logits) + scores / BETA).softmax(0)
    reached = tabular.all_logprobs(logits.detach()).exp()
    before = tabular.all_logprobs(ref_logits).exp()
    assert 0.5 * (before - optimum).abs().sum() > 0.2  # there was something to learn
    assert 0.5 * (reached - optimum).abs().sum() < 0.01
