"""Parts of a model: its body, and evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts the modules of `model` into evaluation mode (no dropout), and afterwards each back into its own mode."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def body_of(model: PreTrainedModel) -> nn.Module:
    """The transformer below a model's head."""
    return getattr(model, model.base_model_prefix)
