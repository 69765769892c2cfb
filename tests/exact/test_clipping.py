"""T4: where the clipped losses have a gradient and where they have none."""

import math

import pytest
import torch

from chatpipe.ppo.maths import policy_loss, value_loss

POLICY_TABLE = [  # advantage, ratio, loss, whether the gradient vanishes; cliprange 0.2
    (2.0, 0.5, -1.0, False),
    (2.0, 1.0, -2.0, False),
    (2.0, 1.5, -2.4, True),  # has already gone up further than 1 + eps
    (-2.0, 0.5, 1.6, True),  # has already gone down further than 1 - eps
    (-2.0, 1.0, 2.0, False),
    (-2.0, 1.5, 3.0, False),
]
VALUE_TABLE = [  # value, old value, target, loss, gradient; cliprange_value 0.2
    (1.1, 1.0, 2.0, 0.5 * 0.9**2, -0.9),  # inside the range: plain squared error
    (1.5, 1.0, 2.0, 0.5 * 0.8**2, 0.0),  # went towards the target by more than the range: held
    (0.5, 1.0, 2.0, 0.5 * 1.5**2, -1.5),  # went away from it: the plain error is larger
    (2.5, 1.0, 2.0, 0.5 * 0.8**2, 0.0),  # overshot: held, and the held value is further away
    (4.0, 1.0, 2.0, 0.5 * 2.0**2, 2.0),  # overshot by far: the plain error is larger
]


def check_policy_loss(advantage, ratio, expected_loss, gradient_vanishes):
    logprobs = torch.tensor([math.log(ratio) - 1], dtype=torch.float64, requires_grad=True)
    old_logprobs, advantages = torch.tensor([[-1.0], [advantage]], dtype=torch.float64)
    loss, statistics = policy_loss(logprobs, old_logprobs, advantages, cliprange=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss)
    assert logprobs.grad.item() == pytest.approx(0 if gradient_vanishes else -advantage * ratio)
    assert statistics["clipped"].item() == int(gradient_vanishes)


def check_value_loss(value, old_value, target, expected_loss, expected_gradient):
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    old_values, returns = torch.tensor([[old_value], [target]], dtype=torch.float64)
    loss, statistics = value_loss(values, old_values, returns, cliprange_value=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss)
    assert values.grad.item() == pytest.approx(expected_gradient)
    assert statistics["value_clipped"].item() == int(expected_gradient == 0)


def check_tables():
    for row in POLICY_TABLE:
        check_policy_loss(*row)
    for row in VALUE_TABLE:
        check_value_loss(*row)


@pytest.mark.parametrize("advantage, ratio, expected_loss, gradient_vanishes", POLICY_TABLE)
def test_policy_loss(advantage, ratio, expected_loss, gradient_vanishes):
    check_policy_loss(advantage, ratio, expected_loss, gradient_vanishes)


@pytest.mark.parametrize("value, old_value, target, expected_loss, expected_gradient", VALUE_TABLE)
def test_value_loss(value, old_value, target, expected_loss, expected_gradient):
    check_value_loss(value, old_value, target, expected_loss, expected_gradient)


def test_losses_are_sums_over_tokens():
    torch.manual_seed(0)
    new, old, target = torch.randn(3, 10, dtype=torch.float64)
    for loss in (policy_loss, value_loss):
        whole, _ = loss(new, old, target, 0.2)
        parts = [loss(new[s], old[s], target[s], 0.2)[0] for s in (slice(3), slice(3, 10))]
        assert whole.item() == pytest.approx(sum(part.item() for part in parts))
