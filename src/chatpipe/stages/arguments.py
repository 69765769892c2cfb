"""A stage's trainer arguments: what its section, its folder and the recipe say."""

from typing import Any, TypeVar

from transformers import TrainingArguments

from chatpipe.stages.step import Step
from chatpipe.training.arguments import training_arguments

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def stage_arguments(step: Step, cls: type[Arguments], **more: Any) -> Arguments:
    """`cls` for the step's trainer; `more` holds what only this stage has."""
    recipe = step.recipe
    return training_arguments(
        cls, step.section, step.stage, step.folder, recipe.seed, step.processes, recipe.report_to, **more
    )
