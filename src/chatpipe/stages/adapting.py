"""The adapter that a stage trains in place of all weights, where its section has `lora`."""

from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from chatpipe import console
from chatpipe.models.pretrained import load_tokenizer
from chatpipe.recipe.schema import Lora
from chatpipe.stages.step import Step
from chatpipe.training.lora import Adapter, lora_config


def stage_adapter(
    step: Step,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    section: Lora | None,
    whole: Iterable[nn.Module] = (),
    without: Sequence[str] = (),
) -> Adapter | None:
    """Puts it into `model`; nothing where `section` is None.

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
