"""LoRA: trains low-rank layers inside a model. In ppo the model without them is the reference.

Needs peft (`pip install 'chatpipe[lora]'`).
"""

import copy
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from chatpipe.errors import UsageError
from chatpipe.training.resume import ResumePoints


class Adapter:
    """The adapter that a peft configuration puts into a model, in place.

    `model` is the model itself, whose layers now add the adapter's output. Its own weights are frozen, except those of
    the `whole` modules. Raises `UsageError` where the configuration does not fit the model.
    """

    def __init__(self, model: PreTrainedModel, peft_config: Any, whole: Iterable[nn.Module] = ()) -> None:
        try:
            self._model = import_peft().get_peft_model(model, peft_config)
        except ValueError as problem:  # only the model knows its layers
            raise UsageError(
                f"lora: {problem}",
                "Set lora.target_modules to the names of linear layers of this model, or to all-linear.",
            ) from problem
        self.model: PreTrainedModel = self._model.get_base_model()
        _check_untied(self._model)
        for module in whole:
            module.requires_grad_(True)

    def off(self) -> AbstractContextManager[object]:
        """Within this context the model is without its adapter; modules that are trained whole keep their weights."""
        return self._model.disable_adapter()

    def merge(self) -> PreTrainedModel:
        """The plain model with the adapter added to its weights, in place. The adapter cannot be used afterwards."""
        return self._model.merge_and_unload()

    def merged(self) -> PreTrainedModel:
        """A copy of the model as a plain one, with the adapter added to its weights."""
        return copy.deepcopy(self._model).merge_and_unload()

    def weights(self) -> nn.Module:
        """The trained weights as a module; their names have `/` in place of dots."""
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        return nn.ParameterDict({name.replace(".", "/"): weight for name, weight in trained.items()})


def _check_untied(model: nn.Module) -> None:
    """Raises `UsageError` where the adapter of the output head would be merged into the embeddings, or the reverse."""
    layers = {name: layer.get_base_layer() for name, layer in model.named_modules() if hasattr(layer, "get_base_layer")}
    weights = [weight for _, weight in model.named_parameters(remove_duplicate=False)]
    for name, layer in layers.items():
        if sum(weight is layer.weight for weight in weights) > 1:
            raise UsageError(
                f"lora: {name.rpartition('.')[2]} shares its weights with another layer (tied embeddings): merging the "
                "adapter would change both.",
                "Leave it out of lora.target_modules; all-linear does so.",
            )


class TrainsAdapter(ResumePoints):
    """Lets a trainer train and save only an adapter. Comes first among its bases; `model` is then the adapter's."""

    model: PreTrainedModel
    adapter: Adapter | None = None

    def modules_to_save(self) -> dict[str, nn.Module]:
        """The model, or only the trained weights where it has an adapter."""
        return super().modules_to_save() if self.adapter is None else {"adapter": self.adapter.weights()}

    def trained_model(self) -> PreTrainedModel:
        """The plain model, with the adapter added to its weights."""
        return self.model if self.adapter is None else self.adapter.merge()


def check_no_adapter(policy: nn.Module) -> None:
    """Raises `UsageError` for a policy that already has an adapter."""
    peft = sys.modules.get("peft")  # without it there is no such model
    if peft is not None and isinstance(policy, peft.PeftModel):
        raise UsageError(
            "model has an adapter already.", "Merge it (merge_and_unload), and give the result with peft_config."
        )


def lora_config(r: int, alpha: float, target_modules: str | list[str], without: Sequence[str] = ()) -> Any:
    """peft's configuration of a LoRA adapter with rank `r`, scaled by alpha / r; layers named `without` get none."""
    return import_peft().LoraConfig(
        r=r, lora_alpha=alpha, target_modules=target_modules, exclude_modules=[*without] or None
    )


def import_peft() -> Any:
    """The peft package. Raises UsageError where it is not installed."""
    try:
        import peft
    except ImportError as problem:
        raise UsageError("LoRA needs the package peft.", "pip install 'chatpipe[lora]'") from problem
    return peft
