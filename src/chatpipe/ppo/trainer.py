"""PPO as a `transformers.Trainer` with a loop of its own.

trainer = PPOTrainer(args=PPOConfig(...), processing_class=tokenizer, model=policy, reward_model=reward_model,
                     train_dataset=[{"prompt": "..."}, ...])
trainer.train()
trainer.save_model("out")
"""

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from operator import itemgetter
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from chatpipe import console
from chatpipe.checks import parts_checks
from chatpipe.checks.gate import refuse
from chatpipe.data.sequences import Sequences
from chatpipe.errors import UsageError
from chatpipe.models.pretrained import save_readable
from chatpipe.models.properties import end_token_ids, unnamed_ids
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import (
    EVALUATION,
    GENERATION,
    Experience,
    Prompt,
    Rollout,
    read_eval_prompts,
    read_prompts,
    row_numbers,
    seed_for,
)
from chatpipe.ppo.gradient import PPOGradients
from chatpipe.ppo.maths import adapted_coefficient
from chatpipe.ppo.metrics import Metrics, UpdateStatistics, alarms, over_budget, rollout_metrics
from chatpipe.ppo.model import PolicyAndValueModel, prepare_models
from chatpipe.ppo.rollout import advantages, complete, completion_rows, minibatches, read_with_all_models, shown_texts
from chatpipe.reward.rewards import RewardFunction, Rewards
from chatpipe.training.lora import adapter_of

_log = logging.getLogger(__name__)


class PPOTrainer(PPOGradients):
    """Trains `model` (the policy) to collect rewards while it stays close to `ref_model`.

    model: a causal language model, or a `PeftModel` of one, whose adapter is trained. ref_model: default a frozen copy
    of it; with an adapter the model without it. reward_model: a sequence classification model with one label, or
    several; reward_funcs: functions as in `chatpipe.reward.rewards`. oracle_reward: a reward model or function that is
    logged and never trained on. value_model: default by `args.value_model`. train_dataset: rows as in
    `chatpipe.ppo.experience`; train_prompts: token ids of prompts. eval_dataset: prompts that `evaluate` completes, or
    several sets of them by name. ptx_dataset: rows with `input_ids` for `args.ptx_coef`. processing_class: the
    tokenizer.

    The models are changed in place: see `prepare_models`. `trainer.model` holds `.policy` and `.value_model`;
    `trainer.alarms` holds the alarms raised so far, by name. Raises UsageError where the parts do not fit each other.
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
        eval_dataset: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        ptx_dataset: Any = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.rewards = Rewards.of(reward_model, reward_funcs, args.reward_weights, oracle_reward)
        scorers = {f"reward_model{i or ''}": each for i, each in enumerate(self.rewards.all_models)}
        adapter, self.saved_dtype = adapter_of(model, peft_config), model.dtype
        model = model if adapter is None else adapter.model
        given = {"model": model, "ref_model": ref_model, **scorers, "value_model": value_model}
        models = {name: each for name, each in given.items() if each is not None}
        stop = processing_class.eos_token_id if args.stop_token_id is None else args.stop_token_id
        self.end_tokens = [stop] if args.stop_token_id is not None else end_token_ids(model, processing_class)
        refuse(parts_checks.model_checks(models, processing_class, stop))
        self.prompts = [Prompt(ids) for ids in train_prompts or []]
        self.prompts += read_prompts(train_dataset if train_dataset is not None else [], processing_class)
        self.eval_prompts = {} if eval_dataset is None else read_eval_prompts(eval_dataset, processing_class)
        self._check_prompts(models, processing_class, args.response_length)
        if (args.ptx_coef != 0) != (ptx_dataset is not None):
            raise UsageError(
                "ptx_coef and ptx_dataset belong together.", "Give text to mix in (recipe: ppo.ptx_data), or neither."
            )
        if args.total_episodes is None:
            args.count_steps(int(args.num_train_epochs * len(self.prompts)))
        value_model, self.ref_model, self.adapter = prepare_models(
            model, ref_model, value_model, self.rewards, args, adapter, peft_config
        )
        refuse({"trained_in_half": lambda: parts_checks.trained_in_half({"model": model, "value_model": value_model})})
        self.reward_model, self.ptx_dataset = reward_model, ptx_dataset
        super().__init__(
            model=PolicyAndValueModel(model, value_model, args.temperature, unnamed_ids(processing_class)),
            args=args,
            processing_class=processing_class,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        self.model.config = model.config  # what Trainer writes into a model card
        if self.is_fsdp_enabled:
            raise UsageError(
                "PPO does not run under FSDP: it samples from whole models on every process.",
                "Launch it without FSDP flags (DDP); LoRA (peft_config, ppo.lora) saves memory.",
            )
        self.kl_coef = args.kl_coef
        self.alarms: dict[str, str] = {}
        self.budget_note: str | None = None
        self.metrics: Metrics = {}  # of the newest rollout
        self.update = UpdateStatistics()

    def _check_prompts(
        self, models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, response_length: int
    ) -> None:
        evaluated = {f"eval_dataset {name}".strip(): prompts for name, prompts in self.eval_prompts.items()}
        for key, prompts in {"train_dataset": self.prompts, **evaluated}.items():
            ids = [prompt.ids for prompt in prompts]
            refuse(parts_checks.prompt_checks(ids, response_length, models, tokenizer, key))

    # ---- the loop ----

    def train(self, resume_from_checkpoint: str | None = None, **_: Any) -> TrainOutput:
        """Trains until all iterations are done, the KL budget is spent, or a callback stops it."""
        args = self.args
        self.iteration, self.kl_coef, self.budget_note = 0, args.kl_coef, None
        self.begin_training(resume_from_checkpoint)
        while self.iteration < args.num_iterations and not self.control.should_training_stop:
            rollout = self.rollout(self.next_prompts(), seed_for(GENERATION, args.seed, self.iteration, self.rank))
            experience = advantages(rollout, self.kl_coef, args, self.sum_over_ranks)
            self.metrics = self.rollout_metrics(rollout, experience)
            if self.is_over_budget():
                break
            self.update = UpdateStatistics()
            for minibatch in minibatches(experience, args, self.iteration):
                self.step(minibatch)
                if self.control.should_training_stop:
                    break
            self.end_iteration()
        return self.end_training(num_samples=args.rollout_size * args.num_iterations)

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.args.process_index

    def next_prompts(self) -> list[Prompt]:
        """This rank's share of the iteration's prompts: rollout_size / ranks."""
        args, share = self.args, self.args.rollout_size // self.args.world_size
        place = self.iteration * args.rollout_size + self.rank * share
        return [self.prompts[number] for number in row_numbers(len(self.prompts), place, share, args.seed)]

    # ---- the rollout ----

    def rollout(self, prompts: Sequence[Prompt], seed: int) -> Rollout:
        """One completion to each prompt, read by all models and reward functions."""
        args, started = self.args, time.perf_counter()
        sequences = self.write([prompt.ids for prompt in prompts], seed)
        completed = time.perf_counter()
        as_reference = nullcontext if self.adapter is None or self.ref_model is not None else self.adapter.off
        with self.accelerator.autocast():
            readings = read_with_all_models(
                sequences,
                self.model,
                self.model.policy if self.ref_model is None else self.ref_model,
                self.rewards.all_models,
                self.end_tokens[0],
                args.per_device_train_batch_size,
                args.device,
                as_reference,
            )
        texts = shown_texts(prompts, sequences, self.processing_class) if self.rewards.read_text else ([], [])
        scores, by_source = self.rewards.score(readings.scores, *texts, sequences.ended.tolist())
        return Rollout(
            sequences,
            scores,
            readings.logprobs,
            readings.ref_logprobs,
            readings.values,
            by_source,
            {"time/rollout": completed - started, "time/score": time.perf_counter() - completed},
        )

    def write(self, prompts: Sequence[Sequence[int]], seed: int) -> Sequences:
        """One completion of the policy to each prompt (token ids)."""
        # On a CPU a decode step is slower in bfloat16, and each of its shapes costs memory (docs/log.md).
        with nullcontext() if self.args.device.type == "cpu" else self.accelerator.autocast():
            return complete(self.model, prompts, self.args.response_length, self.end_tokens, seed)

    def rollout_metrics(self, rollout: Rollout, experience: Experience) -> Metrics:
        """The metrics of a rollout over all ranks; the times are this rank's."""
        metrics = rollout_metrics(experience, rollout.by_source, self.kl_coef, self.args, self.sum_over_ranks)
        return {**metrics, **rollout.seconds}

    def is_over_budget(self) -> bool:
        """Whether the KL of the newest rollout is above `kl_budget`: then training ends, and the rollout is logged.

        All ranks find the same.
        """
        self.budget_note = over_budget(self.metrics["objective/kl"], self.iteration, self.args)
        if self.budget_note is None:
            return False
        self.control.should_training_stop = True
        self.log({**self.metrics, "episode": self.iteration * self.args.rollout_size})
        return True

    # ---- the update ----

    def step(self, minibatch: Experience) -> None:
        """One optimizer step.

        A minibatch whose policy has moved further than `target_kl` is not stepped on, and ends the update: the
        iteration's other steps only count. A weight that must not change has no gradient (None) when the optimizer
        steps: then neither its decay nor its moments change.
        """
        self.begin_step()
        if not self.update.ended:
            loss, statistics = self.backward(minibatch)
            self.update.add(statistics)
            self.update.ended = self.moved_too_far(statistics)
            if self.update.ended:
                self.model.zero_grad(set_to_none=True)
            elif self.trains_value_model_alone:
                self.model.policy.zero_grad(set_to_none=True)
            self.take_step(loss)
        self.update.skipped_steps += self.update.ended
        self.end_step()

    # ---- the end of an iteration ----

    def end_iteration(self) -> None:
        """Adapts the KL coefficient, logs, raises alarms, and evaluates and saves where that is due.

        An iteration that a callback stopped half-way is logged, but not counted.
        """
        args = self.args
        if args.adaptive_kl_target is not None and not self.trains_value_model_alone:
            kl, target, horizon = self.metrics["objective/kl"], args.adaptive_kl_target, args.adaptive_kl_horizon
            self.kl_coef = adapted_coefficient(self.kl_coef, kl, target, args.rollout_size, horizon)
        self.iteration += self.is_between_iterations(self.state)
        metrics = self._iteration_metrics()
        self.log({**metrics, **self._raise_alarms(metrics)}, self._started)
        self.evaluate_and_save()

    def _iteration_metrics(self) -> Metrics:
        args, losses = self.args, self.log_losses()
        update_seconds = time.perf_counter() - self.update.started
        seconds = self.metrics["time/rollout"] + self.metrics["time/score"] + update_seconds
        tokens_read, padding = self.update.reading(self.sum_over_ranks)
        self.state.num_input_tokens_seen += tokens_read
        return {
            **losses,
            **self.metrics,
            **({} if args.target_kl is None else {"val/skipped_steps": self.update.skipped_steps}),
            **self.update.metrics(self.sum_over_ranks, self.max_over_ranks),
            "lr": losses["learning_rate"],
            "episode": self.state.global_step * args.rollout_size // args.steps_per_iteration,
            "eps": args.rollout_size / seconds,
            "optimizer_steps": self.state.global_step,
            "time/update": update_seconds,
            "perf/padding": padding,
        }

    def _raise_alarms(self, now: Metrics) -> Metrics:
        """A metric for each alarm that holds; an alarm that was never raised before is printed."""
        history = [line for line in self.state.log_history if "val/ratio_first" in line] + [now]
        found = alarms(history, self.args.value_model_warmup_iterations, self.args.bf16 or self.args.fp16)
        for name, sentence in found.items():
            if name not in self.alarms:
                iteration = math.ceil(self.state.global_step / self.args.steps_per_iteration)
                self.alarms[name] = f"Iteration {iteration}: {sentence}"
                if self.is_world_process_zero():
                    console.warn(self.alarms[name])
        return {f"alarm/{name}": 1.0 for name in found}

    def evaluate(
        self,
        eval_dataset: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Completes the prompts of `eval_dataset`, and logs what PPO's objective is made of under `eval_...`.

        Of several sets the metrics are under `eval_NAME_...`. It samples as in training, with random numbers of its
        own: always the same ones for the same weights.
        """
        sets = self.eval_prompts if eval_dataset is None else read_eval_prompts(eval_dataset, self.processing_class)
        if not sets:
            raise UsageError("There are no prompts to evaluate on.", "Give eval_dataset.")
        shown = ("objective/", "rewards/", "response/")
        named: dict[str, float] = {}
        for name, prompts in sets.items():
            rollout = self._evaluation_rollout(prompts)
            experience = advantages(rollout, self.kl_coef, self.args, self.sum_over_ranks)
            prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
            metrics = self.rollout_metrics(rollout, experience)
            named |= {f"{prefix}_{name}": value for name, value in metrics.items() if name.startswith(shown)}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def _evaluation_rollout(self, prompts: Sequence[Prompt]) -> Rollout:
        """Completions to this rank's share of the prompts."""
        ranks = self.args.world_size
        if len(prompts) < ranks:
            raise UsageError(f"eval_dataset has {len(prompts)} prompts for {ranks} processes.", "Give more.")
        return self.rollout(prompts[self.rank :: ranks], seed_for(EVALUATION, self.args.seed, self.rank))

    def generate_completions(self, sampling: bool = False) -> list[dict[str, Any]]:
        """Completes the prompts of `eval_dataset` as `evaluate` does; prints the first five and returns all.

        A row has `query`, `model response` and `score`, its reward. With `sampling` it is one batch of
        `per_device_eval_batch_size` prompts for each process.
        """
        prompts, ranks = [prompt for some in self.eval_prompts.values() for prompt in some], self.args.world_size
        prompts = prompts[: self.args.eval_batch_size * ranks if sampling else None]
        if not prompts:
            return []
        own = completion_rows(prompts[self.rank :: ranks], self._evaluation_rollout(prompts), self.processing_class)
        numbered = gather_object([*zip(range(self.rank, len(prompts), ranks), own, strict=True)])
        rows = [row for _, row in sorted(numbered, key=itemgetter(0))]
        if self.is_world_process_zero():
            console.table("completions", [*rows[0]], [[str(value) for value in row.values()] for row in rows[:5]])
        return rows

    # ---- saving and resume points ----

    @property
    def policy_model(self) -> PreTrainedModel:
        """The policy."""
        return self.model.policy

    @property
    def value_model(self) -> PreTrainedModel:
        """The value model."""
        return self.model.value_model

    def trained_policy(self) -> PreTrainedModel:
        """The policy as a plain model; with LoRA a copy that has the adapter in its weights."""
        return self.model.policy if self.adapter is None else self.adapter.merged()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the policy, in its own dtype, and the tokenizer: a folder that opens with `AutoModelForCausalLM`."""
        folder = Path(output_dir or self.args.output_dir)
        if self.is_world_process_zero():
            save_readable(self.trained_policy(), folder, self.saved_dtype)
            self.processing_class.save_pretrained(folder)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None, **more: Any
    ) -> None:
        """Writes Trainer's draft of a model card, `README.md` in `output_dir`; TRL's names of arguments."""
        tags = [*([tags] if isinstance(tags, str) else tags or ()), "chatpipe", "ppo"]
        super().create_model_card(model_name=model_name, tags=tags, **{"dataset": dataset_name, **more})

    def is_between_iterations(self, state: TrainerState) -> bool:
        """Whether a resume point is possible here: within an iteration it would lack the experience."""
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
        """Finished iterations (prompts, sampling and minibatches follow from them), the coefficient, the alarms."""
        return {"iteration": self.iteration, "kl_coef": self.kl_coef, "alarms": self.alarms}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Puts it back."""
        self.iteration, self.kl_coef, self.alarms = extra["iteration"], extra["kl_coef"], extra["alarms"]
