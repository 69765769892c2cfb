"""A step of a run: one stage in one round, with its folder and everything that it reads.

What a run asks of any step is here; `run.steps` lists the six stages. Nothing here imports torch, so that a wrong
command is answered at once.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from chatpipe.checks.gate import Checks, Finding
from chatpipe.data.datasets import check_rows
from chatpipe.data.documents import check_documents
from chatpipe.data.formats import What
from chatpipe.data.rendering import KWARGS
from chatpipe.data.sources import check_sources
from chatpipe.data.worlds import worlds_read
from chatpipe.models.model_folder import Kind
from chatpipe.recipe.loading import flatten
from chatpipe.recipe.schema import TRAINING_STAGES, DataBlock, Recipe
from chatpipe.recipe.section import EvalBlock

# What the rows of each key are read as; the other keys name raw text.
WHAT_OF_KEY: Mapping[str, What] = {"sft.data": "conversations", "rm.data": "rankings", "ppo.data": "prompts"}

# Where and how a stage runs, not what comes out of it; models and data are compared by content. The recipe's `checks`
# belong to no stage and are not compared either: one decides whether training begins, and changes nothing in it. So a
# stage that a check stopped continues with that one turned off, and a finished one stays finished.
_NOT_COMPARED: Mapping[str, Any] = {
    **dict.fromkeys(("logging_steps", "save_steps", "eval_steps", "sample_prompts"), True),
    **dict.fromkeys(("model", "reward_model", "oracle_reward_model", "data", "eval_data", "ptx_data"), True),
    "reward": {"__all__": {"model"}},
}


def with_eval_data(blocks: list[DataBlock], eval_data: list[DataBlock] | None) -> list[DataBlock]:
    """`blocks` to train on and `eval_data` to validate on; without `eval_data`, `blocks` are split."""
    if not eval_data:
        return blocks
    return [
        *(block.model_copy(update={"use": "train"}) for block in blocks),
        *(EvalBlock.model_construct(**{**dict(block), "use": "validation"}) for block in eval_data),
    ]


@dataclass
class Outcome:
    """The metrics of a step's result, and the verdict drawn from them."""

    metrics: dict[str, Any]
    verdict: dict[str, Any]


class Made(NamedTuple):
    """What another step of the same run makes: the stage and the round of that step."""

    stage: str
    round: int


@dataclass(frozen=True)
class Step:
    """One stage of a recipe in one round."""

    recipe: Recipe
    round: int
    folder: Path

    # ---- what each stage says about itself ----

    stage: ClassVar[str]
    command: ClassVar[str]
    """The stage whose command makes the step."""
    in_rounds: ClassVar[bool] = True
    """Whether every round has the stage again; else it comes once."""
    result: ClassVar[str | None] = None
    """The file that the step makes; None: a model."""
    resume_points: ClassVar[str] = "checkpoints/step-*[0-9]"
    """The pattern of the files from which an unfinished step goes on."""
    has_evaluation: ClassVar[bool] = False
    """Whether the recipe's section `evaluation` says how the result is measured."""
    less_memory: ClassVar[str] = ""
    """How a step that trains nothing takes less memory."""
    foreseen_without_data: ClassVar[bool] = False
    """Whether a dry run of the stage alone forecasts memory and time without its data."""
    title: ClassVar[str] = ""
    """What the card of the model calls it."""

    @classmethod
    def is_in(cls, recipe: Recipe, number: int) -> bool:
        """Whether round `number` of the recipe has the stage."""
        return cls.has_place(recipe, number)

    @classmethod
    def has_place(cls, recipe: Recipe, number: int) -> bool:
        """Whether round `number` reaches the stage, whatever data is given."""
        return cls.in_rounds if number > 1 else not cls.is_before_start(recipe)

    @classmethod
    def is_before_start(cls, recipe: Recipe) -> bool:
        """Whether the run begins with a later stage, so that what this one would make is given."""
        return TRAINING_STAGES.index(cls.command) < TRAINING_STAGES.index(recipe.first_stage)

    def model_sources(self) -> Mapping[str, str | Made | None]:
        """Key of the section -> the model that the recipe names, or the step that makes it; None: no model.

        The model that is trained comes first, the one that is never trained on last.
        """
        raise NotImplementedError

    @cached_property
    def data(self) -> Mapping[str, list[DataBlock]]:
        """Recipe key -> what is read there."""
        return {f"{self.stage}.data": self.section.data or []}

    def data_makers(self) -> Mapping[str, tuple[str, ...]]:
        """Recipe key -> the steps of the same run that make the data there."""
        return {}

    def remedy_without(self, key: str) -> str:
        """What to do where nothing is given at the recipe key of data that the step reads."""
        return f"Give a file: {key}=FILE, or in the recipe."

    def tokenizers(self) -> Mapping[str, str]:
        """Recipe key -> the tokenizer that is read in place of the model's own."""
        return {}

    def functions(self) -> Mapping[str, str]:
        """Recipe key -> `module:function` of each reward or rater that is Python code."""
        return {}

    def worlds_read(self) -> list[str]:
        """The built-in worlds that the step reads, or whose oracle ranks."""
        return worlds_read([block for blocks in self.data.values() for block in blocks])

    def not_compared(self) -> dict[str, Any]:
        """The keys of the section on which the result does not depend, as pydantic's `exclude`."""
        return dict(_NOT_COMPARED)

    def kinds(self, key: str) -> tuple[Kind, ...]:
        """What kinds of model the section's `key` may name; the first is the usual one."""
        return ("causal",) if key == "model" else ("reward",)

    @property
    def makes(self) -> Kind:
        """What kind of model the step makes."""
        return "causal"

    @property
    def asks_people(self) -> bool:
        """Whether the step waits for people."""
        return False

    @property
    def runs_in_place(self) -> bool:
        """Whether several processes could share nothing of the step."""
        return False

    def own_checks(self) -> Checks:
        """What only this stage asks before it starts, without torch."""
        return {}

    def check_data(self, key: str, blocks: list[DataBlock]) -> Finding | str:
        """Whether the files at a recipe key are there and hold rows of the right kind; else what they hold."""
        if not blocks:
            return Finding(f"{key} is not given.", self.remedy_without(key))
        eval_data = getattr(self.section, "eval_data", None) if key == f"{self.stage}.data" else None
        if eval_data:
            check_sources(eval_data, f"{self.stage}.eval_data")
        if key not in WHAT_OF_KEY:
            check_documents(blocks, key)
        elif key in self.makers:
            return f"the run's own rankings: {blocks[-1].source}"
        else:
            report = check_rows(WHAT_OF_KEY[key], blocks, key)
            if report.sources:
                return "; ".join(source.line() for source in report.sources)
        return ", ".join(block.source for block in blocks)

    def check_positions(self, positions: int | None) -> None:
        """Raises `UsageError` where a model that reads at most so many tokens cannot read the stage's rows."""

    def amounts(self, parameters: int | str) -> dict[str, Any]:
        """How much the step does, for its plan; `parameters` of its model, a text where they are not known."""
        raise NotImplementedError

    def gains(self, metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
        """What was measured, its value before, its value after: the rows of the table at the end of a run."""
        raise NotImplementedError

    # ---- what follows from it ----

    @property
    def name(self) -> str:
        """The stage; from the second round on with the round's number, as in `rm.2`."""
        return name_of(self.stage, self.round)

    @property
    def section(self) -> Any:
        """The stage's own section of the recipe."""
        return getattr(self.recipe, self.stage)

    @property
    def trains(self) -> bool:
        """Whether the step trains a model."""
        return self.stage in TRAINING_STAGES

    @cached_property
    def models(self) -> Mapping[str, str]:
        """Key of the section -> folder or hub id of a model."""
        return {
            key: str(folder_of(self.recipe, *source)) if isinstance(source, Made) else source
            for key, source in self.model_sources().items()
            if source is not None
        }

    @cached_property
    def makers(self) -> Mapping[str, tuple[str, ...]]:
        """Key of a model or of data -> the steps of the same run that make it; none where the recipe names it."""
        sources = self.model_sources().items()
        return {
            **{key: (name_of(*source),) for key, source in sources if isinstance(source, Made)},
            **self.data_makers(),
        }

    def world(self) -> str | None:
        """The built-in world that the stage's own data reads, whose oracle then scores answers; None where none."""
        return next(iter(worlds_read(self.data[f"{self.stage}.data"])), None)

    def settings(self) -> dict[str, Any]:
        """Dotted recipe keys on which the result depends, with their values."""
        sections = {self.stage: self.section.model_dump(mode="json", exclude=self.not_compared())}
        sections |= {world: self.recipe.worlds[world].model_dump(mode="json") for world in self.worlds_read()}
        if self.stage not in ("pretrain", "rank"):  # they read no chat template
            sections[KWARGS] = self.recipe.chat_template_kwargs
        return flatten(sections)

    # ---- this process ----

    @property
    def process_index(self) -> int:
        """This process's number among those that were launched together."""
        return int(os.environ.get("RANK", "0"))

    @property
    def processes(self) -> int:
        """How many processes run this step together."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def is_main(self) -> bool:
        """Whether this process evaluates, saves and writes to the terminal."""
        return self.process_index == 0


class Stage(Protocol):
    """What each file `stages/NAME.py` offers."""

    def run(self, step: Any) -> Outcome | None:
        """Does the work of the step; the main process returns what came out."""


class TrainingStage(Stage, Protocol):
    """What the file of a stage that trains offers besides."""

    def checks(self, step: Any) -> Iterator[Checks]:
        """The checks before the first step, for `chatpipe check`: `step` reads a few rows in a temporary folder."""


def answers_measured(recipe: Recipe, *lengths: int | None) -> Mapping[str, list[DataBlock]]:
    """The conversations whose answers say how long others may be, where the recipe does not give all `lengths`."""
    if None not in lengths or not recipe.sft.data:
        return {}
    return {"sft.data": with_eval_data(recipe.sft.data, recipe.sft.eval_data)}


def chat_model(recipe: Recipe) -> str | Made:
    """The chat model of the first round: sft's, or the one that is given where the run begins after sft."""
    given = recipe.ppo.model or recipe.rm.model
    return given if given is not None and recipe.first_stage in ("rm", "ppo") else Made("sft", 1)


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.0f} %"


def name_of(stage: str, number: int) -> str:
    """The name of a stage in round `number`, which is also that of its folder in a run."""
    return stage if number == 1 else f"{stage}.{number}"


def folder_of(recipe: Recipe, stage: str, number: int = 1) -> Path:
    """The folder in the run of a stage in round `number`."""
    return Path(recipe.out) / name_of(stage, number)
