"""What is refused before the first step, since it would fail late or go wrong without any error."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.errors import UsageError
from chatpipe.models.context import leaves_room, longest_sequence
from chatpipe.ppo.prompts import Prompt
from chatpipe.reward.reward_model import reads_left_to_right


def check_models(models: Mapping[str, PreTrainedModel]) -> None:
    """Raises UsageError where one model has two parts to play, or reads other tokens. `models`: by argument's name.

    The policy comes first. Names of reward models begin with `reward_model`.
    """
    for (name, one), (other_name, other) in itertools.combinations(models.items(), 2):
        if one is other:
            raise UsageError(f"{name} and {other_name} are the same object.", "Give a copy, or leave one out.")
    vocabulary = _vocabulary(next(iter(models.values())))
    for name, model in models.items():
        if _vocabulary(model) < vocabulary:
            raise UsageError(
                f"{name} knows {_vocabulary(model)} tokens, the policy {vocabulary}.",
                "All models must share one tokenizer.",
            )
        if name.startswith(("reward_model", "value_model")) and model.config.num_labels != 1:
            raise UsageError(
                f"{name} gives {model.config.num_labels} numbers for a text, where a reward is one.",
                "Use a model with num_labels=1, or wrap it into a function for reward_funcs.",
            )
        if name.startswith("reward_model") and model.config.get_text_config().pad_token_id is None:
            raise UsageError(
                f"{name} has no pad token: other software that reads it scores the wrong position (or refuses).",
                f"Set {name}.config.pad_token_id = tokenizer.pad_token_id, as chatpipe rm does.",
            )
    value_model = models.get("value_model")
    if value_model is not None and not reads_left_to_right(value_model):
        raise UsageError(
            f"value_model is a {type(value_model).__name__}, which reads both ways: it would see what is to come.",
            "Leave it out and set value_model=policy.",
        )


def check_tokenizers(models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UsageError where a model was loaded from a folder whose tokenizer is another one: it is fed token ids."""
    for name, model in models.items():
        folder = Path(model.name_or_path)
        has_tokenizer = (folder / "tokenizer.json").is_file()
        if has_tokenizer and AutoTokenizer.from_pretrained(folder).get_vocab() != tokenizer.get_vocab():
            raise UsageError(
                f"{name} was loaded from {folder}, whose tokenizer is not processing_class.",
                "All models must share one tokenizer: train the reward model on the policy's own.",
            )


def check_precision(models: Mapping[str, nn.Module]) -> None:
    """Raises UsageError where weights that are trained have fewer digits than float32.

    At PPO's learning rates most steps of AdamW would be rounded away. transformers loads a checkpoint in the dtype it
    was saved in.
    """
    for name, model in models.items():
        for weights in model.parameters():
            if weights.requires_grad and torch.finfo(weights.dtype).bits < 32:
                raise UsageError(
                    f"{name} is trained in {weights.dtype}: most of its steps would be rounded away.",
                    "Load it with dtype=torch.float32; bf16=True still computes in bfloat16.",
                )


def check_stop_token(tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel, stop_token_id: int | None) -> int:
    """The token that ends completions. Raises UsageError where there is none that the policy could write."""
    token = tokenizer.eos_token_id if stop_token_id is None else stop_token_id
    if token is None:
        raise UsageError("The tokenizer has no EOS token, so completions would never end.", "Set tokenizer.eos_token.")
    if not 0 <= token < _vocabulary(policy):
        raise UsageError(
            f"The stop token {token} is none of the policy's {_vocabulary(policy)} tokens: no completion would end.",
            "Give stop_token_id, or the policy's own tokenizer.",
        )
    return token


def check_prompts(
    prompts: Sequence[Prompt],
    response_length: int,
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> None:
    """Raises UsageError where there is no prompt, or one is empty or leaves too little room in some model's context.

    `models` as in `check_models`; `name` is that of the argument with the prompts.
    """
    if not prompts:
        raise UsageError("There are no prompts to train on.", f"Give {name} (recipe: ppo.data).")
    lengths = [len(prompt.ids) for prompt in prompts]
    if 0 in lengths:
        raise UsageError(f"{name}, row {lengths.index(0)} has no tokens.", "A prompt has at least one.")
    vocabulary = _vocabulary(next(iter(models.values())))
    for row, prompt in enumerate(prompts):
        if not 0 <= min(prompt.ids) <= max(prompt.ids) < vocabulary:
            raise UsageError(
                f"{name}, row {row} has token ids that are none of the policy's {vocabulary}.",
                "Tokenise it with the policy's own tokenizer.",
            )
    for model_name, model in models.items():
        judges = model_name.startswith("reward_model")
        context = longest_sequence(model, tokenizer) if judges else longest_sequence(model, decodes=True)
        too_long = sum(not leaves_room(length, response_length, context) for length in lengths)
        if too_long:
            raise UsageError(
                f"{name}: {too_long} of {len(prompts)} prompts leave no room for response_length = {response_length} "
                f"tokens in the context of {model_name} ({context}); the longest has {max(lengths)} tokens.",
                "Leave them out, lower response_length, or use a model with more positions.",
            )


def _vocabulary(model: PreTrainedModel) -> int:
    return model.get_input_embeddings().num_embeddings
