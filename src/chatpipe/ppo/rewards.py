"""What completions are worth: a weighted sum of what reward models and Python functions say of them.

def short(prompts, completions):
    return [-len(text) / 100 for text in completions]

def finished(prompts, completions, ended):
    return [float(did_end) for did_end in ended]

PPOTrainer(..., reward_model=[helpful, harmless], reward_funcs=[short])    # PPOConfig(reward_weights=[1, 0.5, 0.1])
"""

import inspect
import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatpipe.errors import TrainingError, UsageError
from chatpipe.ppo.prompts import Content

LARGEST = torch.finfo(torch.float32).max

RewardFunction = Callable[..., Any]
"""Called with prompts and completions by name (`prompts=`, `completions=`); returns a number for each completion.

A prompt is what stands in the dataset, text or messages (of `input_ids` alone their decoded text); a completion is text
without special tokens. A function with a parameter `ended` gets that too: for each completion whether it ended with
EOS; else it was cut off, which its text does not show.
"""


class CheckedFunction:
    """A reward function as it is called: told what it has parameters for, and held to one finite number for each."""

    def __init__(self, function: RewardFunction) -> None:
        self.__name__ = name_of(function)
        self._function = function
        self._is_told_ended = "ended" in inspect.signature(function).parameters

    def __call__(self, prompts: list[Content], completions: list[str], ended: list[bool]) -> Tensor:
        """What the function says of each completion, [n] float32.

        Raises UsageError naming it where that is not one finite number for each.
        """
        told = {"ended": ended} if self._is_told_ended else {}
        said = _plain(self._function(prompts=prompts, completions=completions, **told))
        if not isinstance(said, (list, tuple)):
            raise UsageError(
                f"The reward function {self.__name__} returned {type(said).__name__}, not a list.",
                "It must return a list of one number for each completion, in their order.",
            )
        said = [_plain(value) for value in said]
        if len(said) != len(completions):
            raise UsageError(
                f"The reward function {self.__name__} returned {len(said)} numbers for {len(completions)} completions.",
                "It must return one for each, in their order.",
            )
        for number, value in enumerate(said):
            if not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
                raise UsageError(
                    f"The reward function {self.__name__} returned {reprlib.repr(value)} for the completion "
                    f"{completions[number][:60]!r}.",
                    "It must return a finite number (of float32) for every completion; give one without an answer a "
                    "low score.",
                )
        return torch.tensor([float(value) for value in said])


@dataclass
class Rewards:
    """Reward models and functions with their weights (models first), and a judge that is never trained on, if any."""

    models: list[PreTrainedModel]
    functions: list[CheckedFunction]
    weights: list[float]
    gold: PreTrainedModel | CheckedFunction | None = None

    @classmethod
    def of(
        cls,
        reward_model: PreTrainedModel | Sequence[PreTrainedModel] | None,
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None,
        weights: Sequence[float] | None,
        gold: PreTrainedModel | RewardFunction | None = None,
    ) -> "Rewards":
        """Raises UsageError where there is no reward, or another number of weights."""
        models = _as_list(reward_model)
        functions = [CheckedFunction(function) for function in _as_list(reward_funcs)]
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
        judge = gold if gold is None or isinstance(gold, nn.Module) else CheckedFunction(gold)
        return cls(models, functions, weights, judge)

    @property
    def all_models(self) -> list[PreTrainedModel]:
        """The models to read with, in the order of the columns of `judge`'s argument."""
        return [*self.models, self.gold] if isinstance(self.gold, nn.Module) else self.models

    @property
    def read_text(self) -> bool:
        """Whether texts are needed, for functions."""
        return bool(self.functions) or isinstance(self.gold, CheckedFunction)

    def judge(
        self, model_scores: Tensor, prompts: list[Content], completions: list[str], ended: list[bool]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward [n] of each completion, and by metric name what each source says of it, [n].

        model_scores: [n, m], of `all_models`. ended: whether each completion did, for functions; the missing-EOS
        penalty comes later. The single source of a run is not named, it is `objective/scores_raw`.
        """
        count = len(self.models)
        if not model_scores.isfinite().all():
            raise TrainingError(
                "A reward model gives NaN or infinity for some completions.",
                "Its weights are broken, or overflow in this dtype: look at how it was trained.",
            )
        called = [function(prompts, completions, ended).to(model_scores.dtype) for function in self.functions]
        columns = [*model_scores[:, :count].unbind(1), *called]
        total = sum(weight * column for weight, column in zip(self.weights, columns, strict=True))
        named = dict(zip(self.names(), columns, strict=True)) if len(columns) > 1 else {}
        if isinstance(self.gold, CheckedFunction):
            named["objective/oracle"] = self.gold(prompts, completions, ended)
        elif self.gold is not None:
            named["objective/oracle"] = model_scores[:, count]
        assert isinstance(total, Tensor)
        return total, named

    def names(self) -> list[str]:
        """A metric name for each source; equal names are numbered."""
        names = ["model"] * len(self.models) + [function.__name__ for function in self.functions]
        numbered = [
            f"{name}_{names[:i].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)
        ]
        return [f"rewards/{name}" for name in numbered]


def _plain(value: Any) -> Any:
    """A tensor or numpy value as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def name_of(function: RewardFunction) -> str:
    """What a reward function is called in metrics and messages."""
    return getattr(function, "__name__", type(function).__name__)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
