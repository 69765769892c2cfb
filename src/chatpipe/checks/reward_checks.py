"""Checks of reward models: is the score read at the end of the answer, and is it better than chance?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatpipe.checks.gate import Finding
from chatpipe.data.sequences import pad_right
from chatpipe.models.manifest import read_manifest
from chatpipe.models.pretrained import missing_weights
from chatpipe.models.properties import evaluation_mode
from chatpipe.reward.reward_model import batch_scores, pad_token_id, reads_left_to_right, reward_offset, score_sequences

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.01}
"""How far scores of size 1 may differ by rounding, by the dtype of the model; larger ones in proportion."""


def batch_changes_score(
    models: Mapping[str, PreTrainedModel], rows: Sequence[Sequence[int]], pad: int
) -> Finding | None:
    """A padded batch gets other scores than its rows one by one: padding is read (trl #937; transformers #35352).

    `rows`: token ids of a few answered prompts of different lengths.
    """
    for key, model in models.items():
        together = _of_padded_batch(model, rows, pad, batch_scores)
        difference = _largest_difference(together, score_sequences(model, rows, tokens_at_once=1))
        if difference > TOLERANCE[model.dtype]:
            return Finding(
                f"{key}: scores of {len(rows)} rows differ by {difference:.1g} between a padded batch and one by one.",
                "Its model code reads padding, or its numbers are too coarse: use another model, or float32.",
            )
    return None


def score_not_on_eos(
    models: Mapping[str, PreTrainedModel], rows: Sequence[Sequence[int]], pad: int, eos_token_id: int
) -> Finding | None:
    """The score is not read at the end of the answer: at a pad, or before (trl #3750, #937).

    First: do rows end with EOS? Then, of decoders, whether transformers itself, which looks for the pad token, reads a
    batch that is padded with `pad` where we do. `rows`: token ids of a few answered prompts of different lengths.
    """
    if any(ids[-1] != eos_token_id for ids in rows):
        return Finding(
            f"answered prompts do not end with the end-of-turn token (id {eos_token_id}), where the score is read.",
            "Use a chat template that ends answers with eos_token, and writes nothing behind it.",
        )
    for key, model in models.items():
        if not reads_left_to_right(model) or pad_token_id(model) is None:
            continue
        stock = _of_padded_batch(model, rows, pad, _stock_scores)
        difference = _largest_difference(stock, score_sequences(model, rows, tokens_at_once=1))
        if difference > TOLERANCE[model.dtype]:
            return Finding(
                f"{key}: transformers reads the score of {_named(model)} at another token than the EOS "
                f"(off by {difference:.1g}).",
                f"Set pad_token_id in its config.json to {pad}, the tokenizer's pad token.",
            )
    return None


def new_score_head(models: Mapping[str, PreTrainedModel]) -> Finding | None:
    """A reward model's folder has no weights for its head: they are drawn at random, and rewards are noise.

    LLaMA-Factory #4379, #4743 (a value head that only it reads). Looks at names, loads no weights.
    """
    for key, model in models.items():
        missing = missing_weights(type(model), model.name_or_path)
        if missing:
            return Finding(
                f"{key}: {_named(model)} has no weights for {missing[0]}, so they were drawn at random.",
                "Give what `chatpipe rm` wrote, or another trained reward model.",
            )
    return None


def reward_at_chance(models: Mapping[str, PreTrainedModel]) -> Finding | None:
    """A reward model that chatpipe made is no better than chance on validation pairs, by its own evaluation.

    trl #2015: "I now do not know whether my reward model is bad". The lower end of the accuracy's 95 % interval counts;
    a model without chatpipe.json passes. A metric that was not finite is null in chatpipe.json.
    """
    for key, model in models.items():
        manifest = read_manifest(Path(model.name_or_path))
        measured = manifest.metrics if manifest is not None and manifest.stage == "rm" else {}
        low = measured.get("accuracy_low", 1.0)
        if low is None:
            return Finding(
                f"{key}: {_named(model)} gave scores on validation pairs that are not finite.",
                "Its weights are broken: train it again, with a lower rm.learning_rate.",
            )
        if low <= 0.5:
            return Finding(
                f"{key}: {_named(model)} is no better than chance: {measured['eval_accuracy']:.0%} of "
                f"{measured['eval_pairs']} validation pairs right (at least {low:.0%}).",
                "Train it on more or better rankings first (rm.data, sample.prompts).",
            )
    return None


@torch.no_grad()  # not inference_mode: what a model keeps of it could not be trained with
def _of_padded_batch(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    pad: int,
    read: Callable[[PreTrainedModel, Tensor, Tensor], Tensor],
) -> Tensor:
    """The scores that `read` gives for all rows in one batch, padded to the longest, (n,); keeps the model's mode."""
    input_ids, mask = (tensor.to(model.device) for tensor in pad_right(rows, pad))
    with evaluation_mode(model):
        return read(model, input_ids, mask).float().cpu()


def _stock_scores(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What transformers' own forward gives, centred, (n,)."""
    logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
    return logits[:, 0].float() - reward_offset(model)


def _largest_difference(some: Tensor, others: Tensor) -> float:
    return ((some - others).abs() / others.abs().clamp(min=1)).max().item()


def _named(model: PreTrainedModel) -> str:
    return model.name_or_path or type(model).__name__
