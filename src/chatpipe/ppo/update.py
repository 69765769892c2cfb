"""One optimizer step of PPO: the part of the trainer that turns a minibatch into a gradient."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from chatpipe.data.sequences import pad
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import Experience
from chatpipe.ppo.loss import Statistics, ppo_loss
from chatpipe.ppo.metrics import UpdateStatistics, add_statistics
from chatpipe.ppo.model import PolicyAndValueModel, micro_batch_rows
from chatpipe.ppo.ptx import row_of, text_loss
from chatpipe.ppo.rollout import Stream, prompt_numbers
from chatpipe.ppo.value_model import split_learning_rates


class PPOUpdate(Trainer):
    """The optimizer and its steps. Stands before the Trainer among the bases of PPOTrainer."""

    args: PPOConfig
    model: PolicyAndValueModel
    iteration: int = 0
    """The number of iterations whose experience was made."""
    update_ended: bool = False
    """Whether the rest of this iteration's minibatches is to be skipped."""
    skipped_steps: int = 0
    """Optimizer steps of this iteration that were skipped."""
    ptx_dataset: Any = None
    _update: UpdateStatistics

    def begin_update(self) -> None:
        """A new iteration's experience is there."""
        self.iteration += 1
        self.update_ended, self.skipped_steps = False, 0

    @property
    def trains_value_model_alone(self) -> bool:
        """Whether the iteration that was begun last belongs to the value model's warm-up."""
        return 0 < self.iteration <= self.args.value_model_warmup_iterations

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's, with the value model's own learning rate where it has one."""
        exists = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.args.value_model_learning_rate is not None and not exists:
            value_model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False).value_model
            split_learning_rates(optimizer, value_model, self.args.value_model_learning_rate)
        return optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward over one minibatch, micro-batch by micro-batch; returns its total loss.

        The gradient is that of sum / (completion tokens of the minibatch over all ranks). DDP averages over ranks, so
        each rank's loss is multiplied by their number; gradients are exchanged in the last micro-batch only.

        A step that must not change the weights leaves no gradient, which optimizers pass over: no decay, no moment.
        """
        model.train()
        minibatch: Experience | None = inputs["experience"]
        args, device = self.args, self.args.device
        if minibatch is None:
            self.skipped_steps += 1
            return torch.zeros((), device=device)
        all_tokens = self._sum_over_ranks(torch.tensor(minibatch.num_tokens)).item()
        readers = [self.model.policy, self.model.value_model]
        chunks = micro_batch_rows(readers, minibatch.sequences.lengths, args.per_device_train_batch_size)
        statistics: Statistics = {}
        mixes_text = self.ptx_dataset is not None and not self.trains_value_model_alone
        total, text_statistics = self._text_step(model) if mixes_text else (torch.zeros((), device=device), {})
        for number, rows in enumerate(chunks, start=1):
            part = minibatch.select(rows)
            last = number == len(chunks)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss, sums = self._loss(model, part)
                loss = loss * args.world_size / all_tokens
                self.accelerator.backward(loss)
            total = total + loss.detach()
            statistics = add_statistics(statistics, sums)
        statistics |= text_statistics
        self._update.add(statistics)
        if self._moved_too_far(statistics):
            self.update_ended = True
            self.skipped_steps += 1
            model.zero_grad(set_to_none=True)
        elif self.trains_value_model_alone:
            self.model.policy.zero_grad(set_to_none=True)
        return total

    def _loss(self, model: nn.Module, part: Experience) -> tuple[Tensor, Statistics]:
        """The summed loss of one micro-batch and its statistics."""
        args = self.args
        batch = pad(part.sequences).to(args.device)
        outputs = model(*batch)
        loss, statistics = ppo_loss(
            outputs.logprobs,
            outputs.values,
            part.to(args.device),
            args.cliprange,
            args.cliprange_value,
            args.vf_coef,
            policy_coef=0.0 if self.trains_value_model_alone else 1.0,
            kl_loss=args.kl_loss,  # type: ignore[arg-type]  # checked by PPOConfig
            kl_loss_coef=args.kl_loss_coef,
        )
        read = {"read": self.model.positions_read(batch), "read_tokens": batch.attention_mask.sum()}
        return loss, {**statistics, **read, "entropy": outputs.entropy.sum()}

    def _text_step(self, model: nn.Module) -> tuple[Tensor, Statistics]:
        """The gradient of ptx_coef * mean loss per token of this step's text, over all ranks; its loss and statistics.

        It goes straight to the policy, not through DDP: the exchange in the last micro-batch of PPO covers it too.
        """
        args = self.args
        size = args.ptx_batch_size // args.world_size
        place = self.state.global_step * size * args.world_size + args.process_index * size
        numbers = prompt_numbers(len(self.ptx_dataset), place, size, args.seed, Stream.PTX)
        rows = [row_of(self.ptx_dataset, number) for number in numbers]
        tokens = sum(len(row) - 1 for row in rows)
        all_tokens = self._sum_over_ranks(torch.tensor(tokens)).item()
        total = torch.zeros((), device=args.device)
        for start in range(0, size, args.per_device_train_batch_size):
            with self.accelerator.no_sync(model):
                with self.accelerator.autocast():
                    loss = text_loss(
                        self.model.policy, rows[start : start + args.per_device_train_batch_size], args.device
                    )
                self.accelerator.backward(args.ptx_coef * loss * args.world_size / all_tokens)
            total = total + loss.detach()
        statistics = {"ptx_loss": total.double(), "ptx_tokens": torch.tensor(tokens, device=args.device).double()}
        return args.ptx_coef * total * args.world_size / all_tokens, statistics

    def _moved_too_far(self, statistics: Statistics) -> bool:
        """Whether approxkl of this minibatch, over all ranks, is above the limit; all ranks find the same."""
        if self.args.target_kl is None:
            return False
        approxkl, tokens = self._sum_over_ranks(torch.stack([statistics["approxkl"], statistics["tokens"]])).tolist()
        return approxkl / tokens > self.args.target_kl

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums.to(self.args.device), reduction="sum").cpu()

    def _max_over_ranks(self, value: Tensor) -> Tensor:
        return self.accelerator.gather(value.to(self.args.device)).max()
