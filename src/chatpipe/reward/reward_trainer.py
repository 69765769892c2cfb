"""Training a reward model on rankings: a `transformers.Trainer` whose batch elements are prompts with K responses.

    trainer = RewardTrainer(model, args, encode_rankings(tokenizer, rankings, max_length).rankings)
    trainer.train()

The model reads each of the K responses of a prompt once, and the loss compares them in all C(K,2) pairs (InstructGPT,
section 3.5): as separate pairs each response would be read K-1 times, and the model overfits in one epoch. For the same
reason the rankings of the same responses by several annotators are one element, whose loss is the mean of theirs. The
loss of an optimizer step is the mean over its prompts that have a pair which is not tied (weighted, where rankings have
weights), over all micro-batches and processes: it does not depend on how a batch is split.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, TrainingArguments

from chatpipe.models.properties import body_of
from chatpipe.models.unpadded import reads_unpadded
from chatpipe.reward.reward_model import ScoringModel
from chatpipe.reward.training_data import EncodedRanking, RankingCollator
from chatpipe.training.lora import Adapter, TrainsAdapter
from chatpipe.training.machine import train_leanly
from chatpipe.training.run_trainer import CountsRowsOnce, SkipNonFinite


class RewardTrainer(TrainsAdapter, SkipNonFinite, CountsRowsOnce):
    """Trains `model`, a sequence classification model with one label, on `train_dataset`.

    Batch sizes count prompts. With `adapter` only the adapter is trained; `model` is then its model. Logs, over the
    pairs since the last log: `accuracy`, the share ordered correctly, and `margin`, the mean of r_better - r_worse.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Sequence[EncodedRanking],
        adapter: Adapter | None = None,
        **more: Any,
    ) -> None:
        scoring, collator = ScoringModel(model), RankingCollator()
        super().__init__(model=scoring, args=args, train_dataset=train_dataset, data_collator=collator, **more)
        self.adapter = adapter
        train_leanly(model)
        # Tried out once, before FSDP shards the model: afterwards its body cannot be called alone.
        reads_unpadded(body_of(model))
        # Trainer then leaves it to us to divide by num_items_in_batch, and does not divide by the micro-batches.
        self.model_accepts_loss_kwargs = True
        self._forget_pairs()

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The micro-batches of the next step, and over all ranks the total weight of its judgements with a pair."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weight = torch.zeros((), device=device)
        for batch in batches:
            has_pair = comparable_pairs(batch["ranks"]).any((1, 2))
            weight += (batch["weights"] * has_pair).sum().to(device)
        return batches, self.accelerator.reduce(weight, reduction="sum")

    def leave_out(self, batch: dict[str, Tensor], first: int) -> None:
        """Rankings from number `first` on prefer nothing."""
        batch["ranks"][batch["rankings"] >= first] = 0

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's share of the step's mean; `num_items_in_batch` is the weight of the whole step."""
        scores = model(inputs["input_ids"], inputs["attention_mask"])[inputs["rows"]]
        self._note_pairs(scores.detach(), inputs["ranks"])
        losses = ranking_loss(scores, inputs["ranks"], inputs["margins"]) * inputs["weights"]
        in_all = torch.where(num_items_in_batch > 0, num_items_in_batch, 1.0)
        # DDP averages gradients over processes; the step's mean takes their sum.
        loss = losses.sum() * self.accelerator.num_processes / in_all
        return (loss, {"scores": scores}) if return_outputs else loss

    # ---- the model inside `ScoringModel` ----

    def modules_to_save(self) -> dict[str, nn.Module]:
        """The reward model, or with an adapter what is trained alone."""
        return {"model": self._plain()} if self.adapter is None else super().modules_to_save()

    def trained_model(self) -> PreTrainedModel:
        """The reward model as a plain one, an adapter in its weights."""
        return self._plain() if self.adapter is None else super().trained_model()

    def _plain(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False).model

    # ---- what is logged ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `accuracy` and `margin` over all processes to the training logs."""
        if "loss" in logs:
            pairs, right, margin = self.accelerator.reduce(self._seen, reduction="sum").tolist()
            if pairs:
                logs = {**logs, "accuracy": right / pairs, "margin": margin / pairs}
        self._forget_pairs()
        super().log(logs, start_time)

    def extra_state(self) -> dict[str, Any]:
        """The counts of pairs since the last log."""
        return {"seen": self._seen.tolist()}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Restores the counts."""
        self._seen = torch.tensor(extra["seen"], device=self.args.device)

    def _note_pairs(self, scores: Tensor, ranks: Tensor) -> None:
        # Masked, not selected: the size of a selection has to be read back from a GPU.
        pairs = comparable_pairs(ranks)
        margins = torch.where(pairs, pair_margins(scores), 0.0)
        self._seen += torch.stack([pairs.sum(), (margins > 0).sum(), margins.sum()]).float()

    def _forget_pairs(self) -> None:
        # pairs, pairs ordered correctly, sum of margins
        self._seen = torch.zeros(3, device=self.args.device)


# ---- the K-wise loss, as pure functions ----
#
# `scores` and `ranks` are (prompts, max K): a row for each prompt, a column for each response. Rank 1 is best, equal
# ranks are ties, and where a prompt has fewer responses than another its rank is 0.


def ranking_loss(scores: Tensor, ranks: Tensor, margins: Tensor | None = None) -> Tensor:
    """For each prompt the mean of -log sigmoid(r_better - r_worse - margin) over its pairs not tied, (prompts,).

    InstructGPT (arXiv 2203.02155) equation 1; tied pairs are dropped as in its appendix C.2. A prompt whose responses
    are all tied gives 0 with a gradient of 0. `margins` (prompts,) are 0 there; with others it is the loss of Llama 2
    (arXiv 2307.09288, equation 2).
    """
    pairs = comparable_pairs(ranks)
    ahead = pair_margins(scores)
    if margins is not None:
        ahead = ahead - margins[:, None, None]
    losses = torch.where(pairs, -functional.logsigmoid(ahead), 0.0)
    return losses.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def comparable_pairs(ranks: Tensor) -> Tensor:
    """Where [p, i, j] are two responses of prompt p of which i is ranked better: bool (prompts, max K, max K)."""
    better, worse = ranks[:, :, None], ranks[:, None, :]
    return (better > 0) & (better < worse)


def pair_margins(scores: Tensor) -> Tensor:
    """score of response i - score of response j at [p, i, j]: (prompts, max K, max K)."""
    return scores[:, :, None] - scores[:, None, :]
