"""Chains the stages of a recipe: what is done is skipped, what broke off goes on, rankings are made in between."""

import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from chatpipe.data.durable import PARTIAL, replace_text
from chatpipe.data.locking import alone_in
from chatpipe.errors import UsageError
from chatpipe.models.context import leaves_room
from chatpipe.models.manifest import Manifest, read_manifest, write_manifest
from chatpipe.recipe.loading import flatten, load_recipe
from chatpipe.recipe.schema import Recipe
from chatpipe.run import launch
from chatpipe.stages.rankings_of_run import (
    check_nobody_ranked,
    check_rankings_apart,
    check_rankings_can_be_made,
    ensure_rankings,
    forget_rankings,
    tell_newer_rankings,
)
from chatpipe.stages.step import (
    STAGES_OF_ROUNDS,
    Outcome,
    Standing,
    Step,
    answering_model,
    folder_in_run,
    in_round,
    rankings_file,
    rater_is_model,
    run_ranks,
)
from chatpipe.stages.step_checks import Check, check_step, step_checks
from chatpipe.training.batches import micro_batches

RECIPE_FILE = "recipe.yaml"
HEADER = "# Every value of this run; `chatpipe run` on this file gives the same run.\n"


@dataclass(frozen=True)
class How:
    """How the stages are run: started over or not, in how many processes, with which accelerate flags."""

    processes: int
    launch: str | None = None
    accelerate_flags: Sequence[str] = ()
    fresh: bool = False


@dataclass
class StageResult:
    """What a stage has to say for itself; `skipped` when it was done already.

    `measured_otherwise` says where the recipe's evaluation differs from how the stored result was measured.
    """

    stage: str
    out: Path
    manifest: Manifest
    skipped: bool
    measured_otherwise: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The stage, in later rounds with the round's number, as its folder in a run is called."""
        return self.stage if self.manifest.round == 1 else f"{self.stage}.{self.manifest.round}"

    def to_json(self) -> dict[str, Any]:
        """The object of the contract; in later rounds with the round's number."""
        return {
            "stage": self.stage,
            **({"round": self.manifest.round} if self.manifest.round > 1 else {}),
            "out": str(self.out),
            "seconds": round(self.manifest.seconds, 1),
            "processes": self.manifest.processes,
            "skipped": self.skipped,
            "metrics": self.manifest.metrics,
            "verdict": self.manifest.verdict,
        }


def run_recipe(recipe: Recipe, how: How, on_result: Callable[[StageResult], None]) -> None:
    """Runs all stages and rounds of a recipe in its folder; `on_result` hears of each as soon as it is there.

    Raises `WaitingForRankings` where people are to rank first.
    """
    if launch.is_rank():
        raise UsageError(
            "`chatpipe run` starts its processes itself, and runs under no launcher.",
            "Use --processes N, or launch the stages one by one: chatpipe pretrain, sft, rm, ppo.",
        )
    check_recipe(recipe)
    check_folder(recipe, how.fresh)
    steps = Step.all_of(recipe)
    for step in steps:
        micro_batches(step.section, how.processes, step.stage)
    with alone_in(Path(recipe.out)):
        if how.fresh:
            in_folder = _steps_in_folder(recipe)
            for step in in_folder:
                if step.stage == "rm":  # first, since it is refused where somebody ranks
                    forget_rankings(step.recipe)
                    check_nobody_ranked(step.recipe)
            for step in in_folder:
                step.clear()
        write_recipe(recipe, Path(recipe.out) / RECIPE_FILE)
        for step in steps:
            on_result(run_stage(step, how, _standing_with_rankings(step, how)))


def run_one(recipe: Recipe, stage: str, how: How, out: str | None) -> StageResult:
    """Runs one stage, in the run's folder or in the folder `out` of its own."""
    step = check_stage(recipe, stage, out)
    micro_batches(step.section, how.processes, stage)
    if launch.has_parent():  # which has looked at everything before it launched this rank
        return run_stage(step, how, "new")
    if not step.is_main:
        return run_stage(step, how, _standing(step, how))
    if how.fresh:  # which may delete the folder that is held
        with alone_in(Path(out or recipe.out)):
            if stage == "rm" and out is None:
                forget_rankings(recipe)
            step.clear()
    with ExitStack() as held:
        held.enter_context(alone_in(Path(out or recipe.out)))
        reads_run = stage == "rm" and run_ranks(recipe)
        if out is not None and reads_run and Path(out).resolve() != Path(recipe.out).resolve():
            held.enter_context(alone_in(Path(recipe.out)))
        if out is None or reads_run:
            standing = _standing_with_rankings(step, how, in_run=out is None)
        else:
            standing = _standing(step, how)
        if standing == "done":
            step.check_whole()
        if out is None:
            _note_in_run(recipe, stage)
        return run_stage(step, how, standing)


def check_stage(recipe: Recipe, stage: str, out: str | None, reads_data: bool = True) -> Step:
    """The step of one stage; raises `UsageError` where its data, its models or its folder cannot be used.

    Without `reads_data` the data may be missing.
    """
    if out == "":  # as of a shell variable that is not set
        raise UsageError("--out is empty.", "Give a folder, or leave it out.")
    if recipe.round > 1 and stage not in STAGES_OF_ROUNDS:
        raise UsageError(
            f"round = {recipe.round}: {stage} comes once, in the first round.",
            f"Leave it out; rounds have {' and '.join(STAGES_OF_ROUNDS)}.",
        )
    step = Step.of(recipe, stage, out)
    if out is None:
        _check_run(recipe)
    if stage == "rm" and run_ranks(recipe):
        check_rankings_can_be_made(recipe)
    check_step(step, reads_data=reads_data)
    return step


def check_recipe(recipe: Recipe) -> None:
    """Raises `UsageError` for whatever can be known to be wrong before the first stage starts, without torch."""
    for _, _, check in recipe_checks(recipe):
        check()


def recipe_checks(recipe: Recipe) -> Iterator[tuple[str, str, Check]]:
    """Stage, recipe key and check of whatever can be known to be wrong before the first stage starts, without torch."""
    yield "", "round", partial(_check_round, recipe)
    done: frozenset[str] = frozenset()
    for step in Step.all_of(in_round(recipe, 1)):
        for key, check in step_checks(step, made_by_this_run=done):
            yield step.stage, key, check
        done |= {step.stage}
    if recipe.rm.data is None or recipe.rounds > 1:
        yield "rm", "sample.data", partial(check_rankings_can_be_made, recipe)
    if recipe.rm.data is not None:
        yield "rm", "rankings", partial(check_rankings_apart, recipe)
    yield "ppo", "pretrain.architecture.n_positions", partial(_check_answers_fit, recipe)


def run_stage(step: Step, how: How, standing: Standing) -> StageResult:
    """Runs one stage in place or through the launcher, unless it is done already."""
    if standing == "done":
        manifest = read_manifest(step.folder)
        assert manifest is not None
        return StageResult(step.stage, step.folder, manifest, True, manifest.measured_otherwise(step.evaluation()))
    if how.processes > 1 and not launch.is_rank():
        _run_launched(step, how)
    else:
        _run_here(step)
    manifest = read_manifest(step.folder)
    assert manifest is not None or not step.is_main, f"{step.stage} left no manifest"
    return StageResult(step.stage, step.folder, manifest or step.manifest(), skipped=False)


def _standing_with_rankings(step: Step, how: How, in_run: bool = True) -> Standing:
    """As `_standing`, once the rankings are there that rm learns from; what it has begun with stays as it is.

    The run's rankings are not replaced for a stage outside of it.
    """
    if step.stage != "rm":
        return _standing(step, how)
    if rankings_file(step.recipe).exists():
        standing = _standing(step, how)
        if standing != "new":
            tell_newer_rankings(step.recipe)
            return standing
    if run_ranks(step.recipe):
        _prepare_process()
    ensure_rankings(step.recipe, may_replace=in_run)
    return _standing(step, how)


def _standing(step: Step, how: How) -> Standing:
    """How far the stage is; raises `UsageError` where its folder holds something else."""
    # What was cleared is new, also to ranks that may still see it; and a parent has looked before it launched.
    return "new" if how.fresh or launch.has_parent() else step.standing()


def _run_here(step: Step) -> None:
    """Runs the stage in this process, which may be one rank of several."""
    _prepare_process()
    if launch.has_parent():
        launch.stop_with_parent()
    if launch.is_rank():
        launch.join_world(step.processes)
    # Taken now: what is edited while the stage trains is not what it was made from.
    manifest = step.begin() if step.is_main else None
    start = time.monotonic()
    # Imported here since a stage brings torch along, which a wrong command must not wait for.
    module = importlib.import_module(f"chatpipe.stages.{step.stage}")
    outcome: Outcome | None = module.run(step)
    if manifest is None or outcome is None:
        return
    manifest.metrics, manifest.verdict = outcome.metrics, outcome.verdict
    manifest.seconds = time.monotonic() - start
    write_manifest(step.folder, manifest)


def _run_launched(step: Step, how: How) -> None:
    """Starts the stage again in several processes, from a recipe file in its folder that holds every value."""
    step.begin()  # from now on the folder is known as ours, also if no rank lives to say so
    write_recipe(step.recipe, step.folder / RECIPE_FILE)
    launch.launch(launch_command(step, how), how.processes, step.stage, step.folder)


def launch_command(step: Step, how: How) -> list[str]:
    """What starts the stage in several processes."""
    arguments = [step.stage, str(step.folder / RECIPE_FILE), "--out", str(step.folder)]
    return launch.accelerate_command(how.processes, how.launch, how.accelerate_flags, arguments)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes every value of a recipe; running the file gives the same run. Replaces only what chatpipe wrote."""
    text = HEADER + yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    before = path.read_text(encoding="utf-8") if path.exists() else HEADER
    if not before.startswith(HEADER):
        raise UsageError(f"{path} is a recipe of your own; the run would replace it.", "Choose another folder: out=.")
    if before != text:
        replace_text(path, text)


def check_folder(recipe: Recipe, fresh: bool) -> None:
    """Raises `UsageError` where the run's folder holds something else, or a run of another recipe. Changes nothing."""
    run = Path(recipe.out)
    if not run.exists():
        return
    before = _recipe_of_run(run)
    if before is None and any(path.suffix != PARTIAL for path in run.iterdir()):
        raise UsageError(f"out = {run} holds something that chatpipe did not make.", "Choose another folder: out=.")
    if fresh:
        for step in _steps_in_folder(recipe):  # all of them before the first is deleted
            step.check_ours()
            _check_rater_stays(step)
            if step.stage == "rm":
                check_nobody_ranked(step.recipe)
    if before is None or fresh:
        return
    _check_same_run(before, recipe)
    to_be_made: set[str] = set()
    steps = Step.all_of(recipe)
    for step in steps:
        if step.folder.exists() and (step.stage != "rm" or rankings_file(step.recipe).exists()):
            step.standing(to_be_made)
        if read_manifest(step.folder) is None:
            to_be_made.add(str(step.folder))
    read = {model for step in steps if str(step.folder) in to_be_made for model in _reads(step)}
    for step in steps:  # the weights of stages that nothing reads any more may have been deleted
        if str(step.folder) not in to_be_made and (str(step.folder) in read or step is steps[-1]):
            step.check_whole()


def _check_rater_stays(step: Step) -> None:
    """Raises `UsageError` where the rater is a model in the stage's folder, which --fresh deletes."""
    rater = step.recipe.rank.rater
    if rater_is_model(step.recipe) and Path(rater).resolve().is_relative_to(step.folder.resolve()):
        raise UsageError(
            f"rank.rater = {rater} lies in {step.folder}, which --fresh deletes.",
            "Copy it to another place and name the copy, or choose another folder with out=.",
        )


def _reads(step: Step) -> list[str]:
    """The models that decide what a stage makes: what it starts from, and whose answers were ranked."""
    return [*step.models.values(), *([answering_model(step.recipe)] if step.stage == "rm" else [])]


def _steps_in_folder(recipe: Recipe) -> list[Step]:
    """The steps of the run and of the further rounds that its folder holds."""
    rounds = recipe.rounds
    while any(folder_in_run(recipe, stage, rounds + 1).exists() for stage in STAGES_OF_ROUNDS):
        rounds += 1
    return Step.all_of(recipe.model_copy(update={"rounds": rounds}))


def _note_in_run(recipe: Recipe, stage: str) -> None:
    """Writes the stage's sections into the run's recipe; the other stages' stay as they were.

    A later round's stage writes nothing: its sections are those of the first round, too.
    """
    run = Path(recipe.out)
    before = _recipe_of_run(run)
    if before is not None:
        if recipe.round > 1:
            return
        sections = {stage, *(("sample", "rank") if stage == "rm" else ())}
        recipe = before.model_copy(update={name: getattr(recipe, name) for name in sections})
    write_recipe(in_round(recipe, 1), run / RECIPE_FILE)


def _check_run(recipe: Recipe) -> None:
    """Raises `UsageError` where a stage does not belong to the run, or reads what is written there."""
    before = _recipe_of_run(Path(recipe.out))
    if before is not None:
        _check_same_run(before, recipe)
    check_rankings_apart(recipe)


def _recipe_of_run(run: Path) -> Recipe | None:
    path = run / RECIPE_FILE
    return load_recipe(str(path)).recipe if path.exists() else None


def _check_same_run(before: Recipe, now: Recipe) -> None:
    """The stages of a run share the seed and the world; what belongs to one stage is compared with that stage."""
    old, new = (flatten(some.model_dump(mode="json", include={"seed", *some.worlds})) for some in (before, now))
    changed = [f"{key} was {old[key]}, is {new[key]} now" for key in new if old[key] != new[key]]
    if changed:
        raise UsageError(
            "\n".join([f"{now.out} holds another run:", *changed]),
            "Choose another folder with out=, or `chatpipe run ... --fresh` (the old run is deleted).",
        )


def _check_round(recipe: Recipe) -> str:
    if recipe.round != 1:
        raise UsageError(
            f"round = {recipe.round} is for one stage alone, such as `chatpipe ppo RECIPE round={recipe.round}`.",
            "A run takes all its rounds: rounds=N.",
        )
    return f"1 to {recipe.rounds}"


def _check_answers_fit(recipe: Recipe) -> str:
    """How much a new model reads stands in the recipe: answers that leave no room for a prompt are known beforehand."""
    if recipe.pretrain.model is not None or recipe.sft.model is not None:
        return "not the run's own model"
    positions = recipe.pretrain.architecture.n_positions
    lengths = {"evaluation.max_new_tokens": recipe.evaluation.max_new_tokens}
    if recipe.rm.data is None or recipe.rounds > 1:
        lengths["sample.max_new_tokens"] = recipe.sample.max_new_tokens
    if recipe.ppo.model is None:
        lengths["ppo.response_length"] = recipe.ppo.response_length
    for key, length in lengths.items():
        if not leaves_room(1, length, positions):
            raise UsageError(
                f"{key} = {length} leaves no room for a prompt: the run's own model reads {positions} tokens in all.",
                "Lower it, or raise pretrain.architecture.n_positions.",
            )
    return f"room for answers in {positions} tokens"


def _prepare_process() -> None:
    """What this process needs once before it trains or samples; imported late, for it brings torch along."""
    from chatpipe.training.process import prepare_process

    prepare_process()


def processes_of(recipe: Recipe) -> int:
    """How many processes a recipe runs in: what it says, else as many as visible GPUs, one on a CPU."""
    if launch.is_rank():
        return int(os.environ["WORLD_SIZE"])
    return recipe.processes or launch.default_processes()
