"""The reward model: any `AutoModelForSequenceClassification` with one label. Its parts, and how a new one is made.

A causal body has a head called `score`, which gives a number at each token; an encoder reads both ways and gives the
whole sequence one score. `config.chatpipe_reward_offset` is subtracted from scores to centre them, since `score` has no
bias; stock software ignores it and sees the same order. `reward.scoring` computes scores.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from chatpipe.models.pretrained import prepare_model


def new_reward_model(body_folder: str, pad_token_id: int, seed: int) -> PreTrainedModel:
    """A reward model in float32 with the body of the causal or masked model in `body_folder` and a new score head.

    The head is N(0, 1/sqrt(d+1)), d the hidden size, so that first scores are of size 1 (lm-human-preferences, "The N
    Implementation Details of RLHF"; transformers would take 0.02). Dropout is off, in the configuration too: two
    readings of one answer must agree.
    """
    config = AutoConfig.from_pretrained(body_folder, num_labels=1)
    _turn_off_dropout(config)
    config.get_text_config().pad_token_id = pad_token_id
    with _without_load_report():
        model = AutoModelForSequenceClassification.from_pretrained(body_folder, config=config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    head = score_head(model)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * (head.in_features + 1) ** -0.5)
        if head.bias is not None:
            head.bias.zero_()
    return prepare_model(model)


def reads_left_to_right(model: PreTrainedModel) -> bool:
    """Whether a sequence classification model is a decoder, whose `score` head gives a number at each position.

    One that reads both ways (BERT) would see the completion before it is written: it can be no value model.
    """
    return hasattr(model, "score")


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


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keeps transformers from reporting that the score head is new and the language head unused: both are meant."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
