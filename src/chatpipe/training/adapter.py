"""A trainer whose model may have an adapter, which then is all that it trains and keeps."""

from torch import nn
from transformers import PreTrainedModel

from chatpipe.training.lora import Adapter
from chatpipe.training.resume import ResumePoints


class TrainsAdapter(ResumePoints):
    """Stands first among the bases of a trainer; with `adapter` set, `model` is the adapter's."""

    model: PreTrainedModel
    adapter: Adapter | None = None

    def modules_to_save(self) -> dict[str, nn.Module]:
        """The model, or of one with an adapter what is trained alone."""
        return super().modules_to_save() if self.adapter is None else {"adapter": self.adapter.weights()}

    def trained_model(self) -> PreTrainedModel:
        """The model as a plain one, an adapter in its weights."""
        return self.model if self.adapter is None else self.adapter.merge()
