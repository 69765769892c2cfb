"""Experiment trackers that a recipe names: whether transformers knows them, and whether they are installed.

transformers' own check imports torch, which takes longer than the answer; a test keeps the names equal to its names.
"""

import difflib
import importlib.util

from chatpipe.errors import UsageError

PACKAGES: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune", "neptune_scale"),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""transformers' names of trackers, each with the packages of which one must be installed."""


def check_trackers(report_to: list[str] | str) -> None:
    """Raises `UsageError` for a tracker that is not known or not installed; Trainer would do so after reading the data.

    `report_to` as in TrainingArguments: names, `none` or `all`.
    """
    names = [report_to] if isinstance(report_to, str) else report_to
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in PACKAGES:
            near = difflib.get_close_matches(name, PACKAGES, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(PACKAGES)}, or none."
            raise UsageError(f"report_to = {name} is not an experiment tracker.", hint)
        packages = PACKAGES[name]
        if not any(importlib.util.find_spec(package) for package in packages):
            raise UsageError(
                f"report_to = {name} needs a package that is not installed.",
                f"Run pip install {packages[0]}, or leave report_to out.",
            )
