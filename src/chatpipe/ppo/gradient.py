"""The gradient of one optimizer step of PPO: a minibatch in micro-batches, and text that is mixed in (PTX)."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from chatpipe.data.sequences import pad
from chatpipe.models.properties import body_of
from chatpipe.models.unpadded import positions_read
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import PTX, Experience, row_numbers
from chatpipe.ppo.loop import OwnLoop
from chatpipe.ppo.maths import Statistics, ppo_loss
from chatpipe.ppo.metrics import UpdateStatistics, add_statistics
from chatpipe.ppo.model import PolicyAndValueModel, micro_batch_rows, split_learning_rates, text_loss, text_row


class PPOGradients(OwnLoop):
    """The part of PPOTrainer that turns a minibatch into a gradient."""

    args: PPOConfig
    model: PolicyAndValueModel
    iteration: int = 0
    """The number of iterations that are finished."""
    update: UpdateStatistics
    """Of this iteration."""
    ptx_dataset: Any = None

    @property
    def trains_value_model_alone(self) -> bool:
        """Whether this iteration belongs to the warm-up of the value model."""
        return self.iteration < self.args.value_model_warmup_iterations

    def backward(self, minibatch: Experience) -> tuple[Tensor, Statistics]:
        """Adds the gradient of a minibatch, micro-batch by micro-batch; returns its loss and its statistics.

        The gradient is that of sum / (completion tokens of the minibatch over all ranks). DDP averages over ranks, so
        each rank's loss is multiplied by their number; gradients are exchanged in the last micro-batch only.
        """
        args, model = self.args, self.model_wrapped
        model.train()
        tokens = self.sum_over_ranks(torch.full((), minibatch.num_tokens, device=args.device))
        readers, lengths = [self.model.policy, self.model.value_model], minibatch.sequences.lengths
        chunks = micro_batch_rows(readers, lengths, args.per_device_train_batch_size)
        mixes_text = self.ptx_dataset is not None and not self.trains_value_model_alone
        total, of_text = self._text_backward() if mixes_text else (torch.zeros((), device=args.device), {})
        statistics: Statistics = {}
        for number, rows in enumerate(chunks, start=1):
            with nullcontext() if number == len(chunks) else self.accelerator.no_sync(model):
                loss, sums = self._micro_batch_loss(minibatch.select(rows))
                loss = loss * args.world_size / tokens
                self.accelerator.backward(loss)
            self.control = self.callback_handler.on_substep_end(args, self.state, self.control)
            total = total + loss.detach()
            statistics = add_statistics(statistics, sums)
        return total, statistics | of_text

    def _micro_batch_loss(self, part: Experience) -> tuple[Tensor, Statistics]:
        """The summed loss of one micro-batch and its statistics."""
        args, batch = self.args, pad(part.sequences)
        self.update.tokens_read += len(part.sequences.ids)
        self.update.positions_read += positions_read(body_of(self.model.policy), batch.attention_mask)
        outputs = self.model_wrapped(*batch.to(args.device))
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
        return loss, {**statistics, "entropy": outputs.entropy.sum()}

    def _text_backward(self) -> tuple[Tensor, Statistics]:
        """Adds the gradient of ptx_coef * mean loss per token of this step's text, over all ranks.

        It goes straight to the policy, not through DDP: the exchange in the last micro-batch of PPO covers it too.
        InstructGPT (arXiv 2203.02155, eq. 2) adds gamma * E_{x ~ pretraining}[log pi(x)] to what PPO maximises.
        """
        args, at_once = self.args, self.args.per_device_train_batch_size
        size = args.ptx_batch_size // args.world_size
        place = self.state.global_step * args.ptx_batch_size + args.process_index * size
        numbers = row_numbers(len(self.ptx_dataset), place, size, args.seed, PTX)
        rows = [text_row(self.ptx_dataset, number) for number in numbers]
        tokens = torch.full((), sum(len(row) - 1 for row in rows), device=args.device)
        all_tokens = self.sum_over_ranks(tokens)
        total = torch.zeros((), device=args.device)
        for start in range(0, size, at_once):
            with self.accelerator.no_sync(self.model_wrapped):
                with self.accelerator.autocast():
                    loss = text_loss(self.model.policy, rows[start : start + at_once], args.device)
                self.accelerator.backward(args.ptx_coef * loss * args.world_size / all_tokens)
            total = total + loss.detach()
        loss = args.ptx_coef * total * args.world_size / all_tokens
        return loss, {"ptx_loss": total.double(), "ptx_tokens": tokens.double()}

    def moved_too_far(self, statistics: Statistics) -> bool:
        """Whether approxkl of this minibatch, over all ranks, is above `target_kl`; all ranks find the same."""
        if self.args.target_kl is None:
            return False
        approxkl, tokens = self.sum_over_ranks(torch.stack([statistics["approxkl"], statistics["tokens"]])).tolist()
        return approxkl / tokens > self.args.target_kl

    def clip_gradients(self) -> Tensor:
        """Limits the norms of the policy's and of the value model's gradient to `max_grad_norm`, each for itself.

        Together the one with the larger gradient, at the start the policy, would take the other's down with it. Returns
        the norm of both together before that.
        """
        trained = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.accelerator.unscale_gradients()  # of fp16; once, before both
        most = self.args.max_grad_norm or math.inf
        parts = [
            nn.utils.clip_grad_norm_(module.parameters(), most) for module in (trained.policy, trained.value_model)
        ]
        return torch.stack([norm.to(self.args.device) for norm in parts]).norm()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, in which the value model may have a learning rate of its own."""
        exists = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.args.value_model_learning_rate is not None and not exists:
            trained = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            split_learning_rates(optimizer, trained.value_model, self.args.value_model_learning_rate)
        return optimizer
