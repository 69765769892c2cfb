"""The reward model: any `AutoModelForSequenceClassification` with one label.

On a causal body its head is called `score`; a sequence is scored at its last token, found by its length: transformers
looks for the pad token instead, and reads another position where pad is also the end of a turn (transformers #35352).
An encoder reads both ways and gives the whole sequence one score, through its `classifier` head. What centres the
scores stands in `config.chatpipe_reward_offset`, since `score` has no bias; stock software, which ignores it, sees the
same order.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from chatpipe.data.padding import length_sorted, pad_right
from chatpipe.errors import TrainingError
from chatpipe.models.model_folder import usable_positions


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
    return model


def longest_sequence(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a reward model reads at once."""
    return longest_of_config(model.config, tokenizer)


def longest_of_config(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a reward model with such a body reads at once.

    Its positions, where it has a table of them, and no more than its tokenizer says.
    """
    positions = usable_positions(config.get_text_config().to_dict())
    return tokenizer.model_max_length if positions is None else min(positions, tokenizer.model_max_length)


def reads_left_to_right(model: PreTrainedModel) -> bool:
    """Whether a sequence classification model is a decoder, whose `score` head gives a number at each position.

    One that reads both ways (BERT) would see the completion before it is written: it can be no critic.
    """
    return hasattr(model, "score")


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The layer that gives the score: `score` of a decoder, the last linear layer of an encoder's `classifier`."""
    if reads_left_to_right(model):
        return model.score
    return [module for module in model.classifier.modules() if isinstance(module, nn.Linear)][-1]


def outside_body(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules that a reward model has besides its body, by name: its head, and what an encoder puts before it."""
    body = model.base_model_prefix
    return {name: module for name, module in model.named_modules() if name and name.split(".")[0] != body}


def token_scores(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """The centred score at every position, (b, t) float32, also under autocast.

    `input_ids`, `attention_mask` and `position_ids` are (b, t). Rows are padded on the right; padded on the left they
    need `position_ids`.
    """
    body = getattr(model, model.base_model_prefix)
    hidden = body(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    return head_scores(model.score, hidden) - reward_offset(model)


def head_scores(head: nn.Linear, hidden: Tensor) -> Tensor:
    """What a score head gives for hidden states (..., d), before centring: (...), float32 at least.

    Never in bfloat16, whose three digits would tie answers that differ.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        bias = None if head.bias is None else head.bias.to(wide)
        return functional.linear(hidden.to(wide), head.weight.to(wide), bias).squeeze(-1)


def at_last_token(values: Tensor, attention_mask: Tensor) -> Tensor:
    """Of (b, t) values those at the last token of each row, (b,); rows are padded on the right."""
    last = attention_mask.sum(1) - 1
    return values.gather(1, last[:, None]).squeeze(1)


def sequence_scores(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_token_id: int, batch_size: int
) -> Tensor:
    """The centred score of each sequence at its last token, (n,) float32 on the CPU, in the order of `sequences`.

    `model` answers in evaluation mode and is left as it was. Longest first: memory that runs out does so at once.
    """
    scores = torch.empty(len(sequences))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for rows in length_sorted(torch.tensor([len(ids) for ids in sequences]), batch_size):
                input_ids, mask = pad_right([sequences[i] for i in rows], pad_token_id)
                input_ids, mask = input_ids.to(model.device), mask.to(model.device)
                scores[rows] = batch_scores(model, input_ids, mask).float().cpu()
    finally:
        model.train(was_training)
    return scores


def batch_scores(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The centred score of each row of (b, t) tokens, padded on the right: (b,)."""
    if reads_left_to_right(model):
        return at_last_token(token_scores(model, input_ids, attention_mask), attention_mask)
    return model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0].float() - reward_offset(model)


def centre_rewards(
    model: PreTrainedModel, demonstrations: Sequence[Sequence[int]], pad_token_id: int, batch_size: int
) -> float:
    """Sets the offset so that `demonstrations` score 0 on average (InstructGPT, appendix C.2); returns it.

    It stands in the configuration, so `save_pretrained` keeps it. Raises `TrainingError` where it would not be finite.
    """
    scores = sequence_scores(model, demonstrations, pad_token_id, batch_size)
    offset = reward_offset(model) + scores.double().mean().item()
    if not math.isfinite(offset):
        raise TrainingError(
            f"The reward model cannot be centred: {len(demonstrations)} demonstrations score {offset} on average.",
            "Its weights are broken: lower rm.learning_rate, or give another rm.model, and train it with --fresh.",
        )
    model.config.chatpipe_reward_offset = offset
    return offset


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
