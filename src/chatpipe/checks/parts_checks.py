"""Checks of what PPOTrainer is given: models, tokenizers, prompts. They cannot be turned off.

`models` maps the names of the trainer's arguments to models; the policy comes first, and the names of reward models
begin with `reward_model`.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.checks.gate import Checks, Finding
from chatpipe.checks.model_checks import embedding_count, other_vocabulary, token_ids_out_of_range
from chatpipe.models.properties import leaves_room, longest_sequence, unnamed_ids
from chatpipe.reward.reward_model import reads_left_to_right

Models = Mapping[str, PreTrainedModel]


def model_checks(models: Models, tokenizer: PreTrainedTokenizerBase, stop_token_id: int | None) -> Checks:
    """Whether the models can work together. `stop_token_id`: the token that ends completions."""
    policy = next(iter(models.values()))
    return {
        "same_model_twice": lambda: _same_model_twice(models),
        "vocabulary_too_small": lambda: _vocabulary_too_small(models, tokenizer),
        "not_one_score": lambda: _not_one_score(models),
        "value_model_reads_ahead": lambda: _value_model_reads_ahead(models.get("value_model")),
        "other_vocabulary": lambda: _other_vocabulary(models, tokenizer),
        "no_stop_token": lambda: _no_stop_token(stop_token_id, policy),
    }


def prompt_checks(
    prompts: Sequence[Sequence[int]], response_length: int, models: Models, tokenizer: PreTrainedTokenizerBase, key: str
) -> Checks:
    """Whether there are prompts (token ids), and all models can read each with its completion. `key` names them."""
    return {
        "no_prompts": lambda: _no_prompts(prompts, key),
        "token_ids_out_of_range": lambda: _foreign_tokens(prompts, models, key),
        "no_room": lambda: _no_room(prompts, response_length, models, tokenizer, key),
    }


def trained_in_half(models: Mapping[str, nn.Module]) -> Finding | None:
    """Weights that are trained have fewer digits than float32: at PPO's learning rates AdamW's steps are rounded away.

    transformers loads a checkpoint in the dtype it was saved in.
    """
    for name, model in models.items():
        for weights in model.parameters():
            if weights.requires_grad and torch.finfo(weights.dtype).bits < 32:
                return Finding(
                    f"{name} is trained in {weights.dtype}: most of its steps would be rounded away.",
                    "Load it with dtype=torch.float32; bf16=True still computes in bfloat16.",
                )
    return None


def _same_model_twice(models: Models) -> Finding | None:
    for (name, one), (other_name, other) in itertools.combinations(models.items(), 2):
        if one is other:
            return Finding(f"{name} and {other_name} are the same object.", "Give a copy, or leave one out.")
    return None


def _vocabulary_too_small(models: Models, tokenizer: PreTrainedTokenizerBase) -> Finding | None:
    """The policy can sample every token of the tokenizer that it has an embedding for, and the other models read it."""
    needed = min(embedding_count(next(iter(models.values()))), unnamed_ids(tokenizer)[-1].start)
    for name, model in models.items():
        if embedding_count(model) < needed:
            return Finding(
                f"{name} knows {embedding_count(model)} tokens, the policy can write {needed}.",
                "All models must share one tokenizer.",
            )
    return None


def _not_one_score(models: Models) -> Finding | None:
    for name, model in models.items():
        if name.startswith(("reward_model", "value_model")) and model.config.num_labels != 1:
            return Finding(
                f"{name} gives {model.config.num_labels} numbers for a text, where a reward is one.",
                "Use a model with num_labels=1, or wrap it into a function for reward_funcs.",
            )
    return None


def _value_model_reads_ahead(value_model: PreTrainedModel | None) -> Finding | None:
    if value_model is None or reads_left_to_right(value_model):
        return None
    return Finding(
        f"value_model is a {type(value_model).__name__}, which reads both ways: it would see what is to come.",
        "Leave it out and set value_model=policy.",
    )


def _other_vocabulary(models: Models, tokenizer: PreTrainedTokenizerBase) -> Finding | None:
    """A model that was built in memory has no folder, and a folder of weights alone has no tokenizer to compare."""
    for name, model in models.items():
        folder = Path(model.name_or_path)
        if (folder / "tokenizer.json").is_file():
            found = other_vocabulary(name, str(folder), tokenizer)
            if found is not None:
                return found
    return None


def _no_stop_token(token: int | None, policy: PreTrainedModel) -> Finding | None:
    if token is None:
        return Finding("The tokenizer has no EOS token, so completions would never end.", "Set tokenizer.eos_token.")
    vocabulary = embedding_count(policy)
    if not 0 <= token < vocabulary:
        return Finding(
            f"The stop token {token} is not one of the policy's {vocabulary} tokens, so no completion would end.",
            "Give stop_token_id, or the policy's own tokenizer.",
        )
    return None


def _no_prompts(prompts: Sequence[Sequence[int]], key: str) -> Finding | None:
    if not prompts:
        return Finding("There are no prompts to train on.", f"Give {key} (recipe: ppo.data).")
    empty = [row for row, ids in enumerate(prompts) if not ids]
    if empty:
        return Finding(f"{key}, row {empty[0]} has no tokens.", "A prompt has at least one.")
    return None


def _foreign_tokens(prompts: Sequence[Sequence[int]], models: Models, key: str) -> Finding | None:
    smallest = min(models.values(), key=embedding_count)
    for row, ids in enumerate(prompts):
        found = token_ids_out_of_range([ids], smallest, f"{key}, row {row}") if ids else None
        if found is not None:
            return found
    return None


def _no_room(
    prompts: Sequence[Sequence[int]], response_length: int, models: Models, tokenizer: PreTrainedTokenizerBase, key: str
) -> Finding | None:
    lengths = [len(ids) for ids in prompts]
    for name, model in models.items():
        scores = name.startswith("reward_model")
        context = longest_sequence(model, tokenizer) if scores else longest_sequence(model)
        too_long = sum(not leaves_room(length, response_length, context) for length in lengths)
        if too_long:
            return Finding(
                f"{key}: {too_long} of {len(prompts)} prompts leave no room for response_length = {response_length} "
                f"tokens in the context of {name} ({context}); the longest has {max(lengths)} tokens.",
                "Leave them out, lower response_length, or use a model with more positions.",
            )
    return None
