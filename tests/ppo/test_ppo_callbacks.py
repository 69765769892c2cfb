"""What users of Trainer rely on: when callbacks are called, what they can ask for, and what `train` returns."""

import parts
import pytest
import tiny
import torch
from transformers import TrainerCallback

from chatpipe.ppo.experience import Experience
from chatpipe.ppo.maths import ppo_loss

EVENTS = ("train_begin", "epoch_begin", "step_begin", "pre_optimizer_step", "optimizer_step", "step_end")
EVENTS = (*EVENTS, "log", "evaluate", "save", "epoch_end", "train_end")


def recorder(seen):
    """A callback that notes each event, with the number of steps so far."""

    def note(event):
        return lambda self, args, state, control, **_: seen.append((event, state.global_step))

    return type("Recorder", (TrainerCallback,), {f"on_{event}": note(event) for event in EVENTS})()


def test_callbacks_come_in_trainers_order(tmp_path):
    seen = []
    settings = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    ppo = parts.trainer(tmp_path, settings, eval_dataset=[{"input_ids": [3]}], callbacks=[recorder(seen)])
    output = ppo.train()

    def iteration(first):
        steps = [
            [("step_begin", n), ("pre_optimizer_step", n), ("optimizer_step", n), ("step_end", n + 1)]
            for n in range(first, first + 4)
        ]
        end = first + 4
        return [*sum(steps, []), ("log", end), ("log", end), ("evaluate", end), ("save", end)]

    begin, end = [("train_begin", 0), ("epoch_begin", 0)], [("epoch_end", 8), ("log", 8), ("train_end", 8)]
    assert seen == [*begin, *iteration(0), *iteration(4), *end]
    assert output.global_step == 8
    assert output.training_loss != 0
    losses = [line["loss"] for line in tiny.logged_iterations(ppo)]
    assert output.training_loss == sum(losses) / 2 or abs(output.training_loss - sum(losses) / 2) < 1e-6


class Ask(TrainerCallback):
    """Sets a flag of the control after a step."""

    def __init__(self, flag, step):
        self.flag, self.step = flag, step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            setattr(control, self.flag, True)


def test_a_callback_can_stop_within_an_iteration(tmp_path):
    """The iteration is logged, but not counted; there is no resume point, which would lack its experience."""
    settings = {"save_strategy": "steps", "save_steps": 4, "total_episodes": 64}
    ppo = parts.trainer(tmp_path, settings, callbacks=[Ask("should_training_stop", 6)])
    ppo.train()
    assert ppo.state.global_step == 6
    assert [(line["step"], line["episode"]) for line in tiny.logged_iterations(ppo)] == [(4, 16), (6, 24)]
    assert ppo.iteration == 1
    assert [point.name for point in (tmp_path / "checkpoints").iterdir()] == ["step-4"]


@pytest.mark.parametrize("save, evaluate", [(4, 8), (2, 5)], ids=["at the end of an iteration", "within one"])
def test_what_a_callback_asks_for_is_done_at_the_iteration_s_end(tmp_path, save, evaluate):
    asked = [Ask("should_save", save), Ask("should_evaluate", evaluate)]
    ppo = parts.trainer(tmp_path, {"total_episodes": 48}, eval_dataset=[{"input_ids": [3]}], callbacks=asked)
    ppo.train()
    assert [point.name for point in (tmp_path / "checkpoints").iterdir()] == ["step-4"]
    assert [line["step"] for line in ppo.state.log_history if "eval_objective/kl" in line] == [8]


def test_steps_of_saving_and_evaluation_are_whole_iterations(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 5}
    args = parts.config(tmp_path, **settings)
    assert (args.steps_per_iteration, args.save_steps, args.eval_steps) == (4, 4, 8)


def test_a_model_that_is_trained_again_goes_through_all_iterations_again(tmp_path):
    ppo = parts.trainer(tmp_path)
    ppo.train()
    once = parts.weights(ppo.model)
    ppo.train()
    assert len(tiny.logged_iterations(ppo)) == 2
    assert parts.changed(ppo.model, once)


def test_the_statistics_of_a_loss_are_on_one_device():
    """torch cannot pool them otherwise: every PPO run on a GPU ended at its first log line."""
    numbers = dict.fromkeys(("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns"))
    numbers = {name: torch.zeros(5, device="meta") for name in numbers}
    experience = Experience(sequences=None, scores=torch.zeros(2), **numbers)
    new = torch.zeros(5, device="meta", requires_grad=True)
    _, statistics = ppo_loss(new, new, experience, 0.2, 0.2, 0.1, kl_loss="k3", kl_loss_coef=0.1)
    assert {value.device.type for value in statistics.values()} == {"meta"}
