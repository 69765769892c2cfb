"""What completions are worth: a weighted sum of what reward models and Python functions say of them.

def short(prompts, completions):
    return [-len(text) / 100 for text in completions]

PPOTrainer(..., reward_model=[helpful, harmless], reward_funcs=[short])    # PPOConfig(reward_weights=[1, 0.5, 0.1])
"""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatpipe.errors import TrainingError, UsageError
from chatpipe.ppo.prompts import Content

RewardFunction = Callable[[list[Content], list[str]], Sequence[float]]
"""Called with prompts and completions by name (`prompts=`, `completions=`); returns a number for each completion.

A prompt is what stands in the dataset, text or messages (of `input_ids` alone their decoded text); a completion is text
without special tokens.
"""


@dataclass
class Rewards:
    """Reward models and functions with their weights (models first), and a judge that is never trained on, if any."""

    models: list[PreTrainedModel]
    functions: list[RewardFunction]
    weights: list[float]
    gold: PreTrainedModel | RewardFunction | None = None

    @classmethod
    def of(
        cls,
        reward_model: PreTrainedModel | Sequence[PreTrainedModel] | None,
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None,
        weights: Sequence[float] | None,
        gold: PreTrainedModel | RewardFunction | None = None,
    ) -> "Rewards":
        """Raises UsageError where there is no reward, or another number of weights."""
        models, functions = _as_list(reward_model), _as_list(reward_funcs)
        count = len(models) + len(functions)
        if count == 0:
            raise UsageError("There is no reward to learn from.", "Give reward_model, or reward_funcs.")
        weights = [1.0] * count if weights is None else list(weights)
        if len(weights) != count or not all(math.isfinite(weight) for weight in weights):
            raise UsageError(
                f"reward_weights = {weights}, but there are {count} rewards "
                f"({len(models)} models, {len(functions)} functions).",
                "Give one number for each, models first.",
            )
        return cls(models, functions, weights, gold)

    @property
    def all_models(self) -> list[PreTrainedModel]:
        """The models to read with, in the order of the columns of `judge`'s argument."""
        return [*self.models, self.gold] if isinstance(self.gold, nn.Module) else self.models

    @property
    def read_text(self) -> bool:
        """Whether texts are needed, for functions."""
        return bool(self.functions) or (self.gold is not None and not isinstance(self.gold, nn.Module))

    def judge(
        self, model_scores: Tensor, prompts: list[Content], completions: list[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward [n] of each completion, and by metric name what each source says of it, [n].

        model_scores: [n, m], of `all_models`. The single source of a run is not named, it is `objective/scores_raw`.
        """
        count = len(self.models)
        if not model_scores.isfinite().all():
            raise TrainingError(
                "A reward model gives NaN or infinity for some completions.",
                "Its weights are broken, or overflow in this dtype: look at how it was trained.",
            )
        called = [call(function, prompts, completions).to(model_scores.dtype) for function in self.functions]
        columns = [*model_scores[:, :count].unbind(1), *called]
        total = sum(weight * column for weight, column in zip(self.weights, columns, strict=True))
        named = dict(zip(self.names(), columns, strict=True)) if len(columns) > 1 else {}
        if isinstance(self.gold, nn.Module):
            named["objective/gold"] = model_scores[:, count]
        elif self.gold is not None:
            named["objective/gold"] = call(self.gold, prompts, completions)
        assert isinstance(total, Tensor)
        return total, named

    def names(self) -> list[str]:
        """A metric name for each source; equal names are numbered."""
        names = ["model"] * len(self.models) + [name_of(function) for function in self.functions]
        numbered = [
            f"{name}_{names[:i].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)
        ]
        return [f"rewards/{name}" for name in numbered]


def call(function: RewardFunction, prompts: list[Content], completions: list[str]) -> Tensor:
    """What a function says of each completion, [n] float32.

    Raises UsageError naming it where that is not one finite number for each.
    """
    said: Any = function(prompts=prompts, completions=completions)  # type: ignore[call-arg]  # by name, as documented
    said = [_plain(value) for value in _plain(said)]
    name = name_of(function)
    if len(said) != len(completions):
        raise UsageError(
            f"The reward function {name} returned {len(said)} numbers for {len(completions)} completions.",
            "It must return one for each, in their order.",
        )
    for number, value in enumerate(said):
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(
                f"The reward function {name} returned {value!r} for the completion {completions[number][:60]!r}.",
                "It must return a finite number for every completion; give one without an answer a low score.",
            )
    return torch.tensor([float(value) for value in said])


def _plain(value: Any) -> Any:
    """A tensor or numpy value as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def load_function(name: str, key: str) -> RewardFunction:
    """The function that `MODULE:FUNCTION` names; modules in the working folder are found too.

    Raises UsageError naming the recipe's `key` where there is none.
    """
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    try:
        if here not in sys.path:
            sys.path.append(here)
        function: Any = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as problem:
        raise UsageError(
            f"{key} = {name} cannot be imported: {problem}.", "Write it as module:function, seen from this folder."
        ) from problem
    if not callable(function):
        raise UsageError(f"{key} = {name} is not a function.", "It is called with prompts and completions.")
    return function


def name_of(function: RewardFunction) -> str:
    """What a reward function is called in metrics and messages."""
    return getattr(function, "__name__", type(function).__name__)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
