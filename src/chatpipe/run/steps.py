"""The steps of a recipe: pretrain, sft, sample, rank, rm, ppo, then sample.2, rank.2, rm.2, ppo.2, and so on.

A run may begin with a later one (`Recipe.first_stage`), where the models of those before it are given.

This is the graph of a run. Each step knows the steps before it, from whose folders it reads.
"""

import gc
import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from chatpipe.errors import UsageError
from chatpipe.models.model_folder import check_tokenizer
from chatpipe.models.weight_files import parameters_in
from chatpipe.recipe.schema import Recipe
from chatpipe.stages.language_steps import PpoStep, PretrainStep, SftStep, expected_vocabulary
from chatpipe.stages.ranking_steps import RankStep, RmStep, SampleStep, samples
from chatpipe.stages.step import Step, folder_of

STAGES: Mapping[str, type[Step]] = {
    kind.stage: kind for kind in (PretrainStep, SftStep, SampleStep, RankStep, RmStep, PpoStep)
}
"""The stages in the order in which a round has them."""


def steps_of(recipe: Recipe) -> list[Step]:
    """All steps of a run in order."""
    rounds = range(1, recipe.rounds + 1)
    return [step_of(recipe, stage, n) for n in rounds for stage in STAGES if STAGES[stage].is_in(recipe, n)]


def step_of(recipe: Recipe, stage: str, number: int = 1, out: str | Path | None = None) -> Step:
    """The step of `stage` in round `number`, in the run's folder or in the folder `out` of its own.

    Raises `UsageError` where the stage has no such round.
    """
    if number > 1 and not STAGES[stage].in_rounds:
        raise UsageError(
            f"round = {number}: {stage} comes once, in the first round.",
            f"Leave it out; rounds have {', '.join(kind.stage for kind in STAGES.values() if kind.in_rounds)}.",
        )
    return STAGES[stage](recipe, number, Path(out) if out else folder_of(recipe, stage, number))


def steps_for(recipe: Recipe, stage: str, number: int = 1, out: str | Path | None = None) -> list[Step]:
    """The steps of `chatpipe STAGE`: rm comes with the rankings of its round, the others alone.

    Outside of a run (`out`) rm reads the rankings that `rm.data` names, and the run's own where it names none.
    """
    step = step_of(recipe, stage, number, out)
    if out is not None and not samples(recipe, number):
        return [step]
    before = [kind for kind in STAGES.values() if kind.command == stage != kind.stage]
    alone = recipe.model_copy(update={"start": stage})
    return [*(step_of(recipe, kind.stage, number) for kind in before if kind.is_in(alone, number)), step]


def step_named(recipe: Recipe, name: str, out: str | Path | None = None) -> Step:
    """The step called `name`, such as `rm.2`, in the run's folder or in the folder `out`."""
    stage, _, number = name.partition(".")
    return step_of(recipe, stage, int(number or 1), out)


def maker_of(step: Step, key: str = "model") -> Step | None:
    """The step of the same run that makes the model at `key`; None where the recipe names it."""
    makers = step.makers.get(key)
    return None if makers is None else step_named(step.recipe, makers[0])


def tokenizer_of(step: Step) -> str | None:
    """The folder or hub id of the tokenizer that reads the step's data; None where none has been made yet.

    Raises `UsageError` where it cannot be used.
    """
    for name in step.tokenizers().values():
        return name
    maker = maker_of(step)
    if maker is None and step.models:
        check_tokenizer(step.models["model"], f"{step.stage}.model")
        return step.models["model"]
    folder = Path(step.models["model"]) if step.models else step.folder
    if (folder / "tokenizer.json").is_file():
        return str(folder)
    return None if maker is None else tokenizer_of(maker)


def parameters_of(step: Step) -> int | str:
    """Of the model that is trained, or that answers: of a new one in closed form, of a saved one from its files.

    `unknown` where only the hub knows, or no safetensors file. Raises `UsageError` for a file that is damaged.
    """
    if not step.models:
        vocabulary = expected_vocabulary(step.recipe.pretrain)
        return "unknown" if vocabulary is None else step.recipe.pretrain.architecture.parameters(vocabulary)
    model = Path(step.models["model"]).expanduser()
    if model.is_dir():
        return sum(map(parameters_in, model.glob("*.safetensors"))) or "unknown"
    maker = maker_of(step)
    return "unknown" if maker is None else parameters_of(maker)


def stage_module(stage: str) -> Any:
    """The module of a stage, a `Stage`. Imported late: it brings torch along, which a wrong command must not wait for.

    The libraries make half a million objects that stay for good. The garbage collector waits until they are there:
    searching them took a fifth of the import.
    """
    assert stage in STAGES, stage
    collected = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"chatpipe.stages.{stage}")
    finally:
        if collected:
            gc.enable()
        _never_search_what_is_there()


@cache
def _never_search_what_is_there() -> None:
    """The collector leaves alone what the first stage has imported: a sixth of the time of a small run.

    Once, since the models of a stage must not be among it.
    """
    gc.freeze()
