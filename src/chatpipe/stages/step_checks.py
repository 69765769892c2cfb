"""What is looked at before a stage starts: data, models, code, folder. No torch: what is wrong is answered at once."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from chatpipe.data.datasets import check_rows
from chatpipe.data.documents import check_documents
from chatpipe.data.worlds import world_named
from chatpipe.errors import UsageError
from chatpipe.models.model_folder import Kind, check_model, check_tokenizer, positions_of
from chatpipe.models.vocabulary import expected_vocabulary
from chatpipe.recipe.schema import DataBlock
from chatpipe.reward.functions import check_function
from chatpipe.stages.step import (
    PARENTS,
    STAGES_OF_ROUNDS,
    WHAT_OF_KEY,
    Step,
    given_model,
    parent_of,
    rankings_file,
    run_ranks,
)

Check = Callable[[], str]
"""Says in a few words what was found; raises `UsageError` where that cannot be used."""

NOTHING: frozenset[str] = frozenset()


def check_step(step: Step, made_by_this_run: frozenset[str] = NOTHING, reads_data: bool = True) -> None:
    """Raises `UsageError` for the first thing that `step_checks` finds."""
    for _, check in step_checks(step, made_by_this_run, reads_data):
        check()


def step_checks(
    step: Step, made_by_this_run: frozenset[str] = NOTHING, reads_data: bool = True
) -> Iterator[tuple[str, Check]]:
    """By recipe key: are data, models and code there and of the right kind, and is the folder none that is read from?

    Without `reads_data` the data may be missing. `made_by_this_run` names the stages that will have run before this
    one, so their folders need not exist yet.
    """
    yield "out", partial(_folder, step)
    yield "report_to", partial(_trackers, step)
    for key, blocks in step.data().items() if reads_data else ():
        yield key, partial(_data, step, key, blocks)
    for key, name in step.functions().items():
        yield key, partial(_function, key, name)
    for world in step.worlds_read():
        yield world, partial(_world, step, world)
    for key in step.models:
        yield f"{step.stage}.{key}", partial(_model, step, key, made_by_this_run)
    if step.stage == "pretrain" and not step.models:
        yield "pretrain.architecture", partial(_new_model, step)
    tokenizer = step.recipe.pretrain.tokenizer.pretrained
    if step.stage == "pretrain" and tokenizer:
        yield "pretrain.tokenizer.pretrained", partial(_tokenizer, tokenizer)


def _folder(step: Step) -> str:
    for path in (step.folder, *step.folder.parents):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file.", "Choose a folder with out= or --out.")
    step.check_apart()
    return str(step.folder)


def _trackers(step: Step) -> str:
    if step.recipe.report_to != "none":
        from chatpipe.training.arguments import check_trackers  # imports torch

        check_trackers(step.recipe.report_to)
    return str(step.recipe.report_to)


def _data(step: Step, key: str, blocks: list[DataBlock]) -> str:
    if key not in WHAT_OF_KEY:
        check_documents(blocks, key)
    elif key == "rm.data" and run_ranks(step.recipe):
        return f"the run's own rankings: {rankings_file(step.recipe)}"
    else:
        report = check_rows(WHAT_OF_KEY[key], blocks, key)
        if report.sources:
            return "; ".join(source.line() for source in report.sources)
    return ", ".join(block.source for block in blocks)


def _function(key: str, name: str) -> str:
    check_function(name, key)
    return name


def _world(step: Step, name: str) -> str:
    return world_named(name, step.recipe.worlds).summary()


def _tokenizer(name: str) -> str:
    check_tokenizer(name, "pretrain.tokenizer.pretrained")
    return name


def _model(step: Step, key: str, made_by_this_run: frozenset[str]) -> str:
    model = step.models[key]
    given = key not in PARENTS[step.stage] or given_model(step.recipe, step.stage, key) is not None
    parent, number = (None, 1) if given else parent_of(step.recipe, step.stage, key)
    if not given and parent == "pretrain" and step.recipe.pretrain.objective == "masked":
        raise UsageError(
            f"{step.stage} starts from a causal language model; pretrain.objective = masked makes an encoder.",
            f"Give {step.stage}.model. An encoder can be rm.model.",
        )
    if not given and parent in made_by_this_run:
        return f"{model}, which {parent} makes"
    if not given and not Path(model).is_dir():
        again = f" ... round={number}" if number > 1 and parent in STAGES_OF_ROUNDS else ""
        flag = {"model": "--model", "reward_model": "--reward"}[key]
        raise UsageError(
            f"{step.stage} starts from what {parent} makes, but there is no {model} yet.",
            f"Run `chatpipe {parent}{again}` first, or give a model with {flag}.",
        )
    check_model(
        model,
        _kind(step, key),
        f"{step.stage}.{key}",
        or_else="masked" if step.stage == "rm" else None,
        reads_text=step.stage != "pretrain" or step.recipe.pretrain.tokenizer.pretrained is None,
    )
    folder = Path(model).expanduser()
    if step.stage == "pretrain" and folder.is_dir():
        check_context(step.recipe.pretrain.block_size, positions_of(folder))
    return model


def check_context(block_size: int, positions: int | None) -> None:
    """Raises `UsageError` where the model that pretraining goes on from cannot read so many tokens at once."""
    if positions is not None and block_size > positions:
        raise UsageError(
            f"pretrain.block_size = {block_size}, but the model reads {positions} tokens at most.",
            "Lower it, or go on from a model with more positions.",
        )


def _kind(step: Step, key: str) -> Kind:
    """What kind of model the section's `key` names."""
    if key != "model":
        return "reward"
    return step.recipe.pretrain.objective if step.stage == "pretrain" else "causal"


def _new_model(step: Step) -> str:
    """Raises `UsageError` where a new model could not learn what it is to learn, or not read its blocks."""
    section = step.recipe.pretrain
    architecture = section.architecture
    if architecture.objective != section.objective:
        raise UsageError(
            f"pretrain.objective = {section.objective}, but a model of pretrain.architecture.family = "
            f"{architecture.family} learns the {architecture.objective} one.",
            "Set one to fit the other: encoders (modernbert, presets encoder-...) are masked, all others causal.",
        )
    if section.block_size > architecture.n_positions:
        raise UsageError(
            f"pretrain.block_size = {section.block_size}, but the model reads {architecture.n_positions} tokens "
            "at most.",
            "Lower it, or raise pretrain.architecture.n_positions.",
        )
    vocabulary = expected_vocabulary(section)
    if vocabulary is None:
        return f"{architecture.family}, as many tokens as its tokenizer has"
    return f"{architecture.family}, {architecture.parameters(vocabulary):,} parameters"
