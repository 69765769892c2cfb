"""The trainer of fine-tuning: trl's SFTTrainer with our resume points, evaluation and adapters."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from chatpipe.data.packing import PackCollator
from chatpipe.data.sequences import padding_id
from chatpipe.data.text_blocks import IGNORED
from chatpipe.errors import UsageError
from chatpipe.training.evaluations import EvaluateLast, KeepsBest, Measure
from chatpipe.training.lora import Adapter, TrainsAdapter
from chatpipe.training.machine import train_leanly
from chatpipe.training.run_trainer import CountsRowsOnce, SkipNonFinite

TRIED_LENGTHS = (7, 5)
LabelLogits = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class SftTrainer(TrainsAdapter, KeepsBest, SkipNonFinite, CountsRowsOnce, SFTTrainer):
    """Trains on sequences as `training_sequences` gives them.

    `packed`: each sequence holds several rows; raises `UsageError` for a model that would read across them. With
    `adapter` only that is trained; `model` is then its model. `measure` runs at each of Trainer's evaluations, on every
    process; with `keep_best` the weights with the lowest `eval_loss` are kept for `load_best`. `label_logits` is called
    with the model, ids, mask and labels of a batch, and gives the logits of the labels and these; without it, and for
    packed rows, trl computes the loss.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        packed: bool = False,
        adapter: Adapter | None = None,
        measure: Measure | None = None,
        keep_best: bool = False,
        label_logits: LabelLogits | None = None,
    ) -> None:
        if packed and not isolates_packed_rows(model):
            raise UsageError(
                f"{type(model).__name__} reads across conversations that are packed into one sequence.",
                "Set sft.packing to false.",
            )
        if not hasattr(model.config.get_text_config(), "num_experts"):
            args.router_aux_loss_coef = 0.0  # trl's loss of the router needs that number (GraniteMoeHybrid has no such)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=copy.deepcopy(processing_class),  # trl gives a tokenizer without pad token its EOS
            data_collator=PackCollator(padding_id(processing_class)) if packed else None,
            eval_dataset=[],  # `measure` measures; Trainer requires a data set where it is to evaluate
        )
        train_leanly(model)
        self.adapter, self.measure, self.keep_best = adapter, measure, keep_best
        self.label_logits = None if packed or self.aux_loss_enabled else label_logits
        if keep_best:
            self.add_callback(EvaluateLast())

    def leave_out(self, batch: dict[str, Tensor], first: int) -> None:
        """Nothing is learned from the sequences from number `first` on."""
        batch["labels"][first:] = IGNORED

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the tokens to learn: this micro-batch's share of the mean over `num_items_in_batch` of them.

        trl's own computes the output head at every token, padding included, and on a CPU its gradient in float32.
        """
        if self.label_logits is None or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        logits, tokens = self.label_logits(model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = functional.cross_entropy(logits, tokens, reduction="sum")
        self._note(logits.detach(), tokens)
        # Trainer counts the tokens of all ranks, and DDP averages gradients over these.
        in_all = torch.as_tensor(len(tokens) if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        return loss * (1 if num_items_in_batch is None else self.accelerator.num_processes) / in_all

    def _note(self, logits: Tensor, tokens: Tensor) -> None:
        """What trl logs: the mean entropy, and the share of tokens that are the likeliest, over all ranks."""
        entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
        sums = torch.stack([entropy.sum(), (logits.argmax(-1) == tokens).sum().to(entropy)])
        count = torch.full((1,), len(tokens), dtype=sums.dtype, device=sums.device)
        *means, counted = self.accelerator.reduce(torch.cat([sums, count]), reduction="sum").tolist()
        for name, value in zip(("entropy", "mean_token_accuracy"), means, strict=True):
            self._metrics["train"][name].append(value / max(counted, 1))

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Removes trl's count of tokens, which takes a packed batch for one row; Trainer's own is right."""
        self._metrics["train"].pop("num_tokens", None)
        super().log(logs, start_time)

    def extra_state(self) -> dict[str, Any]:
        """Adds the metrics that no log has averaged yet."""
        return {**super().extra_state(), "metrics": self._metrics["train"]}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Puts them back."""
        super().load_extra_state(extra)
        self._metrics["train"].update(extra["metrics"])


@torch.no_grad()
def isolates_packed_rows(model: PreTrainedModel) -> bool:
    """Whether two rows packed into one sequence have the logits that each has alone, to 1e-3.

    The model is run, because models without position ids, or with a recurrent state, attend across rows with no error.
    """
    entries = model.get_input_embeddings().num_embeddings
    rows = [(torch.arange(length) * 7 + 3 + length) % entries for length in TRIED_LENGTHS]
    # two sequences, since some kinds of attention look for packed rows only in a batch of one
    pack = {"input_ids": torch.cat(rows), "labels": torch.cat(rows), "seq_lengths": list(TRIED_LENGTHS)}
    batch = {name: cells.to(model.device) for name, cells in PackCollator(0)([pack, pack]).items() if name != "labels"}
    was_training = model.training
    model.eval()
    packed = model(**batch, use_cache=False).logits[1].float()
    alone = [model(input_ids=row[None].to(model.device), use_cache=False).logits[0].float() for row in rows]
    model.train(was_training)
    return torch.allclose(packed, torch.cat(alone), rtol=1e-3, atol=1e-3)
