"""The trainer of pretraining: transformers' Trainer over the token store, with Muon, masking and our evaluation."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments

from chatpipe.data.text_blocks import IGNORED, Masking, masked_loss
from chatpipe.errors import UsageError
from chatpipe.training.evaluations import Measure, Measured
from chatpipe.training.run_trainer import SkipNonFinite


class PretrainTrainer(Measured, SkipNonFinite, Trainer):
    """Causal or masked language modelling; each predicted token of a step weighs the same, however it is split up.

    `masking` makes the objective a masked one. `measure` runs at each of Trainer's evaluations, on every process.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Any,
        muon: bool = False,
        masking: Masking | None = None,
        measure: Measure | None = None,
        **more: Any,
    ) -> None:
        if masking is not None:
            more["compute_loss_func"] = masked_loss
        super().__init__(model=model, args=args, train_dataset=train_dataset, **more)
        self.muon, self.masking, self.measure = muon, masking, measure

    def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler[int]:
        # Item s of the data set is sample s of the run. Processes only share them; a resumed run starts at a later s.
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with decay on matrices only; with `muon`, Muon in its place on the matrices inside the model."""
        if not self.muon or self.optimizer is not None:
            return super().create_optimizer(model)
        if self.is_fsdp_enabled:
            raise UsageError("pretrain.optimizer = muon needs whole matrices, which FSDP cuts up.", "Use adamw or DDP.")
        trained = self.accelerator.unwrap_model(model or self.model, keep_torch_compile=False)
        matrices = hidden_matrices(trained)
        decayed = set(self.get_decay_parameter_names(trained))
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad and name not in matrices:
                groups[name in decayed].append(parameter)
        args = self.args
        self.optimizer = MuonAdamW(
            matrices.values(),
            [{"params": groups[decay], "weight_decay": args.weight_decay if decay else 0.0} for decay in (True, False)],
            lr=args.learning_rate,
            weight_decay=args.weight_decay,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            fused=True,
        )
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Any]:
        """The micro-batches of the next optimizer step, and how many tokens they predict over all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        if self.masking is not None:
            batches = [self._masked(self.masking, batch, micro) for micro, batch in enumerate(batches)]
        # Counted here: of a GPT-2, transformers counts the first label too, which no position predicts.
        predicted = [batch["labels"] if self.masking else batch["labels"][:, 1:] for batch in batches]
        # The sum stays on the device: reading it here would wait for the GPU.
        items = torch.stack([(labels != IGNORED).sum() for labels in predicted]).sum().to(device)
        return batches, self.accelerator.reduce(items, reduction="sum")

    def _masked(self, masking: Masking, batch: dict[str, Tensor], micro: int) -> dict[str, Tensor]:
        # A function of the step, not of a generator that has read ahead: resumed runs hide the same tokens.
        args = self.args
        position = (self.state.global_step * args.gradient_accumulation_steps + micro) * args.world_size
        seed = (args.seed << 40) + position + args.process_index
        inputs, labels = masking(batch["input_ids"], seed % 2**63)
        return {**batch, "input_ids": inputs, "labels": labels}

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds `perplexity` to the training loss."""
        if "loss" in logs:
            loss = logs["loss"]
            logs = {**logs, "perplexity": math.exp(loss) if loss < 700 else math.inf}
        super().log(logs, start_time)


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer over both kinds of parameter groups; those of Muon have `muon: True`.

    Groups and state are ordinary ones: schedules and resume points treat them like any optimizer's.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        **adamw: Any,
    ) -> None:
        """`matrices` go to Muon, the groups `others` to AdamW, whose further arguments are `adamw`."""
        self._muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW([group for group in others if group["params"]], lr=lr, **adamw)
        groups = [{**group, "muon": True} for group in self._muon.param_groups]
        super().__init__([*groups, *({**group, "muon": False} for group in self._adamw.param_groups)], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step over all parameters that have a gradient."""
        # State and groups belong to this optimizer: a schedule or a resume point may have replaced them.
        for optimizer, muon in ((self._muon, True), (self._adamw, False)):
            optimizer.state = self.state
            optimizer.param_groups = [group for group in self.param_groups if group["muon"] == muon]
            optimizer.step()


def hidden_matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that are Muon's: two-dimensional, and in no embedding nor in the output head."""
    outside = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if model.get_output_embeddings() is not None:
        outside.append(model.get_output_embeddings())
    left_out = {parameter for module in outside for parameter in module.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and parameter.requires_grad and parameter not in left_out
    }
