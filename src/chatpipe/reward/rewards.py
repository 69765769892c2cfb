"""The reward of a completion: a weighted sum of what reward models and Python functions give it.

    def short(prompts, completions):
        return [-len(text) / 100 for text in completions]

    def finished(prompts, completions, ended):
        return [float(did_end) for did_end in ended]

    PPOTrainer(..., reward_model=[helpful, harmless], reward_funcs=[short])  # PPOConfig(reward_weights=[1, 0.5, 0.1])

How a function is called: see `RewardFunction`.
"""

import inspect
import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatpipe.data.chat_template import Message
from chatpipe.errors import TrainingError, UsageError

Content = str | list[Message]
"""A prompt as a person wrote it: text, or the messages of a conversation."""

RewardFunction = Callable[..., Any]
"""Called with the keywords `prompts` and `completions`; returns a number for each completion.

A prompt is what the dataset holds, text or messages (for a row of `input_ids` alone, their decoded text); a completion
is text without special tokens. A function with a parameter `ended` also gets a list of bools: whether each completion
ended with EOS; else it was cut off, which its text does not show.
"""

MissingEos = Literal["subtract", "replace"]
"""How the score of a completion without EOS is penalised: the penalty is subtracted from it (TRL), or minus the penalty
replaces it (lm-human-preferences, N+ implementation details)."""

LARGEST = torch.finfo(torch.float32).max


def penalise_missing_eos(scores: Tensor, ended: Tensor, penalty: float | None, how: MissingEos = "subtract") -> Tensor:
    """The scores [n], with `penalty` applied where the completion did not end with EOS (ended [n] is False).

    A penalty of None changes nothing.
    """
    if penalty is None:
        return scores
    penalised = scores - penalty if how == "subtract" else torch.full_like(scores, -penalty)
    return torch.where(ended, scores, penalised)


class CheckedFunction:
    """A reward function that must return one finite number for each completion."""

    def __init__(self, function: RewardFunction) -> None:
        self.__name__ = name_of(function)
        self._function = function
        self._takes_ended = "ended" in inspect.signature(function).parameters

    def __call__(self, prompts: list[Content], completions: list[str], ended: list[bool]) -> Tensor:
        """The function's number for each completion, [n] float32.

        Raises UsageError with the function's name where they are not one finite number for each.
        """
        more = {"ended": ended} if self._takes_ended else {}
        returned = _plain(self._function(prompts=prompts, completions=completions, **more))
        if not isinstance(returned, (list, tuple)):
            raise UsageError(
                f"The reward function {self.__name__} returned {type(returned).__name__}, not a list.",
                "It must return a list of one number for each completion, in their order.",
            )
        values = [_plain(value) for value in returned]
        if len(values) != len(completions):
            raise UsageError(
                f"The reward function {self.__name__} returned {len(values)} numbers for {len(completions)} "
                "completions.",
                "It must return one for each, in their order.",
            )
        for number, value in enumerate(values):
            if not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
                raise UsageError(
                    f"The reward function {self.__name__} returned {reprlib.repr(value)} for the completion "
                    f"{completions[number][:60]!r}.",
                    "It must return a finite number (of float32) for every completion; give one without an answer a "
                    "low score.",
                )
        return torch.tensor([float(value) for value in values])


@dataclass
class Rewards:
    """Reward models and functions with their weights (models first), and an oracle that is not trained on, if any."""

    models: list[PreTrainedModel]
    functions: list[CheckedFunction]
    weights: list[float]
    oracle: PreTrainedModel | CheckedFunction | None = None

    @classmethod
    def of(
        cls,
        reward_model: PreTrainedModel | Sequence[PreTrainedModel] | None,
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None,
        weights: Sequence[float] | None,
        oracle: PreTrainedModel | RewardFunction | None = None,
    ) -> "Rewards":
        """Rewards from the arguments of PPOTrainer. Raises UsageError for no reward, or another number of weights."""
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
        if oracle is not None and not isinstance(oracle, nn.Module):
            oracle = CheckedFunction(oracle)
        return cls(models, functions, weights, oracle)

    @property
    def all_models(self) -> list[PreTrainedModel]:
        """The reward models, then the oracle where it is a model: the columns of `score`'s first argument."""
        return [*self.models, self.oracle] if isinstance(self.oracle, nn.Module) else self.models

    @property
    def read_text(self) -> bool:
        """Whether some source is a function, which reads text."""
        return bool(self.functions) or isinstance(self.oracle, CheckedFunction)

    def score(
        self, model_scores: Tensor, prompts: list[Content], completions: list[str], ended: list[bool]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward of each completion [n], before the missing-EOS penalty, and each source's own scores [n] by name.

        model_scores: [n, m], by `all_models`. prompts and completions: texts for the functions, empty where
        `read_text` is False. Names are those of metrics: `rewards/NAME` where there are several sources, and
        `objective/oracle`. Raises TrainingError for a score that is not finite.
        """
        count = len(self.models)
        if not model_scores.isfinite().all():
            raise TrainingError(
                "A reward model gives NaN or infinity for some completions.",
                "Its weights are broken, or overflow in this dtype: look at how it was trained.",
            )
        called = [function(prompts, completions, ended).to(model_scores.dtype) for function in self.functions]
        columns = [*model_scores[:, :count].unbind(1), *called]
        total = torch.stack([weight * column for weight, column in zip(self.weights, columns, strict=True)]).sum(0)
        named = dict(zip(self.names(), columns, strict=True)) if len(columns) > 1 else {}
        if isinstance(self.oracle, CheckedFunction):
            named["objective/oracle"] = self.oracle(prompts, completions, ended)
        elif self.oracle is not None:
            named["objective/oracle"] = model_scores[:, count]
        return total, named

    def names(self) -> list[str]:
        """A metric name for each source; equal names are numbered."""
        names = ["model"] * len(self.models) + [function.__name__ for function in self.functions]
        numbered = [
            f"{name}_{names[:i].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)
        ]
        return [f"rewards/{name}" for name in numbered]


def name_of(function: RewardFunction) -> str:
    """The name of a reward function in metrics and messages."""
    return getattr(function, "__name__", type(function).__name__)


def _plain(value: Any) -> Any:
    """A tensor or numpy value as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
