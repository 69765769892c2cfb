"""The reward model, any `AutoModelForSequenceClassification` with one label: a new one, its parts, and its scores.

    scores = score_sequences(model, [[5, 6, 1], [5, 7, 8, 1]])     # [2] on the CPU

A causal body has a head called `score`, which gives a number at each token; an encoder reads both ways and gives the
whole sequence one score. `config.chatpipe_reward_offset` is subtracted from scores to centre them, since `score` has no
bias; stock software ignores it and sees the same order.

`batch_scores` is the forward pass, which training differentiates; whatever only reads scores calls `score_sequences`.
A decoder's score is read at the last token, found by the length of the sequence. transformers looks for the pad token
instead; where that is also the model's EOS, as in SmolLM2, it reads the token before the end (transformers #35352), and
so do we: transformers and TRL give a folder the scores that we give it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from chatpipe import console
from chatpipe.data.sequences import PADDING_ID, equal_tokens, length_sorted, pad_right
from chatpipe.errors import TrainingError
from chatpipe.models.model_folder import kind_of_architectures
from chatpipe.models.pretrained import check_whole_model, give_score_class, load_config, load_model, prepare_model
from chatpipe.models.properties import body_of, evaluation_mode
from chatpipe.models.unpadded import Rows, hidden_states_at, reads_unpadded


def new_reward_model(body_folder: str, pad_token_id: int, seed: int) -> PreTrainedModel:
    """A reward model in float32 with the body of the causal or masked model in `body_folder` and a new score head.

    A reward model in `body_folder` keeps its head and its offset. A new head is N(0, 1/sqrt(d+1)), d the hidden size,
    so that first scores are of size 1 (lm-human-preferences, "The N Implementation Details of RLHF"; transformers would
    take 0.02). Dropout is off, in the configuration too: two readings of one answer must agree.
    """
    config = load_config(body_folder, num_labels=1)
    if not give_score_class(config):
        console.note(f"transformers has no reward models of type {config.model_type}: this one opens in chatpipe alone")
    _turn_off_dropout(config)
    kind = kind_of_architectures(config.architectures, body_folder)
    if kind == "causal":
        check_whole_model(body_folder)
    has_head = kind == "reward"
    model = load_model(AutoModelForSequenceClassification, body_folder, torch.float32, config, new_head=not has_head)
    if reads_left_to_right(model) or model.config.pad_token_id is None:  # positions of encoders depend on their own
        # Only now: the embedding refuses a pad token that has no row yet, and would train no row of EOS.
        model.config.get_text_config().pad_token_id = pad_token_id
    if not has_head:
        _draw_head(score_head(model), seed)
    return prepare_model(model)


@torch.no_grad()
def _draw_head(head: nn.Linear, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * (head.in_features + 1) ** -0.5)
    if head.bias is not None:
        head.bias.zero_()


def reads_left_to_right(model: PreTrainedModel) -> bool:
    """Whether a sequence classification model is a decoder, whose `score` head gives a number at each position.

    One that reads both ways (BERT) would see the completion before it is written: it can be no value model.
    """
    return hasattr(model, "score")


def pad_token_id(model: PreTrainedModel) -> int | None:
    """The token by which stock software finds the end of a padded text, where it reads the score; None if not set."""
    token: int | None = model.config.get_text_config().pad_token_id
    return token


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The layer that gives the score: `score` of a decoder, the last linear layer behind the body of an encoder."""
    if reads_left_to_right(model):
        return model.score
    return [module for module in outside_body(model).values() if isinstance(module, nn.Linear)][-1]


def outside_body(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of a reward model outside its body, by name: its head, and what an encoder puts before it."""
    body = model.base_model_prefix
    return {name: module for name, module in model.named_modules() if name and name.split(".")[0] != body}


def head_scores(head: nn.Linear, hidden: Tensor) -> Tensor:
    """The scores (...) of hidden states (..., d) by a score head, before centring; float32 or wider.

    Never in bfloat16, whose three digits would tie answers that differ.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        bias = None if head.bias is None else head.bias.to(wide)
        return functional.linear(hidden.to(wide), head.weight.to(wide), bias).squeeze(-1)


def reward_offset(model: PreTrainedModel) -> float:
    """What is subtracted from the head's scores; 0 for a model that was never centred."""
    return getattr(model.config, "chatpipe_reward_offset", 0.0)


def _turn_off_dropout(config: PretrainedConfig) -> None:
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)


# ---- scores ----

TOKENS_AT_ONCE = {"cpu": 2**12, "cuda": 2**16}
"""Tokens in one forward pass without gradients. On a CPU more take more memory and hardly less time."""


def batch_scores(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The centred score of each sequence, (b,), float32 or wider, also under autocast. Differentiable.

    `input_ids` and `attention_mask` (1 on tokens) are (b, t), padded on the right. Where the model can be read without
    padding (`models.unpadded`), it is.
    """
    if not reads_left_to_right(model):
        return head_scores(score_head(model), _read_by_head(model, input_ids, attention_mask)) - reward_offset(model)
    # Rows of similar length attend together: the longest first.
    order = attention_mask.sum(1).argsort(descending=True, stable=True)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    rows = Rows(input_ids[order], attention_mask[order], positions)
    hidden = hidden_states_at(body_of(model), rows, order.argsort(), _read_at(model, input_ids, attention_mask))
    return head_scores(model.score, hidden) - reward_offset(model)


def _read_at(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The column at which a decoder's score is read, (b,): that of the last token, without EOS where EOS is pad.

    Any other pad token may be sampled, and is then a token like any other.
    """
    pad, ends = pad_token_id(model), getattr(model.config.get_text_config(), "eos_token_id", None)
    counted = attention_mask.bool()
    if pad is not None and pad in (ends if isinstance(ends, list) else [ends]):
        counted = counted & (input_ids != pad)
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    return torch.where(counted, columns, 0).amax(1)


@torch.no_grad()
def score_sequences(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    tokens_at_once: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> Tensor:
    """The centred score of each sequence of token ids, [n] float32 on the CPU, in the order of `sequences`.

    The model computes in evaluation mode and keeps its mode afterwards. `tokens_at_once` bounds a forward pass;
    default: `TOKENS_AT_ONCE` of the model's device. `on_scored` receives the number of sequences scored so far.
    """
    scores = torch.empty(len(sequences))
    if not sequences:
        return scores
    device, done = model.device, 0
    most = tokens_at_once or TOKENS_AT_ONCE.get(device.type, TOKENS_AT_ONCE["cpu"])
    with evaluation_mode(model):
        # The longest first: where memory does not suffice, it shows at once.
        for rows in _batches(model, torch.tensor([len(ids) for ids in sequences]), most):
            input_ids, mask = pad_right([sequences[i] for i in rows.tolist()], PADDING_ID)
            scores[rows] = batch_scores(model, input_ids.to(device), mask.to(device)).float().cpu()
            done += len(rows)
            if on_scored is not None:
                on_scored(done)
    return scores


class ScoringModel(nn.Module):
    """A reward model whose forward pass gives the scores of a batch: what DDP and FSDP wrap in training.

    They synchronise the gradients of what runs inside `forward`, and of nothing else.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`batch_scores` of the model, (b,)."""
        return batch_scores(self.model, input_ids, attention_mask)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """What Trainer calls for `gradient_checkpointing`."""
        self.model.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same under its name before transformers 5.2x."""
        self.model.gradient_checkpointing_enable(**kwargs)


def centre_rewards(model: PreTrainedModel, demonstrations: Sequence[Sequence[int]]) -> float:
    """Sets the offset so that `demonstrations` score 0 on average (InstructGPT, appendix C.2); returns it.

    `save_pretrained` keeps it, in the configuration. Raises `TrainingError` where it would not be finite.
    """
    offset = reward_offset(model) + score_sequences(model, demonstrations).double().mean().item()
    if not math.isfinite(offset):
        raise TrainingError(
            f"The reward model cannot be centred: {len(demonstrations)} demonstrations score {offset} on average.",
            "Its weights are broken: lower rm.learning_rate, or give another rm.model, and train it with --fresh.",
        )
    model.config.chatpipe_reward_offset = offset
    return offset


def _batches(model: PreTrainedModel, lengths: Tensor, tokens_at_once: int) -> tuple[Tensor, ...]:
    """The row numbers of each forward pass; where the model needs padding, rows of similar length go together."""
    if reads_left_to_right(model) and reads_unpadded(body_of(model)):
        return equal_tokens(lengths, tokens_at_once)
    return length_sorted(lengths, max(1, tokens_at_once // int(lengths.max())))


def _read_by_head(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What the score head of an encoder reads, (b, d), in the model's own forward pass.

    Taken before the head: under autocast its result has the three digits of bfloat16.
    """
    read: list[Tensor] = []
    with score_head(model).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])):
        model(input_ids=input_ids, attention_mask=attention_mask)
    return read[0]
