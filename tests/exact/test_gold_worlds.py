"""T8: a real GPT-2 under the real PPOTrainer reaches the optimum of worlds in which every completion is known.

KL, score and objective of the trained policy are exact sums over all completions, and so is what any policy could
reach. What its samples say of them must agree, within the error of sampling.
"""

import enumerable
import pytest
import tiny
import torch

from chatpipe.ppo.maths import k1

BETA = 0.3


WORLDS = {"fixed length": (6, False, 1.0), "variable length, temperature .7": (5, True, 0.7)}


@pytest.fixture(scope="module", params=WORLDS.values(), ids=WORLDS)
def trained(request, tmp_path_factory):
    longest, ends, temperature = request.param
    world = enumerable.World(longest, ends)
    ref_model = enumerable.reference(world)
    ref_logprobs = world.logprobs(ref_model, temperature)
    scores = world.gold(ref_logprobs)
    folder = str(tmp_path_factory.mktemp("ppo"))
    more = {"total_episodes": 50 * 256, "temperature": temperature}
    trainer = enumerable.train(world, ref_model, scores, BETA, folder, **more)
    return world, trainer, ref_logprobs, scores, world.logprobs(trainer.model.policy, temperature)


def test_every_completion_is_there(trained):
    world, _, ref_logprobs, scores, logprobs = trained
    assert len(world) == (9331 if world.ends else 46656)
    for distribution in (ref_logprobs, logprobs):
        assert distribution.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert enumerable.mean(ref_logprobs, scores) == pytest.approx(0, abs=1e-9)


def test_reaches_97_percent_of_what_can_be_gained(trained):
    _, _, ref_logprobs, scores, logprobs = trained
    best_logprobs, best = enumerable.optimum(ref_logprobs, scores, BETA)
    reached = enumerable.mean(logprobs, scores) - BETA * enumerable.kl(logprobs, ref_logprobs)
    before = enumerable.mean(ref_logprobs, scores)
    assert best - before > 0.5
    assert (reached - before) / (best - before) >= 0.97
    assert reached == pytest.approx(best - BETA * enumerable.kl(logprobs, best_logprobs), abs=1e-4)


def test_samples_agree_with_the_exact_sums_and_are_not_above_the_frontier(trained):
    """Above it, more score at less KL than any policy can have, the KL or the reward would be miscounted."""
    world, trainer, ref_logprobs, scores, logprobs = trained
    kls, sampled_scores = [], []
    for _ in range(8):  # rollouts of 256
        trainer.iteration += 1
        experience = tiny.make_experience(trainer)
        lengths = experience.sequences.completion_lengths.tolist()
        per_token = k1(experience.logprobs, experience.ref_logprobs)
        kls.append(torch.stack([row.sum() for row in per_token.split(lengths)]))
        sampled_scores.append(experience.scores)
    sampled_kl, sampled_score = torch.cat(kls).double(), torch.cat(sampled_scores).double()
    assert_within_3_errors(sampled_kl, enumerable.kl(logprobs, ref_logprobs))
    assert_within_3_errors(sampled_score, enumerable.mean(logprobs, scores))
    objective = sampled_score - BETA * sampled_kl
    _, best = enumerable.optimum(ref_logprobs, scores, BETA)
    assert objective.mean() < best + 3 * standard_error(objective)


def assert_within_3_errors(samples, expected):
    assert abs(samples.mean().item() - expected) < 3 * standard_error(samples)


def standard_error(samples):
    return (samples.std() / len(samples) ** 0.5).item()
