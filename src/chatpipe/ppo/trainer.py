"""PPO as a `transformers.Trainer`: its training data is a stream of experience.

    trainer = PPOTrainer(args=PPOConfig(...), processing_class=tokenizer, model=policy, reward_model=reward_model,
                         train_dataset=[{"prompt": "..."}, ...])
    trainer.train()
    trainer.save_model("out")

One iteration: generate completions to the next prompts, score them with policy, reference, value model and rewards,
compute advantages (`rollout`); then for `num_ppo_epochs` take minibatches, each one an optimizer step (`loader`).
"""

import copy
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from chatpipe import console
from chatpipe.errors import UsageError
from chatpipe.models.logprobs import check_output_head
from chatpipe.models.pretrained import fuse_gelu
from chatpipe.ppo.alarms import alarms
from chatpipe.ppo.checks import check_models, check_precision, check_prompts, check_stop_token, check_tokenizers
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import Experience
from chatpipe.ppo.kl import adapted_coefficient
from chatpipe.ppo.loader import ExperienceLoader
from chatpipe.ppo.making import ExperienceMaker
from chatpipe.ppo.metrics import Metrics, UpdateStatistics
from chatpipe.ppo.model import PolicyAndValueModel, disable_dropout
from chatpipe.ppo.prompts import Prompt, read_prompts
from chatpipe.ppo.rollout import Stream, prompt_numbers, seed_of
from chatpipe.ppo.update import PPOUpdate
from chatpipe.ppo.value_model import new_value_model
from chatpipe.reward.rewards import RewardFunction, Rewards
from chatpipe.training.lora import Adapter, check_no_adapter
from chatpipe.training.nonfinite import SkipNonFinite
from chatpipe.training.resume import ResumePoints

_log = logging.getLogger(__name__)


class PPOTrainer(PPOUpdate, ResumePoints, SkipNonFinite):
    """Trains `model` (the policy) to please its rewards while it stays close to `ref_model`.

    model: a causal language model. ref_model: default a frozen copy of it; with `peft_config` the model without its
    adapter. reward_model: a sequence classification model with one label, or several; reward_funcs: functions as in
    `chatpipe.reward.rewards`. oracle_reward: a reward model or function that judges too, and is never trained on.
    value_model: default as `args.value_model` says. train_dataset: rows as in `chatpipe.ppo.prompts`;
    train_prompts: token ids of prompts. eval_dataset: prompts that `evaluate` completes. ptx_dataset: rows with
    `input_ids` for `args.ptx_coef`. processing_class: the tokenizer.

    In all models, in place, dropout is set to 0 and GPT-2's GELU is replaced by torch's kernel; reference and reward
    models are frozen. `trainer.model` holds `.policy` and `.value_model`. `trainer.alarms` says what went
    wrong, by name. Raises UsageError where the parts do not fit each other.
    """

    def __init__(
        self,
        *,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        reward_model: PreTrainedModel | Sequence[PreTrainedModel] | None = None,
        train_dataset: Iterable[Any] | None = None,
        train_prompts: Sequence[Sequence[int]] | None = None,
        ref_model: PreTrainedModel | None = None,
        value_model: PreTrainedModel | None = None,
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None = None,
        oracle_reward: PreTrainedModel | RewardFunction | None = None,
        eval_dataset: Iterable[Any] | None = None,
        ptx_dataset: Any = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        rewards = Rewards.of(reward_model, reward_funcs, args.reward_weights, oracle_reward)
        judges = {f"reward_model{i or ''}": each for i, each in enumerate(rewards.all_models)}
        given = {"model": model, "ref_model": ref_model, **judges, "value_model": value_model}
        models = {name: each for name, each in given.items() if each is not None}
        check_no_adapter(model)
        check_models(models)
        check_tokenizers(models, processing_class)
        stop_token_id = check_stop_token(processing_class, model, args.stop_token_id)
        self.prompts = [Prompt(ids) for ids in train_prompts or []]
        self.prompts += read_prompts(train_dataset if train_dataset is not None else [], processing_class)
        check_prompts(self.prompts, args.response_length, models, processing_class, "train_dataset")
        if eval_dataset is not None:
            eval_dataset = read_prompts(eval_dataset, processing_class, "eval_dataset")
            check_prompts(eval_dataset, args.response_length, models, processing_class, "eval_dataset")
        if (args.ptx_coef != 0) != (ptx_dataset is not None):
            raise UsageError(
                "ptx_coef and ptx_dataset belong together.", "Give text to mix in (recipe: ppo.ptx_data), or neither."
            )
        if args.total_episodes is None:
            args.count_steps(int(args.num_train_epochs * len(self.prompts)))
        for each in models.values():
            disable_dropout(each)
            fuse_gelu(each)
        check_output_head(model)
        value_model = new_value_model(model, rewards.models, args.value_model) if value_model is None else value_model
        if ref_model is None and peft_config is None:
            ref_model = copy.deepcopy(model)
        self.adapter = None if peft_config is None else Adapter(model, peft_config)
        disable_dropout(model)  # that of the adapter
        for each in rewards.all_models if ref_model is None else [ref_model, *rewards.all_models]:
            each.eval().requires_grad_(False).to(args.device)
        value_model.requires_grad_(True)
        check_precision({"model": model, "value_model": value_model})
        self.ref_model, self.reward_model, self.ptx_dataset = ref_model, reward_model, ptx_dataset
        self.kl_coef = args.kl_coef
        self.alarms: dict[str, str] = {}
        self.budget_note: str | None = None
        self._metrics: Metrics = {}
        self._update = UpdateStatistics()
        super().__init__(
            model=PolicyAndValueModel(model, value_model, args.temperature),
            args=args,
            processing_class=processing_class,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        if self.is_fsdp_enabled:
            raise UsageError(
                "PPO does not run under FSDP: it samples from whole models on every process.",
                "Launch it without FSDP flags (DDP); LoRA (peft_config, ppo.lora) saves memory.",
            )
        self._maker = ExperienceMaker(
            args,
            processing_class,
            stop_token_id,
            self.model,
            ref_model,
            self.adapter,
            rewards,
            self.accelerator,
            self._sum_over_ranks,
        )

    def get_train_dataloader(self) -> ExperienceLoader:
        """The stream of experience."""
        return ExperienceLoader(self)

    # ---- the rollout ----

    def make_experience(self) -> Experience:
        """This rank's share of one iteration's experience: n = rollout_size / ranks completions, on the CPU."""
        args, rank = self.args, self.args.process_index
        share = args.rollout_size // args.world_size
        place = self.iteration * args.rollout_size + rank * share
        prompts = [self.prompts[number] for number in prompt_numbers(len(self.prompts), place, share, args.seed)]
        seed = seed_of(Stream.GENERATION, args.seed, self.iteration, rank)
        experience, self._metrics = self._maker.make(prompts, seed, self.kl_coef)
        self._update, self._update_started = UpdateStatistics(), time.perf_counter()
        return experience

    def is_over_budget(self) -> bool:
        """Whether the KL of the experience just made is above `kl_budget`: then training ends, unused.

        All ranks find the same. What the rollout showed is logged.
        """
        kl, budget = self._metrics["objective/kl"], self.args.kl_budget
        if budget is None or not kl > budget:
            return False
        self.budget_note = (
            f"Training ended after {self.iteration} of {self.args.num_iterations} iterations: {kl:.2f} nats of KL are "
            f"above the budget of {budget:g}"
        )
        self.control.should_training_stop = True
        self.log({**self._metrics, "episode": self.iteration * self.args.rollout_size})
        return True

    def begin_update(self) -> None:
        """Move the cursor behind the iteration whose experience was made; adapt the KL coefficient for the next one."""
        super().begin_update()
        args = self.args
        if args.adaptive_kl_target is not None and not self.trains_value_model_alone:
            kl, episodes = self._metrics["objective/kl"], args.rollout_size
            self.kl_coef = adapted_coefficient(
                self.kl_coef, kl, args.adaptive_kl_target, episodes, args.adaptive_kl_horizon
            )

    def evaluate(
        self,
        eval_dataset: Iterable[Any] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Completes the prompts of `eval_dataset`, and logs what PPO's objective is made of under `eval_...`.

        Sampled as in training, with random numbers of its own: always the same ones for the same weights.
        """
        prompts: Any = self.eval_dataset
        if prompts is None and eval_dataset is None:
            raise UsageError("There are no prompts to evaluate on.", "Give eval_dataset.")
        if eval_dataset is not None:
            prompts = read_prompts(eval_dataset, self.processing_class, "eval_dataset")
        args, rank = self.args, self.args.process_index
        if len(prompts) < args.world_size:
            raise UsageError(f"eval_dataset has {len(prompts)} prompts for {args.world_size} processes.", "Give more.")
        seed = seed_of(Stream.EVALUATION, args.seed, rank)
        _, metrics = self._maker.make(prompts[rank :: args.world_size], seed, self.kl_coef)
        shown = ("objective/", "rewards/", "response/")
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items() if name.startswith(shown)}
        self.log(named)
        self.control: TrainerControl = self.callback_handler.on_evaluate(args, self.state, self.control, named)
        return named

    # ---- logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What Trainer logs, at the end of an iteration together with the iteration's metrics and its alarms.

        Where the last step of an iteration was not finite, `SkipNonFinite` logs in Trainer's place.
        """
        ends_with_nonfinite = "nonfinite_in_a_row" in logs and self.is_between_iterations(self.state)
        if "loss" in logs or ends_with_nonfinite:
            logs = {**logs, **self._iteration_metrics(logs)}
            logs |= self._raise_alarms(logs)
        self.state.epoch = self.state.global_step / self.args.max_steps  # Trainer counts anew after a resume
        super().log(logs, start_time)

    def _iteration_metrics(self, logs: dict[str, float]) -> Metrics:
        update_seconds = time.perf_counter() - self._update_started
        seconds = self._metrics["time/rollout"] + self._metrics["time/score"] + update_seconds
        skipped = {} if self.args.target_kl is None else {"val/skipped_steps": self.skipped_steps}
        return {
            **self._metrics,
            **skipped,
            **self._update.metrics(self._sum_over_ranks, self._max_over_ranks),
            "lr": logs.get("learning_rate", self._get_learning_rate()),
            "episode": self.iteration * self.args.rollout_size,
            "eps": self.args.rollout_size / seconds,
            "optimizer_steps": self.state.global_step,
            "time/update": update_seconds,
            "perf/padding": self._update.padding(self._sum_over_ranks),
        }

    def _raise_alarms(self, now: Metrics) -> Metrics:
        """A flag for each alarm that holds; one that was never raised before is said aloud."""
        history = [line for line in self.state.log_history if "val/ratio_first" in line] + [now]
        found = alarms(history, self.args.value_model_warmup_iterations, self.args.bf16 or self.args.fp16)
        for name, sentence in found.items():
            if name not in self.alarms:
                self.alarms[name] = f"Iteration {self.iteration}: {sentence}"
                if self.is_world_process_zero():
                    console.warn(self.alarms[name])
        return {f"alarm/{name}": 1.0 for name in found}

    # ---- saving and resume points ----

    def trained_policy(self) -> PreTrainedModel:
        """The policy as a plain model; with LoRA a copy that has the adapter in its weights."""
        return self.model.policy if self.adapter is None else self.adapter.merged()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the policy and the tokenizer, a folder that opens with `AutoModelForCausalLM`."""
        folder = Path(output_dir or self.args.output_dir)
        if self.is_world_process_zero():
            self.trained_policy().save_pretrained(folder)
            self.processing_class.save_pretrained(folder)

    def is_between_iterations(self, state: TrainerState) -> bool:
        """Whether a resume point may lie here: inside an iteration it would lack the experience."""
        return state.global_step % self.args.steps_per_iteration == 0

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        if self.is_between_iterations(self.state):
            super()._save_checkpoint(model, trial)
        else:
            _log.warning("No resume point at step %s: it is inside an iteration.", self.state.global_step)

    def modules_to_save(self) -> dict[str, nn.Module]:
        """Policy (with LoRA its adapter alone) and value model, each in a file of its own."""
        trained = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return {
            "policy": trained.policy if self.adapter is None else self.adapter.weights(),
            "value_model": trained.value_model,
        }

    def extra_state(self) -> dict[str, Any]:
        """The iteration to go on with (prompts, sampling and minibatches follow from it), the coefficient, alarms."""
        return {"iteration": self.iteration, "kl_coef": self.kl_coef, "alarms": self.alarms}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Puts it back."""
        self.iteration, self.kl_coef, self.alarms = extra["iteration"], extra["kl_coef"], extra["alarms"]
