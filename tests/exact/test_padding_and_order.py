"""T5, T6: neither padding nor row order nor micro-batch size changes experience, loss, gradient or statistics."""

from unittest import mock

import pytest
import tiny
import torch
from torch.nn import functional

from chatpipe.data import sequences as microbatch
from chatpipe.data.sequences import pad
from chatpipe.models.unpadded import reads_unpadded
from mutation import replaced

# Ways to split a minibatch of 24 completions into forward passes, as settings of PPOConfig.
SPLITS = [{"per_device_train_batch_size": size} for size in (1, 5, 24)]


def trainer(folder, **overrides):
    """In float64, with prompts and completions of many lengths."""
    return tiny.trainer(
        folder,
        model=tiny.policy().double(),
        reward_model=tiny.random_reward_model().double(),
        **{"batch_size": 24, "num_mini_batches": 1} | overrides,
    )


def one_step(ppo, rows=None):
    """Experience, and loss, gradient and update metrics of an optimizer step on it, or on its `rows` in that order.

    The policy moves in between, so that ratios are not 1.
    """
    experience = tiny.make_experience(ppo)
    assert len(set(experience.sequences.lengths.tolist())) > 4
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in ppo.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    taken = experience if rows is None else experience.select(rows)
    loss = tiny.backward(ppo, taken)
    gradient = {name: parameter.grad.clone() for name, parameter in ppo.model.named_parameters()}
    metrics = ppo.update.metrics(ppo.sum_over_ranks, ppo.max_over_ranks)
    return experience, loss.item(), gradient, metrics


def assert_same(one, other):
    assert one[0].sequences.ids.equal(other[0].sequences.ids)
    for name in ("scores", "logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns"):
        assert torch.allclose(getattr(one[0], name), getattr(other[0], name), rtol=0, atol=1e-10), name
    assert one[1] == pytest.approx(other[1], rel=0, abs=1e-10)
    for name in one[2]:
        assert torch.allclose(one[2][name], other[2][name], rtol=0, atol=1e-10), name
    assert one[3] == pytest.approx(other[3], rel=0, abs=1e-10)


# ---- T5: what stands in padded cells ----


def check_poison(folder):
    """NaN in all that a model computes for padding leaves everything as it was (NaN * 0 would be NaN).

    Without padding between rows there is still some behind them.
    """
    check_poisoned_models(folder)
    with replaced(reads_unpadded, lambda body: False):
        check_poisoned_models(folder)


def check_poisoned_models(folder):
    ppo, poisoned = trainer(folder), set()

    def poison(body, _, inputs, output):
        mask = inputs["attention_mask"]
        if mask.dim() == 2:  # not the decode engine's, which has no cell of padding that anything reads
            poisoned.update({body} if (mask == 0).any() else {})
            output.last_hidden_state = torch.where(mask.bool()[..., None], output.last_hidden_state, torch.nan)

    models = ppo.model.policy, ppo.model.value_model, ppo.ref_model, ppo.reward_model
    for model in models:
        model.base_model.register_forward_hook(poison, with_kwargs=True)
    assert_same(one_step(ppo), one_step(trainer(folder)))
    assert poisoned == {model.base_model for model in models}


def check_padding_id(folder):
    """Any token may stand in padded cells, EOS too."""
    expected = one_step(trainer(folder))
    with mock.patch.object(microbatch, "PADDING_ID", tiny.EOS):
        assert_same(one_step(trainer(folder)), expected)


def test_nan_in_every_padded_cell(tmp_path):
    check_poison(tmp_path)


def test_padding_id(tmp_path):
    check_padding_id(tmp_path)


# ---- T6: invariance ----


def check_splits(folder):
    expected = one_step(trainer(folder))
    assert min(gradient.abs().max() for gradient in expected[2].values()) > 1e-4
    assert expected[3]["policy/clipfrac_avg"] > 0
    for split in SPLITS:
        assert_same(one_step(trainer(folder, **split)), expected)


def test_reading_with_padding_between_rows_and_without(tmp_path):
    expected = one_step(trainer(tmp_path))
    with replaced(reads_unpadded, lambda body: False):
        assert_same(one_step(trainer(tmp_path)), expected)


def check_row_order(folder):
    assert_same(one_step(trainer(folder), torch.arange(24).flip(0)), one_step(trainer(folder)))


def check_more_padding(folder):
    exact = pad

    def wider(*args, **kwargs):
        batch = exact(*args, **kwargs)
        more = {name: functional.pad(getattr(batch, name), (0, 5)) for name in ("input_ids", "attention_mask")}
        positions = torch.arange(more["input_ids"].shape[1]).expand(more["input_ids"].shape)
        return batch._replace(**more, position_ids=positions)

    with replaced(pad, wider):
        more_padding = one_step(trainer(folder))
    assert_same(more_padding, one_step(trainer(folder)))


def check_against_a_loop_over_tokens(folder):
    """The loss of the papers written out, from unpadded forward passes: one mean over all tokens, EOS among them."""
    ppo = trainer(folder)
    experience, loss, gradient, _ = one_step(ppo)
    sequences, args, place, total = experience.sequences, ppo.args, 0, 0.0
    ppo.model.zero_grad()
    for ids, prompt_length in zip(sequences.ids.split(sequences.lengths.tolist()), sequences.prompt_lengths.tolist()):
        logprobs = ppo.model.policy(ids[None]).logits[0].log_softmax(-1)
        values = ppo.model.value_model.score(ppo.model.value_model.transformer(ids[None]).last_hidden_state)[0, :, 0]
        for t in range(prompt_length, len(ids)):
            old_logprob, advantage, old_value, target = (
                getattr(experience, name)[place].item() for name in ("logprobs", "advantages", "values", "returns")
            )
            ratio = (logprobs[t - 1, ids[t]] - old_logprob).exp()
            total += -min(ratio * advantage, ratio.clamp(1 - args.cliprange, 1 + args.cliprange) * advantage)
            value = values[t - 1]
            held = min(max(value, old_value - args.cliprange_value), old_value + args.cliprange_value)
            total += args.vf_coef * max((value - target) ** 2, (held - target) ** 2) / 2
            place += 1
    assert place == experience.num_tokens
    (total / place).backward()
    assert loss == pytest.approx((total / place).item(), rel=0, abs=1e-10)
    for name, parameter in ppo.model.named_parameters():
        assert torch.allclose(gradient[name], parameter.grad, rtol=0, atol=1e-10), name


def test_splits_into_micro_batches(tmp_path):
    check_splits(tmp_path)


def test_row_order(tmp_path):
    check_row_order(tmp_path)


def test_more_padding(tmp_path):
    check_more_padding(tmp_path)


def test_against_a_loop_over_tokens(tmp_path):
    check_against_a_loop_over_tokens(tmp_path)
