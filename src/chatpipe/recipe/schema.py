"""What may stand in a recipe: every section and key, its type, its default and what it means.

Where `transformers.TrainingArguments` or TRL has a name for a thing, that is its name here. Unknown keys are errors.
The JSON Schema that `chatpipe schema` prints is made from these classes.
"""

import os.path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from chatpipe.recipe.architectures import Architecture
from chatpipe.recipe.check_switches import CheckSwitches
from chatpipe.recipe.ppo_settings import PpoSettings
from chatpipe.recipe.section import Section

STAGES = ("pretrain", "sft", "rm", "ppo")
POCKETWORLD = "pocketworld"
HUB = "hub:"
"""What the source of a data set of the hub begins with."""

DataFormat = Literal[
    "auto",
    "text",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "question_answer",
    "pairs",
    "rankings",
    "prompts",
]

Place = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, or a hub id; a shell knows `~` only where a word begins with it, so neither in a recipe nor behind KEY=."""


class DataBlock(Section):
    """One source of rows."""

    source: str = Field(
        description="A file (txt, json, jsonl, csv, parquet, each also .gz), a folder, a pattern with *, "
        "`hub:OWNER/NAME`, a data set of the hub, or `pocketworld`, the built-in world."
    )
    format: DataFormat = Field("auto", description="What the rows are; `auto` recognises it from the first row.")
    limit: int | None = Field(None, ge=1, description="Train on this many rows at most, and hold out as many.")
    columns: dict[str, str | list[str]] = Field(
        default_factory=dict,
        description="Where a field of ours stands, e.g. {text: content}; several are joined with newlines.",
    )
    document: Literal["file", "line", "blank_line"] = Field(
        "file",
        description="What a document of a txt file is: all of it, each line, or what stands between blank lines.",
    )
    weight: float = Field(
        1.0, gt=0, description="How often each row to train on (raw text: each token) is read in an epoch."
    )
    max_skipped: float = Field(
        0.01, ge=0, le=1, description="The share of rows that may be unusable; they are counted and left out."
    )
    name: str | None = Field(None, description="Of a data set of the hub: its configuration.")
    split: str = Field("train", description="Of a data set of the hub.")
    revision: str | None = Field(None, description="Of a data set of the hub: a commit; else the newest.")

    @model_validator(mode="after")
    def _hub_keys_are_for_the_hub(self) -> "DataBlock":
        given = [key for key in ("name", "split", "revision") if getattr(self, key) not in (None, "train")]
        if given and not self.source.startswith(HUB):
            raise ValueError(f"{given[0]} is for data sets of the hub; {self.source} is none (hub:OWNER/NAME)")
        return self


def _as_blocks(value: Any) -> Any:
    """A path, a comma-separated list of paths, or a list of paths and blocks: always a list of blocks."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list):
        return [{"source": item} if isinstance(item, str) else item for item in value]
    return value


Data = Annotated[list[DataBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[str | DataBlock])]


class Pocketworld(Section):
    """The built-in world, and how much of it there is to read."""

    seed: int = Field(0, description="Another seed is another world: other people, other facts.")
    people: int = Field(100, ge=16, description="How many people live in it; fewer leave too few questions.")
    documents: int = Field(15000, ge=100, description="Paragraphs of running text for pretraining.")
    conversations: int = Field(3000, ge=20, description="Fine-tuning conversations, of mixed quality.")


class TrainingSection(Section):
    """What every stage tells its trainer."""

    data: Data | None = Field(None, description="Path, comma-separated paths, or a list of blocks.")
    learning_rate: float = Field(1e-4, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup", "warmup_stable_decay"] = "cosine"
    min_lr_ratio: float = Field(
        0.0, ge=0, lt=1, description="Where cosine and warmup_stable_decay end, as a share of learning_rate."
    )
    decay_steps: int | None = Field(
        None, ge=1, description="The last steps of warmup_stable_decay, in which the rate falls."
    )
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0, description="On matrices only, never on biases and norms.")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1, description="Sequences (rm: rankings) per optimizer step, over all processes.")
    per_device_train_batch_size: int | None = Field(
        None, ge=1, description="The micro-batch; accumulation follows. Default: batch_size / processes."
    )
    bf16: Literal[True, False, "auto"] = Field(
        False,
        description="Compute in bfloat16; weights stay in float32. auto: where the device multiplies it; a CPU that "
        "does not takes twelve times as long in it as in float32.",
    )
    gradient_checkpointing: bool = False
    logging_steps: int = Field(10, ge=1)
    save_steps: int = Field(200, ge=1, description="Optimizer steps between resume points.")
    max_nonfinite_steps: int = Field(3, ge=1, description="Stop after so many NaN or infinite steps in a row.")

    @model_validator(mode="after")
    def _schedule_fits_together(self) -> "TrainingSection":
        kind = self.lr_scheduler_type
        if (self.decay_steps is not None) != (kind == "warmup_stable_decay"):
            raise ValueError("decay_steps and lr_scheduler_type: warmup_stable_decay belong together")
        if self.min_lr_ratio > 0 and kind not in ("cosine", "warmup_stable_decay"):
            raise ValueError(f"lr_scheduler_type: {kind} has no min_lr_ratio; cosine and warmup_stable_decay have")
        return self


class Tokenizer(Section):
    """The tokenizer of a new model: trained on its data, or an existing one."""

    kind: Literal["bpe", "character"] = Field("bpe", description="Byte-level BPE, or one token for each character.")
    vocab_size: int = Field(1024, ge=272, description="Entries at most, special tokens included.")
    train_bytes: int = Field(
        500_000_000, ge=1, description="bpe: bytes of text that it is trained on at most, from all sources alike."
    )
    pretrained: Place | None = Field(
        None, description="Take this one as it is instead (a folder or hub id, e.g. gpt2); the keys above do not count."
    )


class Pretrain(TrainingSection):
    """A base model from raw text."""

    model: Place | None = Field(None, description="Go on from this model instead of a new one.")
    objective: Literal["causal", "masked"] = Field(
        "causal", description="Predict the next token; or hidden ones, from both sides: an encoder for rm.model."
    )
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="Share of tokens that objective: masked hides.")
    architecture: Architecture = Field(default_factory=Architecture)
    tokenizer: Tokenizer = Field(default_factory=Tokenizer)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices inside the model; the rest keeps AdamW. Same learning rate."
    )
    learning_rate: float = Field(6e-4, gt=0)
    torch_compile: bool = Field(False, description="Compile the model first: minutes, then quicker steps on a GPU.")
    block_size: int = Field(128, ge=16, description="Tokens per training sequence.")
    documents: Literal["concatenate", "isolate"] = Field(
        "concatenate", description="Whether a token sees the documents before its own in a sequence, or only its own."
    )
    max_steps: int = Field(2000, ge=1, le=10**9)
    eval_steps: int | None = Field(
        None, ge=1, description="Steps between evaluations: held-out loss and samples. Default: only at the end."
    )
    sample_prompts: list[str] = Field(
        [], description="What the samples go on from; default: the beginnings of two held-out documents."
    )

    @model_validator(mode="after")
    def _phases_fit_in(self) -> "Pretrain":
        if self.decay_steps is not None and self.warmup_steps + self.decay_steps > self.max_steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} and decay_steps = {self.decay_steps} are more than "
                f"max_steps = {self.max_steps}"
            )
        return self

    @model_validator(mode="after")
    def _encoders_read_across_documents(self) -> "Pretrain":
        if self.objective == "masked" and self.documents == "isolate":
            raise ValueError("documents: isolate is for objective: causal; an encoder reads across documents")
        return self


class Lora(Section):
    """Low-rank adapters in place of full fine-tuning; no dropout, since PPO needs the same policy in each reading."""

    r: int = Field(16, ge=1, description="The rank.")
    alpha: float = Field(32, gt=0, description="What the adapter says is scaled by alpha / r.")
    target_modules: str | list[str] = Field("all-linear", description="Layers that get one, as in peft.LoraConfig.")


class Sft(TrainingSection):
    """Fine-tuning on conversations; loss on what the assistant says and on its end-of-turn token."""

    model: Place | None = Field(None, description="A causal model; default: what pretrain made.")
    learning_rate: float = Field(2e-5, gt=0)
    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: int = Field(-1, ge=-1, description="Overrides num_train_epochs where it is positive.")
    max_length: int = Field(128, ge=16, description="Longer conversations lose their oldest turns.")
    packing: bool = Field(
        False,
        description="Several conversations in a sequence of max_length tokens, each of which sees itself alone; "
        "batch_size then counts such sequences.",
    )
    lora: Lora | None = Field(None, description="Train adapters instead of all weights (needs peft); they are merged.")
    eval_steps: int | None = Field(
        None, ge=1, description="Steps between evaluations: held-out loss and samples. Default: only at the end."
    )
    load_best_model_at_end: bool = Field(
        False, description="Save the weights of the evaluation with the lowest held-out loss, not the last ones."
    )
    sample_prompts: list[str] = Field(
        [], description="Questions that the samples answer; default: two held-out prompts."
    )
    pretrain_mix: float = Field(
        0.0, ge=0, lt=1, description="Share of rows that are raw text from pretrain.data, so that it is not forgotten."
    )

    @model_validator(mode="after")
    def _the_best_is_among_evaluations(self) -> "Sft":
        if self.load_best_model_at_end and self.eval_steps is None:
            raise ValueError("load_best_model_at_end needs eval_steps, to have evaluations of which one is the best")
        return self


class Sample(Section):
    """What is sampled for people to rank."""

    data: Data | None = Field(None, description="Where the prompts come from.")
    prompts: int = Field(500, ge=2, description="How many prompts.")
    k: int = Field(4, ge=2, le=9, description="Completions per prompt.")
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(48, ge=1)


class Rank(Section):
    """Who ranks the answers that a run samples."""

    rater: Place = Field(
        POCKETWORLD,
        min_length=1,
        description="pocketworld: simulated annotators, who know what is true in the built-in world. people: the run "
        "waits for them (`chatpipe rank`). Else a reward model, or module:function.",
    )
    temperature: float = Field(
        0.5, ge=0, description="Noise of raters that are programs, in units of their score (Bradley-Terry)."
    )
    overlap: int = Field(1, ge=1, description="How many people rank each prompt.")


class Rm(TrainingSection):
    """The reward model: K-wise ranking loss over all C(K,2) pairs of a prompt."""

    model: Place | None = Field(None, description="The body; default: what sft made.")
    learning_rate: float = Field(9e-6, gt=0)
    num_train_epochs: float = Field(1.0, gt=0)
    max_length: int = Field(1024, ge=16, description="Longer prompts lose their beginning; answers are never cut.")
    age_weight: float = Field(
        1.0,
        ge=0,
        le=1,
        description="In later rounds: how often the rankings of the round before are read in an epoch, those of the "
        "one before it that squared, and so on. 1 takes all rankings alike, 0 the newest alone.",
    )
    lora: Lora | None = Field(
        None, description="Train adapters and the score head instead of all weights (needs peft); they are merged."
    )


class RewardSource(Section):
    """One of several rewards: a reward model or a Python function, and its weight."""

    model: Place | None = Field(None, description="A reward model.")
    function: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function, called with prompts and completions (and ended, where it has such a parameter); "
        "it returns a number for each completion.",
    )
    weight: float = 1.0

    @model_validator(mode="after")
    def _is_one_thing(self) -> "RewardSource":
        if (self.model is None) == (self.function is None):
            raise ValueError("a reward is either a model or a function")
        return self


class Ppo(PpoSettings, TrainingSection):
    """PPO against the reward model. Names and defaults as in TRL's PPOConfig where it has them."""

    model: Place | None = Field(
        None, description="The policy to start from, also the reference; default: what sft made."
    )
    reward_model: Place | None = Field(None, description="Default: what rm made. The value model starts from it too.")
    reward: list[RewardSource] | None = Field(
        None, description="Several rewards, in place of reward_model; what counts is their weighted sum."
    )
    oracle_reward_model: Place | None = Field(
        None,
        description="A held-out reward model: it judges along, is logged as objective/oracle, and is not trained on.",
    )
    learning_rate: float = Field(3e-6, gt=0)
    ptx_data: Data | None = Field(None, description="The raw text; default: pretrain.data.")
    torch_compile: bool = Field(False, description="Compile the update: a minute first, then quicker steps.")
    lora: Lora | None = Field(None, description="Train adapters instead of all weights (needs peft).")

    @model_validator(mode="after")
    def _fits_together(self) -> "Ppo":
        if self.reward is not None and (self.reward_model is not None or not self.reward):
            raise ValueError("reward lists all rewards, at least one; reward_model is then left out")
        contradiction = self.contradiction(self.batch_size)
        if contradiction is not None:
            raise ValueError(contradiction)
        return self


class Evaluation(Section):
    """How the verdicts of sft and ppo are measured on held-out prompts."""

    prompts: int = Field(200, ge=10, description="Held-out prompts answered by the model.")
    temperature: float = Field(0.7, ge=0, description="By default that of `chatpipe chat`.")
    max_new_tokens: int = Field(48, ge=1)


class Recipe(Section):
    """One YAML file that says what every stage does."""

    out: Place = Field("runs/chatpipe", min_length=1, description="The run's folder.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of all random numbers; numpy takes no other.")
    rounds: int = Field(
        1, ge=1, description="How often the run samples, ranks, trains the reward model and improves the policy."
    )
    round: int = Field(1, ge=1, description="For one stage alone (rm or ppo): the round it belongs to.")
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
