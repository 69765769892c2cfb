"""PPO as a `transformers.Trainer`: its training data is a stream of experience.

    trainer = PPOTrainer(args=PPOConfig(...), processing_class=tokenizer, model=policy, reward_model=reward_model,
                         train_prompts=[[token ids], ...])
    trainer.train()
    trainer.model.policy.save_pretrained("out")

One iteration: generate completions to the next prompts, score them with policy, reference, critic and reward model,
compute advantages (`rollout`); then for `num_ppo_epochs` yield minibatches, each of which is one optimizer step.
Trainer asks for a minibatch only when it is about to train on it, so a rollout always sees the weights of its moment;
the loader must therefore not go through `accelerator.prepare`, which would read ahead.
"""

import contextlib
import copy
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState

from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams, generate
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import Experience, Sequences
from chatpipe.ppo.loss import Statistics, ppo_loss
from chatpipe.ppo.metrics import Metrics, UpdateStatistics, add_statistics, experience_metrics
from chatpipe.ppo.microbatch import length_sorted, pad
from chatpipe.ppo.model import PolicyAndCritic, check_output_head, disable_dropout
from chatpipe.ppo.rollout import Stream, minibatches, prompt_numbers, score, seed_of, with_advantages
from chatpipe.training.nonfinite import SkipNonFinite
from chatpipe.training.resume import ResumePoints

_log = logging.getLogger(__name__)


class ExperienceLoader:
    """What Trainer iterates over: minibatches of fresh experience, from the trainer's iteration to the last."""

    def __init__(self, trainer: "PPOTrainer") -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return self.trainer.args.max_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer, args = self.trainer, self.trainer.args
        while trainer.iteration < args.num_iterations:
            iteration = trainer.iteration
            experience = trainer.make_experience()
            # Set before the first minibatch: a resume point lies after the last one, before this loop is entered again.
            trainer.iteration = iteration + 1
            for epoch in range(args.num_ppo_epochs):
                seeds = (args.seed, iteration, epoch, args.process_index)
                for minibatch in minibatches(experience, args.num_mini_batches, *seeds):
                    # `input_ids` is what Trainer counts as the tokens seen
                    yield {"input_ids": minibatch.sequences.ids, "experience": minibatch}


class PPOTrainer(ResumePoints, SkipNonFinite, Trainer):
    """Trains `model` (the policy) to please `reward_model` while it stays close to `ref_model`.

    model: a causal language model. ref_model: default a frozen copy of it. reward_model: a sequence classification
    model with one label. value_model: the critic, of the same kind; default a copy of the reward model.
    train_prompts: token ids of each prompt, ready for generation. processing_class: the tokenizer; completions end at
    its EOS.

    Dropout is set to 0 in all models, in place, and reference and reward model are frozen. `trainer.model` holds
    `.policy` and `.critic`. Raises UsageError where the models do not fit each other.
    """

    args: PPOConfig
    model: PolicyAndCritic

    def __init__(
        self,
        *,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        reward_model: PreTrainedModel,
        train_prompts: Sequence[Sequence[int]],
        ref_model: PreTrainedModel | None = None,
        value_model: PreTrainedModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        ref_model = copy.deepcopy(model) if ref_model is None else ref_model
        value_model = copy.deepcopy(reward_model) if value_model is None else value_model
        _check(processing_class, model, ref_model, reward_model, value_model, train_prompts)
        for each in (model, ref_model, reward_model, value_model):
            disable_dropout(each)
        check_output_head(model)
        self.ref_model, self.reward_model = (
            frozen.eval().requires_grad_(False).to(args.device) for frozen in (ref_model, reward_model)
        )
        self.train_prompts = train_prompts
        self.iteration = 0
        self._update = UpdateStatistics()
        self._metrics: Metrics = {}
        super().__init__(
            model=PolicyAndCritic(model, value_model.requires_grad_(True), args.temperature),
            args=args,
            processing_class=processing_class,
            callbacks=callbacks,
        )

    def get_train_dataloader(self) -> ExperienceLoader:
        """The stream of experience."""
        return ExperienceLoader(self)

    # ---- the rollout ----

    def make_experience(self) -> Experience:
        """This rank's share of one iteration's experience: n = rollout_size / ranks completions, on the CPU."""
        started = time.perf_counter()
        with self.accelerator.autocast():
            sequences = self._generate()
            generated = time.perf_counter()
            scores = score(
                sequences,
                self.model,
                self.ref_model,
                self.reward_model,
                self.args.per_device_train_batch_size,
                self.args.device,
            )
        experience, raw_advantages = with_advantages(sequences, scores, self.args, self._sum_over_ranks)
        self._metrics = experience_metrics(
            experience, raw_advantages, self.args.kl_coef, self.args.missing_eos_penalty, self._sum_over_ranks
        )
        self._update = UpdateStatistics()
        self._update_started = time.perf_counter()
        self._metrics["time/rollout"] = generated - started
        self._metrics["time/score"] = self._update_started - generated
        return experience

    def _generate(self) -> Sequences:
        args, rank = self.args, self.args.process_index
        share = args.rollout_size // args.world_size
        place = self.iteration * args.rollout_size + rank * share
        prompts = [
            self.train_prompts[number] for number in prompt_numbers(len(self.train_prompts), place, share, args.seed)
        ]
        # The full softmax: top-k, top-p or a minimum length would sample from another policy than is trained.
        params = SamplingParams(max_new_tokens=args.response_length, temperature=args.temperature)
        seed = seed_of(Stream.GENERATION, args.seed, self.iteration, rank)
        completions = generate(self.model.policy, prompts, params, self.processing_class.eos_token_id, seed)
        return Sequences.of(prompts, [c.ids for c in completions], [c.ended for c in completions])

    # ---- the update ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward over one minibatch, micro-batch by micro-batch; returns its total loss.

        The gradient is that of sum / (completion tokens of the minibatch over all ranks). DDP averages over ranks, so
        each rank's loss is multiplied by their number; gradients are exchanged in the last micro-batch only.
        """
        model.train()
        minibatch: Experience = inputs["experience"]
        args, device = self.args, self.args.device
        all_tokens = self._sum_over_ranks(torch.tensor(minibatch.num_tokens)).item()
        chunks = length_sorted(minibatch.sequences.lengths, args.per_device_train_batch_size)
        total = torch.zeros((), device=device)
        statistics: Statistics = {}
        for number, rows in enumerate(chunks, start=1):
            part = minibatch.select(rows)
            last = number == len(chunks)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss, sums = self._loss(model, part)
                loss = loss * args.world_size / all_tokens
                self.accelerator.backward(loss)
            total = total + loss.detach()
            statistics = add_statistics(statistics, sums)
        self._update.add(statistics)
        return total

    def _loss(self, model: nn.Module, part: Experience) -> tuple[Tensor, Statistics]:
        """The summed loss of one micro-batch and its statistics."""
        batch = pad(part.sequences).to(self.args.device)
        outputs = model(*batch)
        loss, statistics = ppo_loss(
            outputs.logprobs,
            outputs.values,
            part.to(self.args.device),
            self.args.cliprange,
            self.args.cliprange_value,
            self.args.vf_coef,
        )
        return loss, {**statistics, "entropy": outputs.entropy.sum()}

    # ---- logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What Trainer logs, at the end of an iteration together with the iteration's metrics."""
        if "loss" in logs:
            logs = {**logs, **self._iteration_metrics(logs)}
        self.state.epoch = self.state.global_step / self.state.max_steps  # Trainer counts anew after a resume
        super().log(logs, start_time)

    def _iteration_metrics(self, logs: dict[str, float]) -> Metrics:
        update_seconds = time.perf_counter() - self._update_started
        seconds = self._metrics["time/rollout"] + self._metrics["time/score"] + update_seconds
        return {
            **self._metrics,
            **self._update.metrics(self._sum_over_ranks, self._max_over_ranks),
            "lr": logs["learning_rate"],
            "episode": self.iteration * self.args.rollout_size,
            "eps": self.args.rollout_size / seconds,
            "optimizer_steps": self.state.global_step,
            "time/update": update_seconds,
        }

    # ---- resume points ----

    def is_between_iterations(self, state: TrainerState) -> bool:
        """Whether a resume point may lie here: inside an iteration it would lack the experience."""
        return state.global_step % self.args.steps_per_iteration == 0

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        if self.is_between_iterations(self.state):
            super()._save_checkpoint(model, trial)
        else:
            _log.warning("No resume point at step %s: it is inside an iteration.", self.state.global_step)

    def modules_to_save(self) -> dict[str, nn.Module]:
        """Policy and critic, each in a file of its own."""
        trained = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return {"policy": trained.policy, "critic": trained.critic}

    def extra_state(self) -> dict[str, Any]:
        """The cursor: the iteration to go on with. Prompts, sampling and order of minibatches all follow from it."""
        return {"iteration": self.iteration}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Puts the cursor back."""
        self.iteration = extra["iteration"]

    # ---- all ranks together ----

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums.to(self.args.device), reduction="sum").cpu()

    def _max_over_ranks(self, value: Tensor) -> Tensor:
        return self.accelerator.gather(value.to(self.args.device)).max()


def _check(
    tokenizer: PreTrainedTokenizerBase,
    policy: PreTrainedModel,
    ref_model: PreTrainedModel,
    reward_model: PreTrainedModel,
    value_model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
) -> None:
    """Raise UsageError for what would make PPO wrong without any error."""
    models = {"model": policy, "ref_model": ref_model, "reward_model": reward_model, "value_model": value_model}
    for (name, one), (other_name, other) in itertools.combinations(models.items(), 2):
        if one is other:
            raise UsageError(f"{name} and {other_name} are the same object.", "Give a copy, or leave one out.")
    vocabulary = policy.get_input_embeddings().num_embeddings
    for name, model in models.items():
        if model.get_input_embeddings().num_embeddings < vocabulary:
            raise UsageError(
                f"{name} knows {model.get_input_embeddings().num_embeddings} tokens, the policy {vocabulary}.",
                "All models must share one tokenizer.",
            )
    if tokenizer.eos_token_id is None:
        raise UsageError("The tokenizer has no EOS token, so completions would never end.", "Set tokenizer.eos_token.")
    if not prompts:
        raise UsageError("There are no prompts to train on.", "Give train_prompts (recipe: ppo.data).")
