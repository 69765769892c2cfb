"""Log-probs of completions under a causal model, and its hidden states at the positions that predict them."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from chatpipe.data.sequences import MicroBatch
from chatpipe.errors import UsageError
from chatpipe.models.properties import body_of, evaluation_mode, longest_sequence
from chatpipe.models.unpadded import MULTIPLE, Rows, flat_inputs, hidden_states_at, reads_unpadded

MAX_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Logits that are held at once, by type of device. Log-softmax and entropy need about four times their float32 memory:
0.5 GB on a CPU, 4 GB on a GPU."""


def completion_logprobs(
    policy: PreTrainedModel, batch: MicroBatch, temperature: float, excluded: Iterable[range] = ()
) -> Tensor:
    """Log-probs of the completion tokens under softmax(logits / temperature), [N], in nats, float32 or wider.

    The `excluded` ids are no part of the softmax, as where tokens are drawn (`SamplingParams`).
    """
    return _read(policy, batch, temperature, excluded, with_entropy=False)[0]


def logprobs_and_entropy(
    policy: PreTrainedModel, batch: MicroBatch, temperature: float, excluded: Iterable[range] = ()
) -> tuple[Tensor, Tensor]:
    """As `completion_logprobs`, and the entropy of each softmax, [N], in nats, without gradient."""
    return _read(policy, batch, temperature, excluded, with_entropy=True)


def completion_states(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """The last hidden states of a model's body at the cells that predict the completion tokens, [N, d]."""
    tokens = Rows(batch.input_ids, batch.attention_mask, batch.position_ids)
    return hidden_states_at(body_of(model), tokens, batch.rows, batch.columns)


def _read(
    policy: PreTrainedModel, batch: MicroBatch, temperature: float, excluded: Iterable[range], with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """The output head sees the N positions that predict a completion token and no other.

    Where their logits are more than `MAX_LOGITS` numbers, it sees them in parts, and the backward pass computes each
    part again.
    """
    hidden = completion_states(policy, batch)
    tokens = batch.input_ids[batch.rows, batch.columns + 1]
    head = output_head(policy)
    most = MAX_LOGITS.get(hidden.device.type, MAX_LOGITS["cuda"])
    at_once = max(1, most // policy.config.get_text_config().vocab_size)
    if len(tokens) <= at_once:
        return token_logprobs(head, hidden, tokens, temperature, excluded, with_entropy)
    options = {"use_reentrant": False, "preserve_rng_state": False}
    parts = [
        checkpoint(token_logprobs, head, *part, temperature, excluded, with_entropy, **options)
        for part in zip(hidden.split(at_once), tokens.split(at_once), strict=True)
    ]
    logprobs, entropy = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return logprobs, entropy


def token_logprobs(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    tokens: Tensor,
    temperature: float,
    excluded: Iterable[range],
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Log-probs of `tokens` [N] where the output head sees the states `hidden` [N, d], and entropy [N] (else [0])."""
    # A multiple of rows, for the reason given at MULTIPLE.
    logits = head(pad(hidden, (0, 0, 0, -len(hidden) % MULTIPLE)))[: len(hidden)]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    exclude(logits, excluded)
    logprobs = logits.log_softmax(-1)
    entropy = logprobs.new_empty(0)
    if with_entropy:
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, tokens[:, None])[:, 0], entropy


def exclude(logits: Tensor, ids: Iterable[range]) -> None:
    """Makes the `ids` impossible: writes the lowest number over their `logits` [n, vocabulary], in place."""
    for some in ids:
        logits[:, some.start : some.stop] = torch.finfo(logits.dtype).min  # not -inf: 0 * -inf is no entropy


def label_logits(
    plain: PreTrainedModel, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The logits [N, vocabulary] that predict the labels, and these labels [N]; those that are negative are none.

    input_ids, attention_mask (1 = token), labels: [b, t], padded on the right. `model` is what calls `plain`, such as
    DDP; it reads the rows without padding. Only for a `plain` that `gives_label_logits`.
    """
    longest_first = attention_mask.sum(1).argsort(descending=True, stable=True)
    ids, mask, labels = (cells[longest_first] for cells in (input_ids, attention_mask, labels))
    labels = torch.where(mask.bool(), labels, -1)
    rows, columns = (labels[:, 1:] >= 0).nonzero(as_tuple=True)
    lengths = mask.sum(1)
    places = (lengths.cumsum(0) - lengths)[rows] + columns
    filled = pad(places, (0, -len(places) % MULTIPLE))  # for the reason given at MULTIPLE
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    with flat_inputs(body_of(plain), Rows(ids, mask, positions)) as inputs:
        logits = model(**inputs, logits_to_keep=filled).logits[0, : len(places)]
    return logits, labels[rows, columns + 1]


def gives_label_logits(model: PreTrainedModel) -> bool:
    """Whether `label_logits` can read `model`: without padding, and with an output head that sees chosen tokens."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters and reads_unpadded(body_of(model))


# ---- from hidden states to logits ----

TRIED_TOKENS = 16
SCALE = re.compile("logits?_scal|(logits?|lm_head|output)_multiplier")
"""Settings that scale logits, by their names in the configurations of transformers."""

_changes: "WeakKeyDictionary[PreTrainedModel, LogitChange]" = WeakKeyDictionary()


class LogitChange(NamedTuple):
    """What a family does to the logits of its output head: it scales them, and caps them to +-cap by tanh."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The logits that the model samples from."""
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def output_head(policy: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The function from the policy's last hidden states [n, d] to the logits [n, vocabulary] that it samples from.

    It is the output head, and what the family does to its logits (Gemma 2 caps them; Cohere and Granite scale them),
    which is tried once. Raises UsageError where no known change gives the model's logits, or they are not finite.
    """
    if policy not in _changes:
        _changes[policy] = _tried_change(policy)
    head, change = policy.get_output_embeddings(), _changes[policy]
    return head if change == LogitChange() else lambda hidden: change(head(hidden))


@torch.no_grad()
def _tried_change(policy: PreTrainedModel) -> LogitChange:
    entries = policy.get_input_embeddings().num_embeddings
    length = min(TRIED_TOKENS, longest_sequence(policy))
    ids = (torch.arange(length, device=policy.device)[None] * 7 + 11) % entries
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with evaluation_mode(policy), torch.autocast(policy.device.type, enabled=False):
        logits = policy(**inputs).logits.float()
        own = policy.get_output_embeddings()(body_of(policy)(**inputs).last_hidden_state)
    if not logits.isfinite().all():
        raise UsageError(
            f"The output of {type(policy).__name__} is not finite (NaN or infinity).",
            "The weights of the policy or of the reference model are broken: give another folder.",
        )
    tolerance = (1e-3 if torch.finfo(policy.dtype).bits > 16 else 2e-2) * max(1.0, logits.abs().max().item())
    for change in _possible_changes(policy.config.get_text_config().to_dict()):
        if (change(own).float() - logits).abs().max() <= tolerance:
            return change
    raise UsageError(
        f"{type(policy).__name__} changes its logits after the output head in a way that PPO here does not know.",
        "Use a model that does not, such as GPT-2, Llama or Qwen3.",
    )


def _possible_changes(config: Mapping[str, Any]) -> list[LogitChange]:
    """The changes that the numbers in a configuration allow: small logits do not show a cap, so those with one first.

    `logit_scale` (Cohere) multiplies, `logits_scaling` (Granite) divides.
    """
    numbers = {name: float(value) for name, value in config.items() if type(value) in (int, float) and value}
    scales = [value for name, value in numbers.items() if SCALE.search(name)]
    caps = [value for name, value in numbers.items() if "cap" in name and "logit" in name and "att" not in name]
    factors = [factor for scale in scales for factor in (scale, 1 / scale)]
    return [LogitChange(factor, cap) for cap in (*caps, None) for factor in (*factors, 1.0)]
