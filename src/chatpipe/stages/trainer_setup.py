"""What the stages give their trainers: arguments, and an adapter where the section has `lora`."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from chatpipe import console
from chatpipe.models.pretrained import load_tokenizer
from chatpipe.recipe.schema import Lora
from chatpipe.stages.step import Step
from chatpipe.training.arguments import training_arguments
from chatpipe.training.lora import Adapter, lora_config

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def stage_arguments(step: Step, cls: type[Arguments], **more: Any) -> Arguments:
    """Arguments of type `cls` for the step's trainer; those in `more` belong to this stage only."""
    recipe = step.recipe
    return training_arguments(
        cls, step.section, step.stage, step.folder, recipe.seed, step.processes, recipe.report_to, **more
    )


def stage_adapter(
    step: Step,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    section: Lora | None,
    whole: Iterable[nn.Module] = (),
    without: Sequence[str] = (),
) -> Adapter | None:
    """Puts a LoRA adapter into `model`, to be trained in place of its weights; None where `section` is None.

    `whole` modules are trained themselves; linear layers named `without` get no adapter.
    """
    if section is None:
        return None
    if step.is_main and len(tokenizer) > len(load_tokenizer(step.models["model"])):
        console.warn(
            f"{step.stage}.lora leaves the embeddings of the chat template's new tokens at random; "
            "train the model whole."
        )
    set_seed(step.recipe.seed)  # its first weights are drawn at random
    return Adapter(model, lora_config(**section.model_dump(), without=without), whole)
