"""The steps of a recipe: pretrain, sft, sample, rank, rm, ppo, then sample.2, rank.2, rm.2, ppo.2, and so on.

This is the graph of a run. Each step is made with the folders of the steps before it, from which it reads.
"""

import gc
import importlib
import sys
from pathlib import Path
from typing import Any

from chatpipe.data.worlds import is_world
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock, Recipe
from chatpipe.reward.functions import is_function
from chatpipe.stages.step import COMPLETIONS, COMPLETIONS_FILE, PEOPLE, RANKINGS_FILE, STAGES, Step, name_of

STAGES_OF_ROUNDS = ("sample", "rank", "rm", "ppo")
"""What every round has again; the others come once."""

# Which step of the same run makes the model that a stage starts from, where the recipe names no other.
_MAKERS: dict[str, dict[str, str]] = {
    "sft": {"model": "pretrain"},
    "sample": {"model": "sft"},
    "rm": {"model": "sft"},
    "ppo": {"model": "sft", "reward_model": "rm"},
}


def steps_of(recipe: Recipe) -> list[Step]:
    """All steps of a run in order."""
    steps = []
    for number in range(1, recipe.rounds + 1):
        stages = STAGES if number == 1 else STAGES_OF_ROUNDS
        steps += [step_of(recipe, stage, number) for stage in stages if stage != "sample" or samples(recipe, number)]
    return steps


def step_of(recipe: Recipe, stage: str, number: int = 1, out: str | Path | None = None) -> Step:
    """The step of `stage` in round `number`, in the run's folder or in the folder `out` of its own.

    Raises `UsageError` where the stage has no such round.
    """
    if number > 1 and stage not in STAGES_OF_ROUNDS:
        raise UsageError(
            f"round = {number}: {stage} comes once, in the first round.",
            f"Leave it out; rounds have {', '.join(STAGES_OF_ROUNDS)}.",
        )
    models, makers = _models(recipe, stage, number)
    data, makers_of_data = _data(recipe, stage, number)
    return Step(
        recipe,
        stage,
        number,
        Path(out) if out else folder_of(recipe, stage, number),
        models,
        data,
        {**makers, **makers_of_data},
        first_policy=step_of(recipe, "ppo").models["model"] if stage == "ppo" and number > 1 else None,
    )


def steps_for(recipe: Recipe, stage: str, number: int = 1, out: str | Path | None = None) -> list[Step]:
    """The steps of `chatpipe STAGE`: rm comes with the rankings of its round, the others alone.

    Outside of a run (`out`) rm reads the rankings that `rm.data` names, and the run's own where it names none.
    """
    step = step_of(recipe, stage, number, out)
    if stage != "rm" or (out is not None and not samples(recipe, number)):
        return [step]
    before = ["sample", "rank"] if samples(recipe, number) else ["rank"]
    return [*(step_of(recipe, stage, number) for stage in before), step]


def step_named(recipe: Recipe, name: str, out: str | Path) -> Step:
    """The step called `name`, such as `rm.2`, in the folder `out`."""
    stage, _, number = name.partition(".")
    return step_of(recipe, stage, int(number or 1), out)


def maker_of(step: Step, key: str = "model") -> Step | None:
    """The step of the same run that makes the model at `key`; None where the recipe names it."""
    for name in step.makers.get(key, ()):
        stage, _, number = name.partition(".")
        return step_of(step.recipe, stage, int(number or 1))
    return None


def stage_module(stage: str) -> Any:
    """The module of a stage. Imported late: it brings torch along, which a wrong command must not wait for.

    The libraries make half a million objects that stay for good. The garbage collector waits until they are there and
    leaves them alone from then on: searching them took a fifth of the import, and a sixth of the time of a small run.
    """
    assert stage in STAGES, stage
    name = f"chatpipe.stages.{stage}"
    if name not in sys.modules:
        collected = gc.isenabled()
        gc.disable()
        try:
            importlib.import_module(name)
        finally:
            if collected:
                gc.enable()
        gc.freeze()
    return sys.modules[name]


def samples(recipe: Recipe, number: int) -> bool:
    """Whether the run samples and ranks in round `number`: not where the first round reads `rm.data`."""
    return recipe.rm.data is None or number > 1


def folder_of(recipe: Recipe, stage: str, number: int = 1) -> Path:
    """The folder in the run of a stage in round `number`."""
    return Path(recipe.out) / _name_in_run(stage, number)


def _name_in_run(stage: str, number: int) -> str:
    return name_of(stage, number if stage in STAGES_OF_ROUNDS else 1)


def _models(recipe: Recipe, stage: str, number: int) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Key -> model, and key -> the step that makes it, where the run itself does."""
    given = _given_models(recipe, stage, number)
    models: dict[str, str] = {}
    makers: dict[str, tuple[str, ...]] = {}
    for key, stage_before in _MAKERS.get(stage, {}).items():
        if key in given or (key == "reward_model" and recipe.ppo.reward is not None):
            continue
        # In later rounds the newest policy answers and is trained further.
        goes_on = number > 1 and key == "model" and stage in ("sample", "ppo")
        maker = ("ppo", number - 1) if goes_on else (stage_before, number)
        models[key] = str(folder_of(recipe, *maker))
        makers[key] = (_name_in_run(*maker),)
    models |= given
    return {key: models[key] for key in sorted(models, key=_place)}, makers


def _place(key: str) -> int:
    """The model that is trained first, then those that are trained on, then the one that is not."""
    return 0 if key == "model" else 2 if key == "oracle_reward_model" else 1


def _given_models(recipe: Recipe, stage: str, number: int) -> dict[str, str]:
    """Key -> model that the recipe names."""
    given: dict[str, str | None] = {}
    if stage in ("pretrain", "sft", "rm"):
        given["model"] = getattr(recipe, stage).model
    elif stage == "sample":
        given["model"] = recipe.rm.model if number == 1 else None
    elif stage == "rank" and samples(recipe, number) and rater_is_model(recipe):
        given["rater"] = recipe.rank.rater
    elif stage == "ppo":
        given["model"] = recipe.ppo.model if number == 1 else None
        given["reward_model"] = recipe.ppo.reward_model
        given |= {f"reward.{i}": source.model for i, source in enumerate(recipe.ppo.reward or [])}
        given["oracle_reward_model"] = recipe.ppo.oracle_reward_model
    return {key: model for key, model in given.items() if model is not None}


def _data(recipe: Recipe, stage: str, number: int) -> tuple[dict[str, list[DataBlock]], dict[str, tuple[str, ...]]]:
    """Recipe key -> data, and key -> the steps that make it, where the run itself does."""
    if stage == "rank":
        if not samples(recipe, number):
            return {"rm.data": recipe.rm.data or []}, {}
        completions = folder_of(recipe, "sample", number) / COMPLETIONS_FILE
        return {COMPLETIONS: [DataBlock(source=str(completions))]}, {COMPLETIONS: (name_of("sample", number),)}
    if stage == "rm":
        demonstrations = {"sft.data": recipe.sft.data} if recipe.sft.data else {}
        blocks, makers = _rankings(recipe, number)
        return {"rm.data": blocks, **demonstrations}, {"rm.data": makers} if makers else {}
    if stage == "ppo":
        text = {"ppo.ptx_data": recipe.ppo.ptx_data or recipe.pretrain.data or []} if recipe.ppo.ptx_coef > 0 else {}
        return {"ppo.data": recipe.ppo.data or recipe.rm.data or recipe.sample.data or [], **text}, {}
    data = {f"{stage}.data": getattr(recipe, stage).data or []}
    if stage == "sft" and recipe.sft.pretrain_mix > 0:
        data["pretrain.data"] = recipe.pretrain.data or []
    return data, {}


def _rankings(recipe: Recipe, number: int) -> tuple[list[DataBlock], tuple[str, ...]]:
    """The rankings of all rounds up to `number`, and the steps that make them."""
    blocks: list[DataBlock] = []
    makers: list[str] = []
    for earlier in range(1, number + 1):
        weight = recipe.rm.age_weight ** (number - earlier)
        if weight == 0:
            continue
        if samples(recipe, earlier):
            own = str(folder_of(recipe, "rank", earlier) / RANKINGS_FILE)
            blocks.append(DataBlock(source=own, format="rankings", weight=weight))
            makers.append(name_of("rank", earlier))
        else:
            read = recipe.rm.data or []
            blocks += [block.model_copy(update={"weight": block.weight * weight}) for block in read]
    return blocks, tuple(makers)


def rater_is_model(recipe: Recipe) -> bool:
    """Whether the rater is a reward model, which is known by its weights and not by its place."""
    rater = recipe.rank.rater
    return not (rater == PEOPLE or is_world(rater) or is_function(rater))
