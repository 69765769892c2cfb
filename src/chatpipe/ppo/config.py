"""The settings of PPO.

An iteration samples `num_mini_batches * batch_size` completions (a rollout), then goes over them `num_ppo_epochs`
times, each time in a fresh order and in `num_mini_batches` optimizer steps of `batch_size` completions.
"""

import difflib
import math
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from transformers import TrainingArguments

from chatpipe.errors import UsageError
from chatpipe.recipe.ppo_settings import PpoSettings

MOST_SHOWN = 6
"""Wrong settings that an error gives in full; its last line names all."""


@dataclass
class PPOConfig(TrainingArguments):
    """TrainingArguments with PPO's own settings, named as in TRL's PPOConfig where it has them.

    Batches. `batch_size` counts completions per optimizer step over all processes (default: as in
    TrainingArguments, per_device_train_batch_size * gradient_accumulation_steps * processes);
    `per_device_train_batch_size` is the micro-batch. `total_episodes` counts completions in all; None: num_train_epochs
    over the prompts, as in TRL.

    Symbols. `kl_coef`, `gamma`, `lam`, `cliprange`, `cliprange_value` and `vf_coef` are those of
    `chatpipe.ppo.maths`.

    KL. The penalty in the reward is k1, which alone has the right optimum (arXiv 2510.01555). `adaptive_kl_target`
    (nats a completion) and `adaptive_kl_horizon` (completions): `kl_coef` is adapted after each iteration so that the
    KL comes to the target; None keeps it fixed. `kl_loss` (k2 or k3) with `kl_loss_coef`: a KL term in the loss
    in addition. `target_kl`: the rest of an iteration's minibatches is skipped once `policy/approxkl` of one of them is
    above it. `kl_budget`: training ends when `objective/kl` is above it.

    Rewards. `missing_eos_penalty` makes the score of a completion without EOS worse, `missing_eos` says how (None:
    off). `reward_weights`: one for each reward model, then for each reward function; default 1.
    `stop_token_id` ends a completion in place of EOS.

    Value model. `value_model`: what it starts from, `reward` (the first reward model) or `policy` (its body with a new
    head of zeros); None: the reward model where it can be one. The first `value_model_warmup_iterations` train the
    value model alone. `value_model_learning_rate`: default `learning_rate`.

    PTX. `ptx_coef` (gamma in InstructGPT, eq. 2) times the mean loss per token on `ptx_batch_size` rows of text
    (default `batch_size`) is added in every optimizer step.

    Derived: `max_steps` from `total_episodes`; `save_steps` and `eval_steps` rounded up to whole iterations, since a
    resume point holds no experience. Each iteration is logged, whatever `logging_steps` is; the micro-batches replace
    `gradient_accumulation_steps`. Raises UsageError where the numbers do not fit each other.
    """

    learning_rate: float = 3e-6
    total_episodes: int | None = None
    batch_size: int | None = None
    num_mini_batches: int = 1
    num_ppo_epochs: int = 4
    kl_coef: float = 0.05
    adaptive_kl_target: float | None = None
    adaptive_kl_horizon: int = 10_000
    kl_loss: str | None = None
    kl_loss_coef: float = 0.0
    target_kl: float | None = None
    kl_budget: float | None = None
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    temperature: float = 1.0
    response_length: int = 48
    stop_token_id: int | None = None
    missing_eos_penalty: float | None = 1.0
    missing_eos: str = "subtract"
    reward_weights: list[float] | None = None
    value_model: str | None = None
    value_model_warmup_iterations: int = 0
    value_model_learning_rate: float | None = None
    ptx_coef: float = 0.0
    ptx_batch_size: int | None = None
    gradient_accumulation_steps: int = 1
    save_steps: float = 500
    eval_steps: float | None = None
    include_num_input_tokens_seen: str = "all"
    logging_nan_inf_filter: bool = False

    def __new__(cls, *_: Any, **given: Any) -> "PPOConfig":
        """Raises UsageError for a setting that does not exist, with the nearest one that does."""
        for name in given:
            if name not in cls.__dataclass_fields__:
                near = difflib.get_close_matches(name, cls.__dataclass_fields__, n=1)
                meant = f"Did you mean {near[0]}?" if near else "docs/from-trl.md lists TRL's settings that are gone."
                raise UsageError(f"PPOConfig has no setting {name}.", meant)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is None:
            self.batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
        if self.ptx_batch_size is None:
            self.ptx_batch_size = self.batch_size
        self.gradient_accumulation_steps = 1
        self._check()
        self._settings()
        if self.total_episodes is not None:
            self.count_steps(self.total_episodes)

    def count_steps(self, total_episodes: int) -> None:
        """Set what follows from the number of completions in all. Raises UsageError where the policy gets no step."""
        self.total_episodes = total_episodes
        contradiction = self._settings().contradiction(self.batch_size)  # type: ignore[arg-type]  # set before
        if contradiction is not None:
            raise UsageError(f"{contradiction}.", "Change one of them, or leave it out for the default.")
        self.max_steps = self.num_iterations * self.steps_per_iteration
        self.save_steps = self._whole_iterations(self.save_steps)
        if self.eval_steps is not None:
            self.eval_steps = self._whole_iterations(self.eval_steps)

    def _whole_iterations(self, steps: float) -> int:
        """`steps` (below 1: a share of all) rounded up to whole iterations."""
        steps = steps if steps >= 1 else steps * self.max_steps
        return math.ceil(steps / self.steps_per_iteration) * self.steps_per_iteration

    @property
    def rollout_size(self) -> int:
        """Completions per iteration, over all processes."""
        return self.batch_size * self.num_mini_batches  # type: ignore[operator]  # set in __post_init__

    @property
    def num_iterations(self) -> int:
        """Iterations in all: as many as it takes to sample `total_episodes` completions."""
        return math.ceil(self.total_episodes / self.rollout_size)  # type: ignore[operator]  # set by `count_steps`

    @property
    def steps_per_iteration(self) -> int:
        """Optimizer steps per iteration."""
        return self.num_ppo_epochs * self.num_mini_batches

    def _check(self) -> None:
        """Raises UsageError for batches that processes cannot share, and for fp16 with skipped steps."""
        for key in ("batch_size", "ptx_batch_size"):
            size = getattr(self, key)
            if size < 1 or size % self.world_size:
                raise UsageError(
                    f"{key} = {size} cannot be shared by {self.world_size} processes.",
                    f"Make it a multiple of {self.world_size}.",
                )
        if self.fp16 and self.target_kl is not None:
            raise UsageError(
                "target_kl skips steps, which the loss scaling of fp16 does not allow.", "Use bf16, or leave one out."
            )

    def _settings(self) -> PpoSettings:
        """PPO's own settings, in bounds. Raises UsageError with all that are not."""
        given = {name: getattr(self, name) for name in PpoSettings.model_fields}
        try:
            return PpoSettings.model_validate({name: value for name, value in given.items() if value is not None})
        except ValidationError as problem:
            wrong = problem.errors()
            lines = [f"{e['loc'][0]} = {e['input']}: {e['msg'][0].lower()}{e['msg'][1:]}." for e in wrong]
            names = ", ".join(str(e["loc"][0]) for e in wrong)
            raise UsageError("\n".join(lines[:MOST_SHOWN]), f"Leave {names} out for the default.") from problem
