"""How well a causal model predicts held-out text and held-out answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from chatpipe.data.padding import length_sorted, pad_right
from chatpipe.data.text_blocks import ValidationText, isolating
from chatpipe.errors import UsageError
from chatpipe.evaluation.intervals import bootstrap_interval
from chatpipe.models.context import longest_sequence
from chatpipe.models.layers import evaluation_mode

EncodedConversation = tuple[list[int], list[int]]
"""Token ids of a conversation, and a mask of the same length: 1 on what the assistant says."""


@dataclass(frozen=True)
class LanguageScore:
    """Mean loss of a held-out text: in nats per token, and in bits per UTF-8 byte, which tokenizers do not change.

    Tokens that stand for no text (end of text) are among the former, and not among the latter.
    """

    nats_per_token: float
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinite where that is too large for a float."""
        return math.exp(self.nats_per_token) if not self.nats_per_token > 700 else math.inf


@dataclass(frozen=True)
class QuestionGain:
    """By how many nats per token answers are likelier under their own question than under another one."""

    gain: float
    low: float
    high: float


def held_out_loss(
    model: PreTrainedModel, held_out: ValidationText, batch_size: int, special_ids: Sequence[int] = ()
) -> LanguageScore:
    """The model's loss on all tokens of `held_out`, in blocks of its block size and `batch_size` blocks at a time.

    Each token is predicted once, end-of-text tokens included; a token sees only those before it in its block, as in
    training. Bits per byte = nats of tokens not in `special_ids` / ln 2 / bytes of the text.
    """
    tokens = held_out.tokens
    # The first token is predicted from what ends a document, with which the text ends.
    inputs = torch.from_numpy(np.concatenate([tokens[-1:], tokens[:-1]]))
    targets = torch.from_numpy(tokens)
    size = held_out.block_size
    whole = len(tokens) // size * size
    batches = [
        *zip(_blocks(inputs[:whole], size, batch_size), _blocks(targets[:whole], size, batch_size), strict=True),
        (inputs[None, whole:], targets[None, whole:]),
    ]
    special = torch.tensor(list(special_ids), dtype=torch.long, device=model.device)
    nats, nats_of_text = 0.0, 0.0
    with evaluation_mode(model), torch.no_grad():
        for block, target in batches:
            if block.numel():
                block = block.to(model.device)
                told = {"use_cache": False, **isolating(block, held_out.isolate_at)}
                logits = model(input_ids=block, **told).logits.float()
                predicted = target.flatten().to(model.device)
                losses = F.cross_entropy(logits.flatten(0, 1), predicted, reduction="none").double()
                nats += losses.sum().item()
                nats_of_text += losses[~torch.isin(predicted, special)].sum().item()
    return LanguageScore(nats / len(tokens), nats_of_text / math.log(2) / held_out.num_bytes)


def conversation_loss(
    model: PreTrainedModel, rows: Sequence[EncodedConversation], pad_token_id: int, batch_size: int
) -> float:
    """Mean nats per assistant token (where the mask is 1) over all `rows`. Raises ValueError when there is none."""
    nats, counts = _answer_nats(model, rows, pad_token_id, batch_size)
    if counts.sum() == 0:
        raise ValueError("no row has a token of the assistant")
    return float(nats.sum() / counts.sum())


def question_gain(
    model: PreTrainedModel, rows: Sequence[EncodedConversation], pad_token_id: int, batch_size: int, seed: int = 0
) -> QuestionGain:
    """How much likelier the last answers are under their own questions than exchanged: 0 for a model that ignores them.

    The mean over conversations of (nats per token under another question - under the own one), with the 95 % interval
    of resampled conversations. Pairs that are longer than the model can read are left out. Raises `UsageError` when
    fewer than two conversations are left.
    """
    limit = longest_sequence(model, decodes=True)
    swapped = swap_answers(rows)
    kept = [i for i, (ids, _) in enumerate(swapped) if len(ids) <= limit]
    if len(kept) < 2:
        raise UsageError(
            f"{len(kept)} held-out conversations can have their answers exchanged; two are needed.",
            "Give more, or shorter, conversations in sft.data.",
        )
    own, exchanged = (
        np.divide(*_answer_nats(model, [_only_last_answer(some[i]) for i in kept], pad_token_id, batch_size))
        for some in (rows, swapped)
    )
    low, high = bootstrap_interval(exchanged - own, range(len(kept)), seed)
    return QuestionGain(float((exchanged - own).mean()), low, high)


def swap_answers(rows: Sequence[EncodedConversation]) -> list[EncodedConversation]:
    """The last answer of each row behind the question (and all before it) of the row half the list away."""
    starts = [_last_answer(mask) for _, mask in rows]
    others = [(i + len(rows) // 2) % len(rows) for i in range(len(rows))]
    return [
        (rows[j][0][: starts[j]] + ids[starts[i] :], rows[j][1][: starts[j]] + mask[starts[i] :])
        for i, (j, (ids, mask)) in enumerate(zip(others, rows, strict=True))
    ]


def _blocks(tokens: Tensor, block_size: int, batch_size: int) -> tuple[Tensor, ...]:
    """`tokens` as batches of [batch_size, block_size]; their number must be a multiple of the block size."""
    return tokens.view(-1, block_size).split(batch_size)


def _last_answer(mask: list[int]) -> int:
    """Where the last run of ones in `mask` begins."""
    end = len(mask) - mask[::-1].index(1)
    return end - ([0] + mask[:end])[::-1].index(0)


def _only_last_answer(row: EncodedConversation) -> EncodedConversation:
    ids, mask = row
    start = _last_answer(mask)
    return ids, [0] * start + mask[start:]


def _answer_nats(
    model: PreTrainedModel, rows: Sequence[EncodedConversation], pad_token_id: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each row the nats of its masked tokens, and how many these are: two float arrays [rows]."""
    nats, counts = np.zeros(len(rows)), np.zeros(len(rows))
    with evaluation_mode(model), torch.no_grad():
        for micro_batch in length_sorted(torch.tensor([len(ids) for ids, _ in rows]), batch_size):
            chosen = micro_batch.tolist()
            losses, predicted = _masked_losses(model, [rows[i] for i in chosen], pad_token_id)
            nats[chosen] = losses.sum(1).double().cpu().numpy()
            counts[chosen] = predicted.sum(1).cpu().numpy()
    return nats, counts


def _masked_losses(
    model: PreTrainedModel, rows: Sequence[EncodedConversation], pad_token_id: int
) -> tuple[Tensor, Tensor]:
    """The nats of each token after the first, 0 where the mask is 0, and that mask: both [rows, longest - 1]."""
    ids, attention = (tensor.to(model.device) for tensor in pad_right([ids for ids, _ in rows], pad_token_id))
    masks, _ = pad_right([mask for _, mask in rows], 0)
    predicted = masks[:, 1:].bool().to(model.device)
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1][predicted]
    losses = torch.zeros(predicted.shape, device=model.device)
    losses[predicted] = F.cross_entropy(logits.float(), ids[:, 1:][predicted], reduction="none")
    return losses, predicted
