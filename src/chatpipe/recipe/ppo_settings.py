"""The settings of PPO and their bounds: the recipe's section `ppo` inherits them, and PPOConfig is checked by them.

PPOConfig is a dataclass, as TrainingArguments is, and repeats the defaults; tests/ppo/test_kl_control.py keeps them
equal.
"""

import math
from typing import Literal

from pydantic import Field

from chatpipe.recipe.section import Section

DEFAULT_ROLLOUTS = 16
"""Rollouts of a training that `total_episodes` does not limit, at least."""


class PpoSettings(Section):
    """PPO's own settings, with names and defaults as in TRL's PPOConfig where it has them."""

    total_episodes: int | None = Field(
        None, ge=1, description="Completions sampled in all. Default: one to each prompt, at least 16 rollouts."
    )
    num_ppo_epochs: int = Field(4, ge=1, description="Passes over each rollout.")
    num_mini_batches: int = Field(
        4, ge=1, description="Optimizer steps per epoch; a rollout has batch_size times this."
    )
    kl_coef: float = Field(0.05, ge=0, description="Weight of the KL penalty; where it adapts, the first one.")
    adaptive_kl_target: float | None = Field(
        None, gt=0, description="Nats per completion to which kl_coef is adapted; lm-human-preferences takes 6."
    )
    adaptive_kl_horizon: int = Field(10_000, ge=1, description="Completions; a longer one adapts more slowly.")
    kl_loss: Literal["k2", "k3"] | None = Field(
        None, description="A KL term in the loss, in addition to the penalty in the reward."
    )
    kl_loss_coef: float = Field(0.0, ge=0, description="Weight of kl_loss.")
    target_kl: float | None = Field(
        None, gt=0, description="Skip the rest of an iteration's steps once policy/approxkl of one of them is above it."
    )
    kl_budget: float | None = Field(None, gt=0, description="End training when objective/kl is above it.")
    cliprange: float = Field(0.2, gt=0, description="The ratio of new to old policy is clipped to 1 +- cliprange.")
    cliprange_value: float = Field(0.2, gt=0, description="Values are clipped to this distance from the old ones.")
    vf_coef: float = Field(0.1, ge=0, description="Weight of the value loss.")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount of later rewards.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of generalised advantage estimation.")
    temperature: float = Field(1.0, gt=0, description="Temperature of sampling and of all log-probs.")
    response_length: int | None = Field(
        None, ge=1, description="The longest completion, in tokens. Default: as `evaluation.max_new_tokens`."
    )
    missing_eos_penalty: float | None = Field(
        1.0, ge=0, description="Penalty of a completion without EOS; null turns it off."
    )
    missing_eos: Literal["subtract", "replace"] = Field(
        "subtract", description="The penalty is subtracted from the score, or replaces it with a minus sign."
    )
    value_model: Literal["reward", "policy"] | None = Field(
        None, description="What the value model starts from; default: the reward model where it can be a value model."
    )
    value_model_warmup_iterations: int = Field(
        0, ge=0, description="The first iterations, which train the value model alone."
    )
    value_model_learning_rate: float | None = Field(None, gt=0, description="Default: learning_rate.")
    ptx_coef: float = Field(
        0.0, ge=0, description="Weight of the loss on raw text in the same step (InstructGPT: 27.8)."
    )
    ptx_batch_size: int | None = Field(None, ge=1, description="Blocks of text per step; default: batch_size.")

    def episodes(self, prompts: int, batch_size: int) -> int:
        """`total_episodes`, or its default for so many `prompts` and completions a step."""
        return self.total_episodes or max(prompts, DEFAULT_ROLLOUTS * batch_size * self.num_mini_batches)

    def contradiction(self, batch_size: int) -> str | None:
        """Why the settings do not go together, with the keys to change; None where they do.

        A step has `batch_size` completions.
        """
        rollout_size = batch_size * self.num_mini_batches
        if (self.kl_loss is None) != (self.kl_loss_coef == 0):
            return "kl_loss and kl_loss_coef belong together"
        if self.adaptive_kl_target is not None and self.kl_coef == 0:
            return "adaptive_kl_target multiplies kl_coef, which must be above 0"
        if self.adaptive_kl_target is not None and self.adaptive_kl_horizon < rollout_size:
            return (
                f"adaptive_kl_horizon = {self.adaptive_kl_horizon} is below the {rollout_size} completions of one "
                "iteration"
            )
        iterations = math.ceil(self.episodes(0, batch_size) / rollout_size)
        if self.value_model_warmup_iterations >= iterations:
            return (
                f"value_model_warmup_iterations = {self.value_model_warmup_iterations} leaves none of the {iterations} "
                "iterations of total_episodes to the policy"
            )
        return None
