"""A non-finite loss or gradient: no rank updates, it is logged, and three in a row stop the training."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from chatpipe.errors import TrainingError
from chatpipe.training.run_trainer import SkipNonFinite
from forked import run_ranks


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Rows(IterableDataset):
    """Two rows a step on one process; the rows of the steps in `bad_inputs` hold nan, those of `bad_losses` a flag."""

    def __init__(self, steps, bad_inputs=(), bad_losses=(), rows_per_step=2):
        self.steps, self.bad_inputs, self.bad_losses, self.rows_per_step = steps, bad_inputs, bad_losses, rows_per_step

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for step in range(1, self.steps + 1):
            for row in range(self.rows_per_step):
                x = torch.randn(3, generator=generator)
                last = row == self.rows_per_step - 1
                bad_x = math.nan if last and step in self.bad_inputs else 0.0
                yield {"x": x + bad_x, "y": x.sum(), "infinite": torch.tensor(last and step in self.bad_losses)}


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x, y, infinite):
        error = (self.layer(x).squeeze(-1) - y).pow(2).mean()
        # an infinite loss with a finite gradient
        return {"loss": error + torch.where(infinite.any(), math.inf, 0.0)}


class RememberWeights(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.after = {}

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.after.setdefault(0, model.layer.weight.detach().clone())

    def on_step_end(self, args, state, control, model, **kwargs):
        self.after[state.global_step] = model.layer.weight.detach().clone()


class Quiet(SkipNonFinite, Trainer):
    """In the order of our own trainers: the mixin before a trainer."""


def trainer_on(folder, rows, micro_batch=1, **changes):
    set_seed(0)
    settings = {
        "output_dir": str(folder),
        "max_steps": rows.steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.1,
        "weight_decay": 0.5,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    weights = RememberWeights()
    args = TrainingArguments(**settings | changes)
    trainer = Quiet(model=Regression(), args=args, train_dataset=rows, callbacks=[weights])
    return trainer, weights.after


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("bad", [{"bad_inputs": [3]}, {"bad_losses": [3]}], ids=["nan in the data", "infinite loss"])
def test_a_bad_step_changes_nothing_and_the_run_continues(tmp_path, bad, max_grad_norm):
    trainer, weights = trainer_on(tmp_path, Rows(6, **bad), max_grad_norm=max_grad_norm)
    trainer.train()
    assert torch.equal(weights[3], weights[2])
    for step in (1, 2, 4, 5, 6):
        assert not torch.equal(weights[step], weights[step - 1])
    # neither a moment nor the count of the optimizer has seen the bad step
    assert all(entry["step"] == 5 for entry in trainer.optimizer.state.values())
    assert all(torch.isfinite(weights[step]).all() for step in weights)


def test_it_is_logged_and_the_losses_after_it_are_finite(tmp_path):
    trainer, _ = trainer_on(tmp_path, Rows(6, bad_inputs=[3]), logging_steps=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "train_runtime" not in row]
    assert [(row["step"], row.get("nonfinite_in_a_row")) for row in rows] == [(2, None), (3, 1), (4, None), (6, None)]
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)


def test_the_loss_logged_next_is_the_mean_of_the_finite_steps(tmp_path):
    whole, _ = trainer_on(tmp_path, Rows(4, bad_inputs=[3]), logging_steps=1)
    whole.train()
    spanning, _ = trainer_on(tmp_path, Rows(4, bad_inputs=[3]), logging_steps=4)
    spanning.train()
    loss_of_step_4 = next(row["loss"] for row in whole.state.log_history if row["step"] == 4)
    assert next(row["loss"] for row in spanning.state.log_history if "loss" in row) == loss_of_step_4


def test_three_in_a_row_stop_the_training(tmp_path):
    trainer, weights = trainer_on(tmp_path, Rows(9, bad_inputs=[2, 4, 5, 6]))
    with pytest.raises(TrainingError, match="3 steps in a row, the last is step 6"):
        trainer.train()
    assert torch.equal(weights[6], weights[3])
    assert [row["nonfinite_in_a_row"] for row in trainer.state.log_history if "nonfinite_in_a_row" in row] == [
        1,
        1,
        2,
        3,
    ]


def test_two_in_a_row_do_not(tmp_path):
    trainer, _ = trainer_on(tmp_path, Rows(6, bad_inputs=[2, 3, 5, 6]))
    trainer.train()
    assert trainer.state.global_step == 6


# ---- two processes ----


def train_one_of_two(folder):
    """Only rank 1 meets the infinite loss, whose gradient is finite on both."""
    rows = Rows(5, bad_losses=[3], rows_per_step=2)
    trainer, weights = trainer_on(folder, rows, gradient_accumulation_steps=1)
    trainer.train()
    assert trainer.args.world_size == 2
    torch.testing.assert_close(weights[3], weights[2], rtol=0, atol=0)
    assert not torch.equal(weights[4], weights[3])
    assert [row["step"] for row in trainer.state.log_history if "nonfinite_in_a_row" in row] == [3]


def test_all_ranks_skip_when_one_is_in_trouble(tmp_path):
    run_ranks(train_one_of_two, tmp_path)
