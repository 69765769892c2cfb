"""The recipe: the sections that belong to no stage, and the keys that belong to no section.

All sections can be imported from here.

Unknown keys are errors. The JSON Schema that `chatpipe schema` prints is made from these classes.
"""

from typing import Any, Literal

from pydantic import Field

from chatpipe.recipe.section import HUB, POCKETWORLD, Data, DataBlock, DataFormat, Place, Section
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
    "CheckSwitches",
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
    "checks_of",
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
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="The longest answer, in tokens. Default: longer than 95 % of the validation answers (512 where "
        "there are none), at most half of what the model reads.",
    )


class CheckSwitches(Section):
    """Checks that stop a stage before its first step, where it would go wrong without any error; false turns one off.

    A description begins with the stages that have the check.
    """

    # of the template and its tokens
    double_bos: bool = Field(True, description="sft, rm, ppo: rows begin with two beginning-of-text tokens.")
    header_not_in_prompt: bool = Field(True, description="sft, rm, ppo: the chat template has no generation prompt.")
    date_in_prompt: bool = Field(True, description="sft, rm, ppo: says if the chat template writes today's date.")
    turns_lost: bool = Field(True, description="sft, rm, ppo: the chat template drops, changes or reorders turns.")
    template_not_saved: bool = Field(True, description="sft, rm, ppo: the saved tokenizer reads chats differently.")
    other_template: bool = Field(True, description="ppo: policy and reward model write prompts differently.")
    special_tokens_in_text: bool = Field(True, description="All stages: control tokens spelt out in the texts.")
    # of the rows
    eos_not_learned: bool = Field(True, description="sft: answers whose end-of-turn token is not trained on.")
    nothing_to_learn: bool = Field(True, description="sft, rm: rows with nothing to train on.")
    answers_cut: bool = Field(True, description="sft, rm: too many rows are longer than max_length.")
    prompts_cut: bool = Field(True, description="ppo: most prompts leave no room for an answer.")
    validation_seen: bool = Field(True, description="All stages: validation texts are in the training data too.")
    chosen_is_rejected: bool = Field(True, description="rm: the better and the worse answer are the same tokens.")
    end_of_text_missing: bool = Field(True, description="pretrain: the text has no end-of-text tokens.")
    unknown_tokens: bool = Field(True, description="pretrain, sft: the tokenizer has no tokens for the text.")
    token_ids_out_of_range: bool = Field(True, description="pretrain, sft: token ids that the model does not have.")
    # of the models
    embeddings_too_few: bool = Field(True, description="All stages: fewer embeddings than the tokenizer has tokens.")
    batch_changes_score: bool = Field(True, description="rm, ppo: padding changes a reward model's scores.")
    score_not_on_eos: bool = Field(True, description="rm, ppo: the score is not read at the end of the turn.")
    new_score_head: bool = Field(True, description="ppo: the reward model's folder has no weights for its head.")
    reward_at_chance: bool = Field(True, description="ppo: the reward model is no better than chance.")
    policy_is_not_reference: bool = Field(True, description="ppo: KL is not 0, or the ratio not 1, at the start.")


class Recipe(Section):
    """All settings of a run: one YAML file."""

    out: Place = Field("runs/chatpipe", min_length=1, description="The run's folder.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all random numbers.")
    start: Literal["pretrain", "sft", "rm", "ppo"] | None = Field(
        None,
        description="The stage that the run begins with. Default: pretrain where pretrain.data is given, else sft, rm "
        "or ppo where its model is.",
    )
    rounds: int = Field(1, ge=1, description="How many times the run repeats sample, rank, rm and ppo.")
    processes: int | None = Field(None, ge=1, description="Default: as many as visible GPUs, one on a CPU.")
    launch: Place | None = Field(None, description="An accelerate config file.")
    keep_checkpoints: bool = Field(False, description="Keep the resume points of a finished stage.")
    report_to: list[str] | str = Field("none", description="Experiment trackers, as in TrainingArguments, e.g. wandb.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of the model's own chat template in all stages, e.g. {enable_thinking: false}. "
        "A row may have its own in a column of this name.",
    )
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
    def first_stage(self) -> str:
        """The stage that a run of the recipe begins with: `start`, else the first one that the given values ask for."""
        if self.start is not None:
            return self.start
        pretrain, sft, rm, ppo = self.pretrain, self.sft, self.rm, self.ppo
        has_reward = ppo.reward_model is not None or ppo.reward is not None
        if pretrain.data is not None or pretrain.model is not None:
            return "pretrain"
        if sft.data is not None or (sft.model is not None and (rm.model is None or ppo.model is None)):
            return "pretrain" if sft.model is None else "sft"
        if rm.model is not None:
            return "rm"
        return "ppo" if ppo.model is not None and has_reward else "pretrain"

    @property
    def worlds(self) -> dict[str, Section]:
        """The settings of each built-in world, by the name with which `source` and `rank.rater` ask for it."""
        return {POCKETWORLD: self.pocketworld}


def checks_of(stage: str) -> list[str]:
    """The names of a stage's checks, by their descriptions."""
    stages = {name: (field.description or "").split(":")[0] for name, field in CheckSwitches.model_fields.items()}
    return [name for name, those in stages.items() if those == "All stages" or stage in those.split(", ")]
