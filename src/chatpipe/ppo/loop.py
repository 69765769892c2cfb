"""Trainer's parts for a subclass that has a training loop of its own.

All that PPO uses of Trainer's private methods is here.
"""

import math
import time
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl
from transformers.trainer_utils import SaveStrategy, TrainOutput

from chatpipe.training.resume import ResumePoints
from chatpipe.training.run_trainer import SkipNonFinite


class OwnLoop(ResumePoints, SkipNonFinite):
    """A Trainer whose subclass calls these methods from its `train`:

    `begin_training`; for each optimizer step `begin_step`, backward passes of its own, `take_step`, and `end_step`; at
    a point where training may be saved `log_losses` and `evaluate_and_save`; `end_training`.
    """

    control: TrainerControl
    grad_norm: float | Tensor | None = None
    """The norm of the newest step's gradient, before clipping."""
    learning_rate: float = 0.0
    """The learning rate of the newest step."""

    def begin_training(self, resume_from_checkpoint: str | None) -> None:
        """Prepares model, optimizer and schedule; the state is new, or that of a resume point."""
        args = self.args
        self.check_resumable()
        self._memory_tracker.start()
        self.is_in_train = True
        self.accelerator.free_memory()
        self._checkpoint_activations()
        if resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
        self._init_training_state(args.max_steps, args.max_steps, 1, resume_from_checkpoint, None)
        self._prepare_for_training(args.max_steps, None, resume_from_checkpoint)
        self._started = time.time()
        self._initial_num_input_tokens_seen = self.state.num_input_tokens_seen
        self._initial_global_step = self.state.global_step
        self._tr_loss, self._total_loss_scalar = torch.tensor(0.0, device=args.device), 0.0
        self._globalstep_last_logged = self.state.global_step
        self.model_wrapped.zero_grad()
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        if args.eval_on_start:
            self._evaluate(None, None, skip_scheduler=True)
        self.control = self.callback_handler.on_epoch_begin(args, self.state, self.control)
        self._load_rng_state(resume_from_checkpoint)  # callbacks may have drawn numbers

    def _checkpoint_activations(self) -> None:
        """Turns on gradient checkpointing where the arguments ask for it; transformers 5.2x has renamed it."""
        args: Any = self.args
        if hasattr(args, "activation_checkpointing"):
            if args.activation_checkpointing:
                options = dict(args.activation_checkpointing_kwargs or {})
                named = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
                self.model.activation_checkpointing_enable(activation_checkpointing_kwargs=options or None, **named)
        elif args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)

    def begin_step(self) -> None:
        """Calls the callbacks for the beginning of an optimizer step.

        Trainer forgets here what callbacks have asked for. It is kept, for it is done at the end of an iteration.
        """
        saves, evaluates = self.control.should_save, self.control.should_evaluate
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
        self.control.should_save |= saves
        self.control.should_evaluate |= evaluates

    def take_step(self, loss: Tensor) -> None:
        """Clips the gradients and steps, unless loss or gradient is not finite; `loss` is logged."""
        model = self.model_wrapped
        self.grad_norm = self.clip_gradients()
        if not self.skip_if_nonfinite(model, loss, self.grad_norm):
            self._tr_loss += loss
        self.control = self.callback_handler.on_pre_optimizer_step(self.args, self.state, self.control)
        self.optimizer.step()
        self.control = self.callback_handler.on_optimizer_step(self.args, self.state, self.control)
        model.zero_grad()

    def clip_gradients(self) -> Tensor:
        """Limits the gradient's norm to `max_grad_norm`; returns the norm before that."""
        norm: Tensor = self.accelerator.clip_grad_norm_(
            self.model_wrapped.parameters(), self.args.max_grad_norm or math.inf
        )
        return norm

    def end_step(self) -> None:
        """Counts the step, also in the schedule, and calls the callbacks."""
        self.learning_rate = self._get_learning_rate()
        if not self.accelerator.optimizer_step_was_skipped:
            self.lr_scheduler.step()
        self.state.global_step += 1
        self.state.epoch = self.state.global_step / self.args.max_steps
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        self.report_skipped_step()

    def log_losses(self) -> dict[str, float]:
        """`loss`, the mean of the steps since it was called last, over all ranks (a skipped step counts as
        0); norm and rate of the newest step."""
        logs: dict[str, float] = {}
        steps = self.state.global_step - self._globalstep_last_logged
        if steps:
            loss = self.accelerator.gather(self._tr_loss).mean().item()
            logs["loss"] = loss / steps
            self._total_loss_scalar += loss
        self._tr_loss = torch.zeros_like(self._tr_loss)
        self._globalstep_last_logged = self.state.global_step
        if self.grad_norm is not None:
            logs["grad_norm"] = float(self.grad_norm)
        return {**logs, "learning_rate": self.learning_rate}

    def evaluate_and_save(self) -> None:
        """Does what the arguments' strategies or a callback have asked for."""
        if self.control.should_evaluate:
            is_best = self._determine_best_metric(metrics=self._evaluate(None, None), trial=None)
            if self.args.save_strategy == SaveStrategy.BEST:
                self.control.should_save = is_best
        if self.control.should_save:
            self._save_checkpoint(self.model_wrapped)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def end_training(self, num_samples: int) -> TrainOutput:
        """Logs the totals of the training, and calls the callbacks."""
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        self.evaluate_and_save()
        return self._finalize_training(None, num_samples, self._started)

    def sum_over_ranks(self, sums: Tensor) -> Tensor:
        """The sum over all processes, on the device of `sums`."""
        return self.accelerator.reduce(sums.to(self.args.device), reduction="sum").to(sums.device)

    def max_over_ranks(self, value: Tensor) -> Tensor:
        """The largest value of all processes."""
        return self.accelerator.gather(value.to(self.args.device)).max()
