"""The settings of PPO, and what Trainer's loop has to be told so that it runs over iterations of experience.

An iteration samples `num_mini_batches * batch_size` completions (a rollout), then goes over them `num_ppo_epochs`
times, each time in a fresh order and in `num_mini_batches` optimizer steps of `batch_size` completions.
"""

import math
from dataclasses import dataclass

from transformers import TrainingArguments

from chatpipe.errors import UsageError


@dataclass
class PPOConfig(TrainingArguments):
    """TrainingArguments with PPO's own settings, named as in TRL's PPOConfig.

    `batch_size` counts completions per optimizer step over all processes (default: what TrainingArguments says, i.e.
    per_device_train_batch_size * gradient_accumulation_steps * processes); `per_device_train_batch_size` is the
    micro-batch. `kl_coef`, `gamma`, `lam`, `cliprange`, `cliprange_value` and `vf_coef` are the symbols of
    `chatpipe.ppo.kl`, `.advantages` and `.loss`. `missing_eos_penalty` is subtracted from the score of a completion
    without EOS; None is off.

    Derived: `max_steps` from `total_episodes`; a log line each iteration; `save_steps` rounded up to whole iterations,
    since a resume point holds no experience; `gradient_accumulation_steps` = 1, since one step of the experience
    loader is one optimizer step. Raises UsageError where the numbers do not fit each other.
    """

    learning_rate: float = 3e-6
    total_episodes: int = 4096
    batch_size: int | None = None
    num_mini_batches: int = 1
    num_ppo_epochs: int = 4
    kl_coef: float = 0.05
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    temperature: float = 1.0
    response_length: int = 48
    missing_eos_penalty: float | None = 1.0
    gradient_accumulation_steps: int = 1
    save_steps: float = 500
    include_num_input_tokens_seen: str = "all"
    logging_nan_inf_filter: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is None:
            self.batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
        if self.batch_size % self.world_size:
            raise UsageError(
                f"batch_size = {self.batch_size} cannot be shared by {self.world_size} processes.",
                f"Make it a multiple of {self.world_size}.",
            )
        if self.temperature <= 0:
            raise UsageError(
                f"temperature = {self.temperature}: PPO samples, so it must be above 0.", "1.0 is the model as it is."
            )
        self.gradient_accumulation_steps = 1
        self.max_steps = self.num_iterations * self.steps_per_iteration
        self.logging_steps = self.steps_per_iteration
        self.logging_first_step = False
        save_steps = self.save_steps if self.save_steps >= 1 else self.save_steps * self.max_steps
        self.save_steps = math.ceil(save_steps / self.steps_per_iteration) * self.steps_per_iteration
        self.ignore_data_skip = True  # the loader starts at its own cursor; there is nothing for Trainer to skip

    @property
    def rollout_size(self) -> int:
        """Completions per iteration, over all processes."""
        return self.batch_size * self.num_mini_batches  # type: ignore[operator]  # set in __post_init__

    @property
    def num_iterations(self) -> int:
        """Iterations in all: as many as it takes to sample `total_episodes` completions."""
        return math.ceil(self.total_episodes / self.rollout_size)

    @property
    def steps_per_iteration(self) -> int:
        """Optimizer steps per iteration."""
        return self.num_ppo_epochs * self.num_mini_batches
