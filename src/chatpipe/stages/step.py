"""A step of a run: one stage in one round, with its folder and everything that it reads.

`run.steps` makes the steps of a recipe. Nothing here imports torch, so that a wrong command is answered at once.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatpipe.data.formats import What
from chatpipe.data.worlds import is_world, worlds_read
from chatpipe.recipe.schema import TRAINING_STAGES, DataBlock, Recipe
from chatpipe.reward.functions import is_function

STAGES = ("pretrain", "sft", "sample", "rank", "rm", "ppo")
PEOPLE = "people"
"""The `rank.rater` for whom a run waits."""
COMPLETIONS_FILE, RANKINGS_FILE, STORE_FILE = "completions.jsonl", "rankings.jsonl", "rankings.db"
COMPLETIONS = "completions"
"""The key of what rank reads, which no recipe names."""

# What the rows of each key are read as; the other keys name raw text.
WHAT_OF_KEY: Mapping[str, What] = {"sft.data": "conversations", "rm.data": "rankings", "ppo.data": "prompts"}


@dataclass
class Outcome:
    """The metrics of a step's result, and the verdict drawn from them."""

    metrics: dict[str, Any]
    verdict: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One stage of a recipe in one round.

    `models` maps the section's keys to folders or hub ids, `data` recipe keys to what is read. `makers` names, for each
    of these keys, the steps of the same run that make it; what the recipe itself names has no maker.
    """

    recipe: Recipe
    stage: str
    round: int
    folder: Path
    models: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, list[DataBlock]] = field(default_factory=dict)
    makers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first_policy: str | None = None
    """The model that ppo started from in the first round; only in later rounds of ppo."""

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
        """Whether the step trains a model; sample and rank do not."""
        return self.stage in TRAINING_STAGES

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

    @property
    def reads_given_rankings(self) -> bool:
        """Whether a rank step has nothing to rank, since `rm.data` names rankings."""
        return self.stage == "rank" and COMPLETIONS not in self.data

    @property
    def asks_people(self) -> bool:
        """Whether a rank step waits for people."""
        return self.stage == "rank" and not self.reads_given_rankings and self.recipe.rank.rater == PEOPLE

    @property
    def runs_in_place(self) -> bool:
        """Whether several processes could share nothing of the step: people or an oracle rank, or nobody does."""
        return self.reads_given_rankings or self.asks_people or self._asks_oracle

    def functions(self) -> dict[str, str]:
        """Recipe key -> `module:function` of each reward or rater that is Python code."""
        if self.stage == "rank" and not self.reads_given_rankings and is_function(self.recipe.rank.rater):
            return {"rank.rater": self.recipe.rank.rater}
        rewards = self.recipe.ppo.reward or [] if self.stage == "ppo" else []
        return {f"ppo.reward.{i}.function": reward.function for i, reward in enumerate(rewards) if reward.function}

    def worlds_read(self) -> list[str]:
        """The built-in worlds that the step reads, or whose oracle ranks."""
        if self._asks_oracle:
            return [self.recipe.rank.rater]
        return worlds_read([block for blocks in self.data.values() for block in blocks])

    def world(self) -> str | None:
        """The built-in world that the stage's own data reads, whose oracle then scores answers; None where none."""
        return next(iter(worlds_read(self.data[f"{self.stage}.data"])), None)

    @property
    def _asks_oracle(self) -> bool:
        return self.stage == "rank" and not self.reads_given_rankings and is_world(self.recipe.rank.rater)


def name_of(stage: str, number: int) -> str:
    """The name of a stage in round `number`, which is also that of its folder in a run."""
    return stage if number == 1 else f"{stage}.{number}"
