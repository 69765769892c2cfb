"""Training a reward model on rankings: a `transformers.Trainer` whose batch elements are prompts with K responses.

    trainer = RewardTrainer(model, args, encode_rankings(tokenizer, rankings, max_length).rankings)
    trainer.train()

The K responses of a prompt are read once each and compared in all C(K,2) pairs (InstructGPT, section 3.5): as separate
pairs each would be read K-1 times and the model overfits in one epoch. For the same reason what several annotators
said of the same responses is one element: its loss is the mean of theirs. The loss of an optimizer step is the mean
over its prompts that have a pair which is not tied (weighted, where rankings have weights), over all micro-batches and
processes: how a batch is spread changes nothing. (Where the last batch of an epoch does not fill all processes,
accelerate repeats prompts from its beginning.)
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from chatpipe.models.unpadded import Rows, flat_inputs, reads_unpadded
from chatpipe.reward.ranking_batches import EncodedRanking, RankingCollator
from chatpipe.reward.ranking_loss import comparable_pairs, pair_margins, ranking_loss
from chatpipe.reward.reward_model import at_last_token, head_scores, reads_left_to_right, score_head
from chatpipe.training.adapter import TrainsAdapter
from chatpipe.training.lora import Adapter
from chatpipe.training.nonfinite import SkipNonFinite


class RewardTrainer(TrainsAdapter, SkipNonFinite, Trainer):
    """Trains `model`, a sequence classification model with one label, on `train_dataset`.

    Batch sizes count prompts. With `adapter` only that is trained; `model` is then its model. Logs, over the
    pairs seen since the last log: `accuracy`, the share ordered rightly, and `margin`, the mean of r_better - r_worse.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Sequence[EncodedRanking],
        adapter: Adapter | None = None,
        **more: Any,
    ) -> None:
        collator = RankingCollator(model.config.get_text_config().pad_token_id)
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=collator, **more)
        self.adapter = adapter
        # Tried out once, here: what FSDP has sharded is not called in parts.
        reads_unpadded(_body(model))
        # Trainer then leaves it to us to divide by num_items_in_batch, and does not divide by the micro-batches.
        self.model_accepts_loss_kwargs = True
        self._forget_pairs()

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The micro-batches of the next step, and what its judgements that have a pair weigh, over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weight = torch.zeros((), device=device)
        for batch in batches:
            has_pair = comparable_pairs(batch["ranks"], batch["sizes"]).any((1, 2))
            weight += batch["weights"][has_pair].sum().to(device)
        return batches, self.accelerator.reduce(weight, reduction="sum")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's share of the step's mean; `num_items_in_batch` is what all of the step weighs."""
        scores = self._scores(model, inputs)[inputs["rows"]]
        ranks, sizes, weights = inputs["ranks"], inputs["sizes"], inputs["weights"]
        self._note_pairs(scores.detach(), ranks, sizes)
        losses = ranking_loss(scores, ranks, sizes, inputs["margins"]) * weights
        in_all = torch.where(num_items_in_batch > 0, num_items_in_batch, 1.0)
        # DDP averages gradients over processes; times their number that is the sum which the mean asks for.
        loss = losses.sum() * self.accelerator.num_processes / in_all
        return (loss, {"scores": scores}) if return_outputs else loss

    def _scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Scores of the sequences, (sum K,), of the model as DDP or FSDP wraps it; a decoder's without padding.

        These synchronise only what passes through their own forward, so that is called, and what its head reads is
        taken on the way: its pooled result looks for the pad token and may come in bfloat16.
        """
        plain = self.accelerator.unwrap_model(model)
        input_ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if not reads_left_to_right(plain):
            return self._head_scores(model, {"input_ids": input_ids, "attention_mask": mask})
        if not reads_unpadded(_body(plain)):
            read = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
            return at_last_token(self._head_scores(model, read), mask)
        # Rows of similar length attend together: the longest first, and the scores back in their places.
        order = mask.sum(1).argsort(descending=True, stable=True)
        positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        with flat_inputs(_body(plain), Rows(input_ids[order], mask[order], positions)) as flat:
            found = self._head_scores(model, flat)[0]
        return found[mask[order].sum(1).cumsum(0) - 1][order.argsort()]

    def _head_scores(self, model: nn.Module, read: dict[str, Any]) -> Tensor:
        """What the head says of all that reaches it when `model` is called with `read`."""
        found: list[Tensor] = []
        head = score_head(self.accelerator.unwrap_model(model))
        hook = head.register_forward_hook(lambda head, states, _: found.append(head_scores(head, states[0])))
        try:
            model(**read)
        finally:
            hook.remove()
        return found[0]

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
        """The pairs that no log has counted yet."""
        return {"seen": self._seen.tolist()}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Goes on counting from there."""
        self._seen = torch.tensor(extra["seen"], device=self.args.device)

    def _note_pairs(self, scores: Tensor, ranks: Tensor, sizes: Tensor) -> None:
        margins = pair_margins(scores, sizes)[comparable_pairs(ranks, sizes)]
        self._seen += torch.stack([torch.ones_like(margins), margins > 0, margins]).sum(1).float()

    def _forget_pairs(self) -> None:
        # pairs, those ordered rightly, sum of margins
        self._seen = torch.zeros(3, device=self.args.device)


def _body(model: PreTrainedModel) -> nn.Module:
    return getattr(model, model.base_model_prefix)
