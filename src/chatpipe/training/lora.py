"""LoRA: trains low-rank layers inside a model. In ppo the model without them is the reference.

Needs peft (`pip install 'chatpipe[lora]'`).
"""

import copy
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from chatpipe.errors import UsageError
from chatpipe.training.resume import ResumePoints
from chatpipe.training.state import write_tensors


class Adapter:
    """The adapter that a peft configuration puts into a model, in place.

    `model` is the model itself, whose layers now add the adapter's output. Its own weights are frozen, except those of
    the `whole` modules. Raises `UsageError` where the configuration does not fit the model.
    """

    def __init__(self, model: PreTrainedModel, peft_config: Any, whole: Iterable[nn.Module] = ()) -> None:
        """A `model` that is a `PeftModel` keeps the adapter that it has; `peft_config` is None then."""
        self._model = cast(Any, model) if has_adapter(model) else _with_adapter(model, peft_config)
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

    def save(self, folder: Path, base: str) -> None:
        """Writes the adapter alone, as peft does: `PeftModel.from_pretrained(MODEL, folder)` puts it into a model.

        `base` is the folder or hub id of that model. Modules that are trained whole are part of the adapter.
        """
        folder.mkdir(exist_ok=True)
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        whole = {name: weight for name, weight in trained.items() if "lora_" not in name}
        tensors = import_peft().get_peft_model_state_dict(self._model, save_embedding_layers=False)
        tensors = {**tensors, **{f"base_model.model.{name}": weight.detach() for name, weight in whole.items()}}
        write_tensors(folder / "adapter_model.safetensors", {name: each.contiguous() for name, each in tensors.items()})
        config = copy.deepcopy(self._model.active_peft_config)
        config.base_model_name_or_path, config.inference_mode = base, True
        config.modules_to_save = sorted({name.rpartition(".")[0] for name in whole}) or config.modules_to_save
        config.save_pretrained(folder)

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


def has_adapter(model: nn.Module) -> bool:
    """Whether `model` is a `PeftModel`."""
    peft = sys.modules.get("peft")  # without it there is no such model
    return peft is not None and isinstance(model, peft.PeftModel)


def adapter_of(policy: PreTrainedModel, peft_config: Any) -> Adapter | None:
    """The adapter of a `policy` that is a `PeftModel`; None where it is none.

    Raises `UsageError` where it cannot be trained, or `peft_config` asks for another one.
    """
    if not has_adapter(policy):
        return None
    if peft_config is not None:
        raise UsageError(
            "model has an adapter already, and peft_config asks for another one.",
            "Leave peft_config out, or merge the adapter (merge_and_unload) and give the result.",
        )
    base: nn.Module = cast(Any, policy).get_base_model()
    if cast(Any, policy).active_peft_config.is_prompt_learning:
        raise UsageError(
            "model learns a prompt in place of its layers (prompt tuning), which PPO does not train.",
            "Give a model with a LoRA adapter, or the plain model and peft_config.",
        )
    if not any(weight.requires_grad for weight in base.parameters()):
        raise UsageError(
            "model has an adapter whose weights are frozen, so nothing of it would be trained.",
            "Load it with PeftModel.from_pretrained(..., is_trainable=True).",
        )
    return Adapter(policy, None)


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer multiplies by a matrix; GPT-2 calls such layers Conv1D."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def _with_adapter(model: PreTrainedModel, peft_config: Any) -> Any:
    names = sorted({name.rsplit(".", 1)[-1] for name, layer in model.named_modules() if _is_linear(layer)})
    try:
        return import_peft().get_peft_model(model, peft_config)
    except ValueError as problem:  # only the model knows its layers
        raise UsageError(
            f"lora: {problem}",
            f"Set lora.target_modules to linear layers of this model ({', '.join(names)}), or to all-linear.",
        ) from problem


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
