"""What pretraining tells its trainer besides what every stage does."""

from typing import Any

from chatpipe.recipe.schema import Pretrain


def pretrain_arguments(section: Pretrain) -> dict[str, Any]:
    """Steps, evaluations and compilation, under the names of TrainingArguments."""
    return {
        "max_steps": section.max_steps,
        "eval_strategy": "no" if section.eval_steps is None else "steps",
        "eval_steps": section.eval_steps,
        "torch_compile": section.torch_compile,
    }
