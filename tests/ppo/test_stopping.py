"""The early end of an iteration's update, and the end of training at a KL budget."""

import parts
import pytest
import tiny
import torch
from transformers import TrainerCallback

FAST = {"learning_rate": 3e-2, "total_episodes": 64}


def test_the_rest_of_an_update_is_skipped_once_the_policy_has_moved_too_far(tmp_path):
    """The minibatch that shows it changes nothing either; all steps count, so the schedule stays what it was."""
    ppo = parts.trainer(tmp_path, {**FAST, "target_kl": 1e-3, "lr_scheduler_type": "linear"})
    moved, step = [], ppo.step

    def watched(minibatch):
        moved.append((ppo.update.ended, parts.weights(ppo.model)))
        step(minibatch)

    ppo.step = watched
    ppo.train()
    assert ppo.state.global_step == ppo.args.max_steps == 16
    lines = tiny.logged_iterations(ppo)
    assert [line["lr"] for line in lines] == pytest.approx([3e-2 * left / 16 for left in (13, 9, 5, 1)])
    assert [line["val/skipped_steps"] for line in lines] == [3, 3, 3, 3]
    for first in range(0, 16, 4):
        iteration = moved[first : first + 4]
        assert [is_skipped for is_skipped, _ in iteration] == [False, False, True, True]
        changes = [
            {name for name in one if not one[name].equal(other[name])}
            for (_, one), (_, other) in zip(iteration, iteration[1:], strict=False)
        ]
        assert [bool(change) for change in changes] == [True, False, False]
    assert all(line["policy/approxkl_avg"] > 1e-3 for line in lines)


def test_without_a_limit_no_step_is_skipped(tmp_path):
    ppo = parts.trainer(tmp_path, {**FAST, "target_kl": 1e9})
    ppo.train()
    assert [line["val/skipped_steps"] for line in tiny.logged_iterations(ppo)] == [0, 0, 0, 0]
    plain = parts.trainer(tmp_path, FAST)
    plain.train()
    assert not parts.changed(plain.model, parts.weights(ppo.model))


def test_training_ends_when_the_budget_of_kl_is_spent(tmp_path):
    settings = {**FAST, "save_strategy": "steps", "save_steps": 4}
    free = parts.trainer(tmp_path / "free", settings)
    free.train()
    kl = [line["objective/kl"] for line in tiny.logged_iterations(free)]
    budget = kl[1] * 0.9
    assert kl[0] == 0

    ppo = parts.trainer(tmp_path / "ended", {**settings, "kl_budget": budget})
    ppo.train()
    assert ppo.state.global_step == 4
    lines = tiny.logged_iterations(ppo)
    assert [line["objective/kl"] for line in lines] == kl[:2]  # the rollout that showed it is logged
    assert "loss" not in lines[-1]
    assert "after 1 of 4 iterations" in ppo.budget_note
    assert f"{kl[1]:.2f} nats" in ppo.budget_note

    again = parts.trainer(tmp_path / "ended", {**settings, "kl_budget": budget})
    again.train(resume_from_checkpoint=str(tmp_path / "ended" / "checkpoints" / "step-4"))
    assert again.state.global_step == 4
    assert again.budget_note == ppo.budget_note
    assert not parts.changed(again.model, parts.weights(ppo.model))


def test_a_budget_that_is_not_spent_changes_nothing(tmp_path):
    ppo = parts.trainer(tmp_path, {**FAST, "kl_budget": 1e6})
    ppo.train()
    assert ppo.state.global_step == 16
    assert ppo.budget_note is None


class SpoilGradient(TrainerCallback):
    """Makes the gradient of one optimizer step (the first is 0) infinite."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            weight = model.policy.transformer.ln_f.weight
            self.hook = weight.register_hook(lambda gradient: gradient * torch.inf)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step + 1:
            self.hook.remove()


@pytest.mark.parametrize("step", [1, 3])
def test_an_iteration_with_a_step_that_is_not_finite_is_logged_all_the_same(tmp_path, step):
    """Four steps an iteration: the spoilt one is in the middle of the first, or its last."""
    ppo = tiny.trainer(tmp_path, callbacks=[SpoilGradient(step)])
    ppo.train()
    lines = tiny.logged_iterations(ppo)
    assert [(line["episode"], line["optimizer_steps"]) for line in lines] == [(16, 4), (32, 8)]
    assert [line["nonfinite_in_a_row"] for line in ppo.state.log_history if "nonfinite_in_a_row" in line] == [1]
    assert all(line["lr"] >= 0 and "val/ratio_first" in line for line in lines)
