"""T5, T6: neither padding nor row order nor micro-batch size changes loss, gradient or statistics."""

import pytest
import tiny
import torch

from chatpipe.ppo.microbatch import MicroBatch, pad


@pytest.fixture
def ppo(tmp_path):
    """A trainer in float64 whose policy has moved since the experience was made, so that ratios are not 1."""
    made = tiny.trainer(
        tmp_path,
        model=tiny.policy().double(),
        reward_model=tiny.random_reward_model().double(),
        batch_size=24,
        num_mini_batches=1,
    )
    made.state.max_steps = 1
    made.experience = made.make_experience()
    assert len(set(made.experience.sequences.lengths.tolist())) > 4
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return made


def step(ppo, experience):
    """Loss, gradient and update metrics of one optimizer step on `experience`."""
    ppo.model.zero_grad()
    ppo._update.__init__()
    loss = ppo.training_step(ppo.model, {"experience": experience})
    gradient = torch.cat([parameter.grad.flatten() for parameter in ppo.model.parameters()])
    return loss.item(), gradient, ppo._update.metrics(ppo._sum_over_ranks, ppo._max_over_ranks)


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=0, abs=1e-10)
    assert torch.allclose(one[1], other[1], rtol=0, atol=1e-10)
    assert one[2] == pytest.approx(other[2], rel=0, abs=1e-10)


def test_against_a_loop_over_tokens(ppo):
    """The loss of the papers written out, from unpadded forward passes: one mean over all tokens, EOS among them."""
    sequences, args, place, total = ppo.experience.sequences, ppo.args, 0, 0.0
    for ids, prompt_length in zip(sequences.ids.split(sequences.lengths.tolist()), sequences.prompt_lengths.tolist()):
        logprobs = ppo.model.policy(ids[None]).logits[0].log_softmax(-1)
        values = ppo.model.critic.score(ppo.model.critic.transformer(ids[None]).last_hidden_state)[0, :, 0]
        for t in range(prompt_length, len(ids)):
            old_logprob, advantage, old_value, target = (
                getattr(ppo.experience, name)[place].item() for name in ("logprobs", "advantages", "values", "returns")
            )
            ratio = (logprobs[t - 1, ids[t]] - old_logprob).exp()
            total += -min(ratio * advantage, ratio.clamp(1 - args.cliprange, 1 + args.cliprange) * advantage)
            value = values[t - 1]
            held = min(max(value, old_value - args.cliprange_value), old_value + args.cliprange_value)
            total += args.vf_coef * max((value - target) ** 2, (held - target) ** 2) / 2
            place += 1
    assert place == ppo.experience.num_tokens == sequences.completion_lengths.sum()
    ppo.model.zero_grad()
    (total / place).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in ppo.model.parameters()])
    loss, ours, _ = step(ppo, ppo.experience)
    assert loss == pytest.approx((total / place).item(), rel=0, abs=1e-10)
    assert torch.allclose(ours, gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("micro_batch_size", [1, 5, 24])
def test_micro_batch_size(ppo, micro_batch_size):
    expected = step(ppo, ppo.experience)
    assert expected[1].abs().max() > 1e-4
    assert expected[2]["policy/clipfrac_avg"] > 0
    ppo.args.per_device_train_batch_size = micro_batch_size
    assert_same(step(ppo, ppo.experience), expected)


def test_row_order(ppo):
    assert_same(step(ppo, ppo.experience.select(torch.randperm(24))), step(ppo, ppo.experience))


def test_what_stands_in_padded_cells_is_never_read(ppo):
    batch = pad(ppo.experience.sequences)
    garbage = torch.where(batch.attention_mask.bool(), batch.input_ids, torch.randint(1, 12, batch.input_ids.shape))
    assert not garbage.equal(batch.input_ids)
    for one, other in zip(ppo.model(*batch), ppo.model(*batch._replace(input_ids=garbage)), strict=True):
        assert one.equal(other)


def test_more_padding(ppo):
    batch = pad(ppo.experience.sequences)
    rows, width = batch.input_ids.shape
    wider = MicroBatch(
        torch.cat([batch.input_ids, torch.zeros(rows, 5, dtype=torch.long)], 1),
        torch.cat([batch.attention_mask, torch.zeros(rows, 5, dtype=torch.long)], 1),
        torch.arange(width + 5).expand(rows, -1),
        batch.rows,
        batch.columns,
    )
    for one, other in zip(ppo.model(*batch), ppo.model(*wider), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_scoring_does_not_depend_on_the_micro_batch_size(tmp_path):
    experiences = [
        tiny.trainer(
            tmp_path,
            model=tiny.policy().double(),
            reward_model=tiny.random_reward_model().double(),
            per_device_train_batch_size=size,
        ).make_experience()
        for size in (1, 16)
    ]
    for name in ("scores", "logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns"):
        one, other = (getattr(experience, name) for experience in experiences)
        assert torch.allclose(one, other, rtol=0, atol=1e-10), name
