"""The sections of a recipe's stages: pretrain, sft, sample, rank, rm and ppo.

Where `transformers.TrainingArguments` or TRL has a name for a setting, the setting has that name here.
"""

import math
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from chatpipe.errors import UsageError
from chatpipe.recipe.architectures import Architecture
from chatpipe.recipe.ppo_settings import PpoSettings
from chatpipe.recipe.section import Data, Place, Section

SHORTEST_BLOCK, LONGEST_BLOCK = 16, 2048
"""Tokens of a training sequence of pretrain, where the recipe does not say."""


class TrainingSection(Section):
    """The settings that all stages with a trainer have.

    The defaults fit a model of 0.1 to 8 B parameters. Where a default is null, the model or the data decides.
    """

    RATES: ClassVar[tuple[float, float]]
    """The default of `learning_rate`, where all weights are trained and where an adapter is."""

    data: Data | None = Field(None, description="Path, comma-separated paths, or a list of blocks.")
    learning_rate: float | None = Field(None, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup", "warmup_stable_decay"] = "cosine"
    min_lr_ratio: float = Field(
        0.0, ge=0, lt=1, description="Last rate of cosine and warmup_stable_decay, as a share of learning_rate."
    )
    decay_steps: int | None = Field(
        None, ge=1, description="How many last steps of warmup_stable_decay lower the rate."
    )
    warmup_steps: int | float = Field(
        0.03, ge=0, description="Steps in which the learning rate rises; below 1 a share of all steps."
    )
    weight_decay: float = Field(0.0, ge=0, description="On matrices only, never on biases and norms.")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1, description="Sequences (rm: rankings) per optimizer step, over all processes.")
    per_device_train_batch_size: int | None = Field(
        None,
        ge=1,
        description="The micro-batch, from which gradient accumulation follows. Default: as many as fit into memory "
        "(pretrain: batch_size / processes).",
    )
    bf16: Literal[True, False, "auto"] = Field(
        "auto",
        description="Compute in bfloat16; weights stay in float32. auto: if the device has bfloat16 multiplication. "
        "A CPU without it is twelve times slower than in float32.",
    )
    gradient_checkpointing: Literal[True, False, "auto"] = Field(
        "auto", description="Compute activations again in the backward pass. auto: where one row needs too much memory."
    )
    logging_steps: int = Field(10, ge=1)
    save_steps: int = Field(200, ge=1, description="Optimizer steps between resume points.")
    max_nonfinite_steps: int = Field(3, ge=1, description="Stop after so many NaN or infinite steps in a row.")

    @property
    def peak_rate(self) -> float:
        """`learning_rate`, or the stage's default for full training or for an adapter."""
        full, of_adapter = self.RATES
        return self.learning_rate or (of_adapter if getattr(self, "lora", None) else full)

    @model_validator(mode="after")
    def _schedule_fits_together(self) -> "TrainingSection":
        kind = self.lr_scheduler_type
        if self.warmup_steps > 1 and self.warmup_steps % 1:
            raise ValueError(f"warmup_steps = {self.warmup_steps} is neither a number of steps nor a share of them")
        if (self.decay_steps is not None) != (kind == "warmup_stable_decay"):
            raise ValueError("decay_steps and lr_scheduler_type: warmup_stable_decay belong together")
        if self.min_lr_ratio > 0 and kind not in ("cosine", "warmup_stable_decay"):
            raise ValueError(f"lr_scheduler_type: {kind} has no min_lr_ratio; cosine and warmup_stable_decay have")
        return self

    def micro_batches(self, processes: int, stage: str, fitting: int | None = None) -> dict[str, int]:
        """`per_device_train_batch_size` and `gradient_accumulation_steps` for `batch_size` sequences a step in all.

        `fitting`: how many sequences a micro-batch has at most where the recipe does not say. Raises `UsageError`
        naming the stage's key where the numbers do not divide each other.
        """
        share, rest = divmod(self.batch_size, processes)
        if rest:
            raise UsageError(
                f"{stage}.batch_size = {self.batch_size} cannot be shared by {processes} processes.",
                f"Make it a multiple of {processes}.",
            )
        micro = min(self.per_device_train_batch_size or share, share)
        if self.per_device_train_batch_size is None and fitting is not None:
            micro = max(size for size in range(1, share + 1) if share % size == 0 and size <= max(fitting, 1))
        if share % micro:
            raise UsageError(
                f"{stage}.per_device_train_batch_size = {micro} does not divide the {share} sequences of each process.",
                "Choose one that does, or leave it out.",
            )
        return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro}


class Tokenizer(Section):
    """The tokenizer of a new model: trained on its data, or an existing one."""

    kind: Literal["bpe", "character"] = Field("bpe", description="Byte-level BPE, or one token for each character.")
    vocab_size: int = Field(1024, ge=272, description="Entries at most, special tokens included.")
    train_bytes: int = Field(
        500_000_000,
        ge=1,
        description="bpe: train it on at most this many bytes of text, taken evenly from all sources.",
    )
    pretrained: Place | None = Field(
        None,
        description="Use this tokenizer (a folder or hub id, e.g. gpt2) unchanged; the other keys are then ignored.",
    )


class Pretrain(TrainingSection):
    """A base model from raw text."""

    model: Place | None = Field(None, description="Continue from this model instead of a new one.")
    objective: Literal["causal", "masked"] = Field(
        "causal",
        description="causal: predict the next token. masked: predict hidden tokens, which makes an "
        "encoder for rm.model.",
    )
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="Share of tokens that objective: masked hides.")
    architecture: Architecture = Field(default_factory=Architecture)
    tokenizer: Tokenizer = Field(default_factory=Tokenizer)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon trains the matrices inside the model, AdamW the rest, at the same learning rate."
    )
    RATES = (6e-4, 6e-4)
    learning_rate: float | None = Field(6e-4, gt=0)
    torch_compile: bool = Field(
        False, description="Compile the model: takes minutes at the start, then steps on a GPU are faster."
    )
    gradient_checkpointing: Literal[True, False, "auto"] = Field(
        False, description="Compute activations again in the backward pass."
    )
    block_size: int = Field(
        128,
        ge=16,
        description="Tokens per training sequence. Default: what a new model reads (architecture.n_positions), at most "
        "2048; 128 where model is given.",
    )
    documents: Literal["concatenate", "isolate"] = Field(
        "concatenate",
        description="isolate: a token attends only to its own document; concatenate: to all documents "
        "before it in the sequence.",
    )
    max_steps: int = Field(2000, ge=1, le=10**9)
    eval_steps: int | None = Field(
        None, ge=1, description="Steps between evaluations (validation loss and samples). Default: only at the end."
    )
    sample_prompts: list[str] = Field(
        [], description="Texts that samples continue; default: the beginnings of two validation documents."
    )

    @model_validator(mode="before")
    @classmethod
    def _blocks_fill_a_new_model(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("model") or given.get("block_size") is not None:
            return given
        try:
            architecture = Architecture.model_validate(given.get("architecture") or {})
        except ValidationError:  # reported at its own key
            return given
        return {**given, "block_size": max(SHORTEST_BLOCK, min(architecture.n_positions, LONGEST_BLOCK))}

    @model_validator(mode="after")
    def _phases_fit_in(self) -> "Pretrain":
        warmup = self.warmup_steps if self.warmup_steps >= 1 else math.ceil(self.warmup_steps * self.max_steps)
        if self.decay_steps is not None and warmup + self.decay_steps > self.max_steps:
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
    """Low-rank adapters instead of full fine-tuning; without dropout, so that two readings give the same log-probs."""

    r: int = Field(16, ge=1, description="The rank.")
    alpha: float = Field(32, gt=0, description="The adapter's output is scaled by alpha / r.")
    target_modules: str | list[str] = Field(
        "all-linear", description="Layers that get an adapter, as in peft.LoraConfig."
    )
    keep_adapter: bool = Field(False, description="Save the adapter too, in STAGE/adapter next to the merged model.")


class Sft(TrainingSection):
    """Fine-tuning on conversations. The loss covers the assistant's turns with their end-of-turn tokens."""

    model: Place | None = Field(None, description="A causal model; default: pretrain's.")
    eval_data: Data | None = Field(
        None, description="The data to validate on; data is then trained on whole. Default: a tenth of data."
    )
    RATES = (2e-5, 2e-4)
    learning_rate: float | None = Field(None, gt=0, description="Default: 2e-5, with lora 2e-4.")
    num_train_epochs: float = Field(2.0, gt=0)
    max_steps: int = Field(-1, ge=-1, description="Overrides num_train_epochs if positive.")
    max_length: int | None = Field(
        None,
        ge=16,
        description="Longer conversations lose their oldest turns. Default: what the model reads, at most 2048.",
    )
    packing: bool = Field(
        False,
        description="Pack several conversations into a sequence of max_length tokens; each attends to itself alone. "
        "batch_size then counts sequences.",
    )
    lora: Lora | None = Field(None, description="Train adapters instead of all weights (needs peft); they are merged.")
    eval_steps: int | None = Field(
        None, ge=1, description="Steps between evaluations (validation loss and samples). Default: only at the end."
    )
    load_best_model_at_end: bool = Field(
        False, description="Save the weights with the lowest validation loss instead of the last ones."
    )
    sample_prompts: list[str] = Field([], description="Questions that samples answer; default: two validation prompts.")
    pretrain_mix: float = Field(
        0.0, ge=0, lt=1, description="Share of rows that are raw text from pretrain.data, against forgetting."
    )

    @model_validator(mode="after")
    def _the_best_is_among_evaluations(self) -> "Sft":
        if self.load_best_model_at_end and self.eval_steps is None:
            raise ValueError("load_best_model_at_end needs eval_steps, to have evaluations of which one is the best")
        return self


class Sample(Section):
    """Sampling completions that are then ranked."""

    data: Data | None = Field(None, description="Source of the prompts.")
    prompts: int | None = Field(
        None, ge=2, description="How many prompts; each round takes others. Default: all, in each round."
    )
    k: int = Field(4, ge=2, le=9, description="Completions per prompt.")
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int | None = Field(
        None, ge=1, description="The longest completion. Default: as `evaluation.max_new_tokens`."
    )


class Rank(Section):
    """Ranking the sampled completions."""

    rater: Place = Field(
        "",
        description="Who ranks; there is no default. people: the run waits until people have ranked (`chatpipe rank`). "
        "pocketworld: simulated annotators, who know the built-in world. Otherwise a reward model, or module:function.",
    )
    temperature: float = Field(
        0.0, ge=0, description="Noise added by raters that are programs, in units of their score (Bradley-Terry)."
    )
    overlap: int = Field(1, ge=1, description="How many people rank each prompt.")


class Rm(TrainingSection):
    """The reward model: K-wise ranking loss over all C(K,2) pairs of a prompt."""

    model: Place | None = Field(None, description="The reward model's body; default: sft's model.")
    eval_data: Data | None = Field(
        None, description="The data to validate on; data is then trained on whole. Default: a tenth of data."
    )
    RATES = (1e-5, 1e-4)
    learning_rate: float | None = Field(None, gt=0, description="Default: 1e-5, with lora 1e-4.")
    num_train_epochs: float = Field(1.0, gt=0)
    max_length: int | None = Field(
        None,
        ge=16,
        description="Longer prompts lose their beginning; answers are never cut. Default: what the model reads, at "
        "most 2048.",
    )
    age_weight: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Weight of older rankings in later rounds: those from n rounds ago are read age_weight**n times an "
        "epoch. 1 reads all rankings equally often, 0 only the newest.",
    )
    lora: Lora | None = Field(
        None, description="Train adapters and the score head instead of all weights (needs peft); they are merged."
    )


FUNCTION = r"[\w.]+:\w+"
"""How a function of a module is written."""


class RewardSource(Section):
    """One of several rewards: a reward model or a Python function, and its weight."""

    model: Place | None = Field(None, description="A reward model.")
    function: str | None = Field(
        None,
        pattern=f"^{FUNCTION}$",
        description="module:function, called with prompts and completions (and with ended, if it has that parameter); "
        "returns one number for each completion.",
    )
    weight: float = 1.0

    @model_validator(mode="after")
    def _is_one_thing(self) -> "RewardSource":
        if (self.model is None) == (self.function is None):
            raise ValueError("a reward is either a model or a function")
        return self


def _as_rewards(value: Any) -> Any:
    """A function `module:function` or a model, or a list of these and of rewards: always a list of rewards."""
    if not isinstance(value, str | list):
        return value
    return [
        {"function" if re.fullmatch(FUNCTION, item) else "model": item} if isinstance(item, str) else item
        for item in ([value] if isinstance(value, str) else value)
    ]


Rewards = Annotated[
    list[RewardSource], BeforeValidator(_as_rewards, json_schema_input_type=str | list[str | RewardSource])
]


class Ppo(PpoSettings, TrainingSection):
    """PPO against the reward model. Names and defaults as in TRL's PPOConfig where it has them."""

    model: Place | None = Field(None, description="The initial policy, also the reference; default: sft's model.")
    reward_model: Place | None = Field(None, description="Default: rm's model. The value model starts from it too.")
    reward: Rewards | None = Field(
        None,
        description="A function or several rewards instead of reward_model; their weighted sum is the reward.",
    )
    oracle_reward_model: Place | None = Field(
        None,
        description="A reward model that is only logged, as objective/oracle, and never trained on.",
    )
    RATES = (3e-6, 1e-5)
    learning_rate: float | None = Field(None, gt=0, description="Default: 3e-6, with lora 1e-5.")
    batch_size: int = Field(64, ge=1, description="Completions per optimizer step, over all processes.")
    ptx_data: Data | None = Field(None, description="The raw text; default: pretrain.data.")
    torch_compile: bool = Field(
        False, description="Compile the update: takes a minute at the start, then steps are faster."
    )
    lora: Lora | None = Field(None, description="Train adapters instead of all weights (needs peft).")

    @model_validator(mode="after")
    def _fits_together(self) -> "Ppo":
        if self.reward is not None and (self.reward_model is not None or not self.reward):
            raise ValueError("reward lists all rewards, at least one; reward_model is then left out")
        if self.reward_model is not None and re.fullmatch(FUNCTION, self.reward_model):
            raise ValueError(f"reward_model is a model; give a function as ppo.reward={self.reward_model}")
        contradiction = self.contradiction(self.batch_size)
        if contradiction is not None:
            raise ValueError(contradiction)
        return self
