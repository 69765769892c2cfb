"""T9: `train` takes the steps of the plain loop that is written out here, and arrives at the same weights."""

from functools import cache
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import tiny
import torch

from chatpipe.data.sequences import pad
from chatpipe.ppo.experience import GENERATION, MINIBATCHES, permutation, row_numbers
from chatpipe.ppo.maths import on_one_rank, ppo_loss
from chatpipe.ppo.rollout import advantages

SETTINGS = {
    "total_episodes": 48,
    "num_ppo_epochs": 3,
    "learning_rate": 1e-2,
    "adaptive_kl_target": 0.3,
    "adaptive_kl_horizon": 32,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 0.3,
}


def trainer(folder):
    """In float64, with two minibatches to an epoch, three epochs and three iterations."""
    models = {"model": tiny.policy().double(), "reward_model": tiny.random_reward_model().double()}
    return tiny.trainer(folder, **models, **SETTINGS)


def check_loop(folder):
    trained = trainer(folder)
    trained.train()
    coefficients, norms, weights = plainly_trained()
    lines = tiny.logged_iterations(trained)
    assert [line["objective/kl_coef"] for line in lines] == pytest.approx(coefficients, rel=1e-9)
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-6)
    assert [line["episode"] for line in lines] == [16, 32, 48]
    for (name, one), other in zip(trained.model.named_parameters(), weights, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-8), name


@cache
def plainly_trained():
    """What `plain_loop` returns, and the weights that it arrives at. Called first where the code is the true one."""
    with TemporaryDirectory() as folder:
        plain = trainer(folder)
        return *plain_loop(plain), list(plain.model.parameters())


def plain_loop(ppo) -> tuple[list[float], list[float]]:
    """Trains the model of `ppo` with an optimizer and a schedule of its own.

    Returns the KL coefficient of each iteration, and the norm of its last gradient.
    """
    args, model = ppo.args, ppo.model
    optimizer = torch.optim.AdamW(model.parameters(), betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)
    kl_coef, step, steps, coefficients, norms = args.kl_coef, 0, 18, [], []
    for iteration in range(3):
        prompts = [ppo.prompts[row] for row in row_numbers(len(ppo.prompts), 16 * iteration, 16, args.seed)]
        seed = np.random.SeedSequence([GENERATION, args.seed, iteration, 0]).generate_state(1, np.uint64)
        rollout = ppo.rollout(prompts, int(seed[0]))
        experience = advantages(rollout, kl_coef, args, on_one_rank)
        for epoch in range(3):
            order = permutation(16, MINIBATCHES, args.seed, iteration, epoch, 0)
            for rows in (order[:8], order[8:]):
                part = experience.select(rows)
                outputs = model(*pad(part.sequences))
                clips = args.cliprange, args.cliprange_value, args.vf_coef
                loss, _ = ppo_loss(outputs.logprobs, outputs.values, part, *clips)
                optimizer.zero_grad()
                (loss / part.num_tokens).backward()
                # each for itself: the policy's gradient is much larger
                norm = torch.stack(
                    [
                        torch.nn.utils.clip_grad_norm_(part_of.parameters(), args.max_grad_norm)
                        for part_of in (model.policy, model.value_model)
                    ]
                ).norm()
                optimizer.param_groups[0].update(lr=args.learning_rate * (1 - step / steps), weight_decay=0.0)
                optimizer.step()
                step += 1
        coefficients.append(kl_coef)
        norms.append(norm.item())
        kl = ((rollout.logprobs - rollout.ref_logprobs).sum() / len(experience)).item()
        kl_coef *= 1 + max(-0.2, min(0.2, kl / args.adaptive_kl_target - 1)) * 16 / args.adaptive_kl_horizon
    assert step == steps
    return coefficients, norms


def test_the_loop(tmp_path):
    check_loop(tmp_path)
