"""Checks of a step before it starts: folder, data, models and code. No torch: it reports problems within a second."""

import difflib
import importlib.util
import os
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from chatpipe.checks.gate import Check, Checks, Finding, refuse
from chatpipe.data.worlds import world_named
from chatpipe.models.model_folder import check_model, check_tokenizer
from chatpipe.models.properties import leaves_room, positions_of
from chatpipe.recipe.schema import Recipe
from chatpipe.reward.functions import check_function
from chatpipe.run.folder import check_apart
from chatpipe.run.steps import maker_of, steps_of
from chatpipe.stages.step import Step


def check_recipe(recipe: Recipe) -> None:
    """Raises `UsageError` for the first thing that `recipe_checks` find wrong."""
    for _, checks in recipe_checks(recipe):
        _refuse_first(checks)


def check_step(step: Step, made: Collection[str] = (), reads_data: bool = True) -> None:
    """Raises `UsageError` for the first thing that `step_checks` find wrong."""
    _refuse_first(step_checks(step, made, reads_data))


def _refuse_first(checks: Checks) -> None:
    for key, check in checks.items():
        refuse({key: check})


def recipe_checks(recipe: Recipe) -> Iterator[tuple[str, Checks]]:
    """The checks of everything that a run needs, stage by stage; later rounds need nothing else."""
    made: set[str] = set()
    seen: set[str] = set()
    steps = steps_of(recipe)
    for step in steps:
        if step.stage not in seen:
            seen.add(step.stage)
            yield step.stage, step_checks(step, made)
        made.add(step.name)
    yield steps[-1].stage, {"pretrain.architecture.n_positions": partial(_answers_fit, recipe)}


def step_checks(step: Step, made: Collection[str] = (), reads_data: bool = True) -> Checks:
    """By recipe key: are data, models and code there and of the right kind, and is the folder none that is read from?

    Without `reads_data` the data may be missing. `made` names the steps that will have run before this one, so their
    folders need not exist yet.
    """
    checks: dict[str, Check] = {**step.own_checks(), "out": partial(_folder, step)}
    if step.trains:
        checks["report_to"] = partial(_trackers, step.recipe.report_to)
    for key, blocks in step.data.items() if reads_data else ():
        checks[key] = partial(step.check_data, key, blocks)
    for key, name in step.functions().items():
        checks[key] = partial(_function, key, name)
    for world in step.worlds_read():
        checks[world] = partial(_world, step, world)
    for key in step.models:
        checks[f"{step.stage}.{key}"] = partial(_model, step, key, made)
    for key, name in step.tokenizers().items():
        checks[key] = partial(_tokenizer, key, name)
    return checks


def _folder(step: Step) -> Finding | str:
    for path in (step.folder, *step.folder.parents):
        if path.exists() and not path.is_dir():
            return Finding(f"{path} is a file.", "Choose a folder with out= or --out.")
    there = next(path for path in (step.folder, *step.folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding(f"{there} cannot be written to.", "Choose another folder with out= or --out.")
    check_apart(step)
    return str(step.folder)


def _function(key: str, name: str) -> str:
    check_function(name, key)
    return name


def _world(step: Step, name: str) -> str:
    return world_named(name, step.recipe.worlds).summary()


def _tokenizer(key: str, name: str) -> str:
    check_tokenizer(name, key)
    return name


def _model(step: Step, key: str, made: Collection[str]) -> Finding | str:
    model, maker = step.models[key], maker_of(step, key)
    usual, *others = step.kinds(key)
    if maker is not None and maker.makes not in step.kinds(key):
        return Finding(
            f"{step.stage} starts from a causal language model; {maker.stage}.objective = masked makes an encoder.",
            f"Give {step.stage}.model. An encoder can be rm.model.",
        )
    if maker is not None and maker.name in made:
        return f"{model}, which {maker.name} makes"
    if maker is not None and not Path(model).is_dir():
        return _not_there(step, key, maker)
    check_model(model, usual, f"{step.stage}.{key}", others, reads_text=not step.tokenizers())
    folder = Path(model).expanduser()
    if folder.is_dir():
        step.check_positions(positions_of(folder))
    return model


def _not_there(step: Step, key: str, maker: Step) -> Finding:
    again = f"{maker.stage} ... round={maker.round}" if maker.round > 1 else maker.stage
    flag = {"model": "--model", "reward_model": "--reward"}[key]
    instead = f", or give a model with {step.command}.{key}=FOLDER ({flag})" if step.trains or step.round == 1 else ""
    return Finding(
        f"{step.name} starts from what {maker.name} makes, but there is no {step.models[key]} yet.",
        f"Run `chatpipe {again}` first{instead}.",
    )


def _answers_fit(recipe: Recipe) -> Finding | str:
    """The recipe sets how many tokens a new model reads, so answers without room for a prompt are found here."""
    first = steps_of(recipe)[0]
    if first.models or not first.trains or recipe.sft.model is not None:
        return "not the run's own model"
    positions = recipe.pretrain.architecture.n_positions
    lengths: dict[str, int | None] = {"evaluation.max_new_tokens": recipe.evaluation.max_new_tokens}
    if recipe.rm.data is None or recipe.rounds > 1:
        lengths["sample.max_new_tokens"] = recipe.sample.max_new_tokens
    if recipe.ppo.model is None:
        lengths["ppo.response_length"] = recipe.ppo.response_length
    for key, length in lengths.items():
        if length is not None and not leaves_room(1, length, positions):
            return Finding(
                f"{key} = {length} leaves no room for a prompt: the run's own model reads {positions} tokens in all.",
                "Lower it, or raise pretrain.architecture.n_positions.",
            )
    return f"room for answers in {positions} tokens"


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


def _trackers(report_to: list[str] | str) -> Finding | str:
    """Is each tracker known and installed? Trainer would ask after the data is read.

    `report_to` as in TrainingArguments: names, `none` or `all`.
    """
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name in ("none", "all"):
            continue
        if name not in PACKAGES:
            near = difflib.get_close_matches(name, PACKAGES, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(PACKAGES)}, or none."
            return Finding(f"report_to = {name} is not an experiment tracker.", hint)
        packages = PACKAGES[name]
        if not any(importlib.util.find_spec(package) for package in packages):
            return Finding(
                f"report_to = {name} needs a package that is not installed.",
                f"Run pip install {packages[0]}, or leave report_to out.",
            )
    return str(report_to)
