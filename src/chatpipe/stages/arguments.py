"""A stage's trainer arguments: what its section, its folder and the recipe say."""

from typing import Any, TypeVar

from transformers import TrainingArguments

from chatpipe.stages.job import Job
from chatpipe.training.arguments import training_arguments

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def stage_arguments(job: Job, cls: type[Arguments], **more: Any) -> Arguments:
    """`cls` for the job's trainer; `more` holds what only this stage has."""
    recipe = job.recipe
    return training_arguments(
        cls, job.section, job.stage, job.folder, recipe.seed, job.processes, recipe.report_to, **more
    )
