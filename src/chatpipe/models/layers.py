"""What kinds of attention a model has, from its configuration."""

from transformers import PreTrainedConfig


def layer_types(config: PreTrainedConfig) -> set[str]:
    """The kinds of a model's layers, as transformers names them: `full_attention`, `sliding_attention` and others."""
    sliding = getattr(config, "sliding_window", None)
    return set(getattr(config, "layer_types", None) or ["sliding_attention" if sliding else "full_attention"])
