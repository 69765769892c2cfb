"""The recipe: its sections, and the keys that belong to no section. All sections can be imported from here.

Unknown keys are errors. The JSON Schema that `chatpipe schema` prints is made from these classes.
"""

from pydantic import Field

from chatpipe.recipe.check_switches import CheckSwitches
from chatpipe.recipe.data_section import HUB, POCKETWORLD, Data, DataBlock, DataFormat, Place
from chatpipe.recipe.section import Section
from chatpipe.recipe.stage_sections import (
    Lora,
    Ppo,
    Pretrain,
    Rank,
    RewardSource,
    Rm,
    Sample,
    Sft,
    Tokenizer,
    TrainingSection,
)

__all__ = [
    "HUB",
    "POCKETWORLD",
    "TRAINING_STAGES",
    "Data",
    "DataBlock",
    "DataFormat",
    "Evaluation",
    "Lora",
    "Pocketworld",
    "Ppo",
    "Pretrain",
    "Rank",
    "Recipe",
    "RewardSource",
    "Rm",
    "Sample",
    "Sft",
    "Tokenizer",
    "TrainingSection",
]

TRAINING_STAGES = ("pretrain", "sft", "rm", "ppo")


class Pocketworld(Section):
    """The built-in world and the amount of text in it."""

    seed: int = Field(0, description="Each seed makes another world, with other people and facts.")
    people: int = Field(100, ge=16, description="How many people live in it; fewer than 16 leave too few questions.")
    documents: int = Field(15000, ge=100, description="Paragraphs of running text for pretraining.")
    conversations: int = Field(3000, ge=20, description="Fine-tuning conversations, of mixed quality.")


class Evaluation(Section):
    """How the verdicts of sft and ppo are measured, on validation prompts."""

    prompts: int = Field(200, ge=10, description="How many validation prompts the model answers.")
    temperature: float = Field(0.7, ge=0, description="Sampling temperature; the default is that of `chatpipe chat`.")
    max_new_tokens: int = Field(48, ge=1)


class Recipe(Section):
    """All settings of a run: one YAML file."""

    out: Place = Field("runs/chatpipe", min_length=1, description="The run's folder.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all random numbers.")
    rounds: int = Field(1, ge=1, description="How many times the run repeats sample, rank, rm and ppo.")
    processes: int | None = Field(None, ge=1, description="Default: as many as visible GPUs, one on a CPU.")
    launch: Place | None = Field(None, description="An accelerate config file.")
    report_to: list[str] | str = Field("none", description="Experiment trackers, as in TrainingArguments, e.g. wandb.")
    pocketworld: Pocketworld = Field(default_factory=Pocketworld)
    pretrain: Pretrain = Field(default_factory=Pretrain)
    sft: Sft = Field(default_factory=Sft)
    sample: Sample = Field(default_factory=Sample)
    rank: Rank = Field(default_factory=Rank)
    rm: Rm = Field(default_factory=Rm)
    ppo: Ppo = Field(default_factory=Ppo)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    checks: CheckSwitches = Field(default_factory=CheckSwitches)

    @property
    def worlds(self) -> dict[str, Section]:
        """The settings of each built-in world, by the name with which `source` and `rank.rater` ask for it."""
        return {POCKETWORLD: self.pocketworld}
