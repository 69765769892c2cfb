"""Is a step done, can it be resumed, or is it new? One rule for all steps.

The manifest of a step holds everything that its result depends on, and the fingerprint of that. Where a folder holds
the manifest that the step would have today, the step is done, or, while it is unfinished, can be resumed. Where the
manifest is another one, the folder holds something else, which nothing here replaces.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from chatpipe.data.durable import replace_text
from chatpipe.data.sources import data_fingerprints
from chatpipe.errors import UsageError
from chatpipe.models.manifest import Manifest, checkpoint_id, read_manifest
from chatpipe.models.weight_files import check_weights
from chatpipe.recipe.loading import flatten
from chatpipe.reward.functions import source_fingerprint
from chatpipe.run.folder import STARTED, is_foreign
from chatpipe.stages.step import Step

Status = Literal["done", "started", "new"]

MAX_CHANGES = 4


def status(step: Step, to_be_made: Collection[str] = ()) -> Status:
    """Whether the step is done, resumable, or new.

    Raises `UsageError` where the folder holds something else; the message names what changed. What the steps
    `to_be_made` will make is not compared.
    """
    if not step.folder.exists():
        return "new"
    if is_foreign(step.folder):
        raise UsageError(
            f"{step.folder} holds something that chatpipe did not make.", "Choose another folder with out= or --out."
        )
    finished = read_manifest(step.folder)
    before = finished or read_manifest(step.folder, STARTED)
    if before is None or (finished is None and not any(step.folder.glob(step.resume_points))):
        return "new"  # it stopped, perhaps because of its data, before there was anything to resume
    unknown = [key for key, makers in step.makers.items() if not set(makers).isdisjoint(to_be_made)]
    now = manifest_of(step, unknown)
    if not unknown and before.fingerprint == now.fingerprint:
        return "done" if finished else "started"
    changed = _without(before, step, unknown).differences(now)
    if changed:
        more = [f"... and {len(changed) - MAX_CHANGES} more"] if len(changed) > MAX_CHANGES else []
        raise UsageError(
            "\n".join([f"{step.folder} holds another {step.stage}:", *changed[:MAX_CHANGES], *more]),
            f"`{again(step)}` makes it again (the old one is deleted), or use another folder.",
        )
    return "done" if finished else "started"


def check_statuses(steps: Sequence[Step], cleared: Collection[Step] = ()) -> None:
    """Raises `UsageError` where the folder of a step holds something else, or a step reads what is no longer whole.

    What is `cleared` first is not looked at. The files of a step that nothing reads any more may have been deleted.
    """
    to_be_made = {step.name for step in cleared}
    for step in steps:
        if step not in cleared and status(step, to_be_made) != "done":
            to_be_made.add(step.name)
    read = {maker for step in steps if step.name in to_be_made for makers in step.makers.values() for maker in makers}
    for step in steps:
        if step.name not in to_be_made and (step.name in read or step is steps[-1]):
            check_whole(step)


def check_whole(step: Step) -> None:
    """Raises `UsageError` where what the finished step made is gone or damaged."""
    try:
        if step.result is None:
            check_weights(step.folder, str(step.folder))
        elif not (step.folder / step.result).is_file():
            raise UsageError(f"{step.folder} has no {step.result}.")
    except UsageError as problem:
        raise UsageError(problem.message, f"`{again(step)}` makes it again.") from problem


def manifest_of(step: Step, without: Collection[str] = ()) -> Manifest:
    """The manifest that the step would have now, without results and without the models and data at some keys."""
    parents = {f"{step.stage}.{key}": checkpoint_id(model) for key, model in step.models.items() if key not in without}
    parents |= {key: checkpoint_id(tokenizer) for key, tokenizer in step.tokenizers().items()}
    data = {
        key: _in_run(step, data_fingerprints(blocks, key)) for key, blocks in step.data.items() if key not in without
    }
    functions = {key: {name: source_fingerprint(name, key)} for key, name in step.functions().items()}
    return Manifest(
        stage=step.stage,
        parents=parents,
        data={**data, **functions},
        settings={"seed": step.recipe.seed, **step.settings()},
        seed=step.recipe.seed,
        round=step.round,
        processes=step.processes,
        evaluation=evaluation_of(step),
    )


def evaluation_of(step: Step) -> dict[str, Any]:
    """Dotted recipe keys on which only the measuring of the result depends, with their values."""
    if not step.has_evaluation:
        return {}
    return flatten({"evaluation": step.recipe.evaluation.model_dump(mode="json")})


def begin(step: Step) -> Manifest:
    """Notes how the step is made before it starts, so that a changed recipe cannot resume it; returns the note."""
    manifest = manifest_of(step)
    replace_text(step.folder / STARTED, json.dumps(asdict(manifest), indent=2))
    return manifest


def again(step: Step) -> str:
    """The command that makes the step again. The rankings of a round are made by its rm."""
    return f"chatpipe {step.command} ... {f'round={step.round} ' if step.round > 1 else ''}--fresh"


def _in_run(step: Step, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """A model or file that the run made is named relative to the run's folder, because a run may be moved."""
    run = Path(step.recipe.out)
    return {
        str(Path(source).relative_to(run)) if Path(source).is_relative_to(run) else source: content
        for source, content in fingerprints.items()
    }


def _without(manifest: Manifest, step: Step, keys: Collection[str]) -> Manifest:
    parents = {key: id for key, id in manifest.parents.items() if key.removeprefix(f"{step.stage}.") not in keys}
    return replace(
        manifest, parents=parents, data={key: some for key, some in manifest.data.items() if key not in keys}
    )
