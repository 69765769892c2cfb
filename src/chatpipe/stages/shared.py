"""What the stages that train share: raw text, validation prompts, a trainer's arguments, its rehearsal, the folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from chatpipe import console
from chatpipe.checks.data_checks import prompts_with_room
from chatpipe.data.datasets import Conversation, load_prompts, stream_conversations
from chatpipe.data.documents import RawText, raw_texts
from chatpipe.data.encoding import Encoder
from chatpipe.data.sources import Report
from chatpipe.data.text_blocks import TrainingText
from chatpipe.data.token_store import skipped_in, token_stores
from chatpipe.data.worlds import Oracle, world_named
from chatpipe.errors import UsageError
from chatpipe.evaluation.answers import answer_limit
from chatpipe.generation import SamplingParams
from chatpipe.generation.ways import Way, way_of
from chatpipe.models.model_folder import PROCESSOR_FILES, TOKENIZER_FILES, copy_files, copy_generation_config
from chatpipe.models.pretrained import (
    causal_class,
    load_tokenizer,
    save_model,
    training_device,
)
from chatpipe.models.properties import row_length
from chatpipe.recipe.schema import DataBlock, Lora
from chatpipe.stages.step import Step, with_eval_data
from chatpipe.training.arguments import Reading, memory_settings, training_arguments, use_bf16
from chatpipe.training.lora import Adapter, lora_config
from chatpipe.training.machine import peak_flops
from chatpipe.training.ranks import main_process_first

EXAMPLE_CANDIDATES = 11
TOKENS = "tokens"
"""The folder of a stage that holds its text as token ids."""
CARD = """---
library_name: transformers
tags: [chatpipe, {stage}]
---

# {title}

Made by `chatpipe {stage}`. `chatpipe.json` has the models, the data and the settings it was made from, and its metrics.

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""

Arguments = TypeVar("Arguments", bound=TrainingArguments)


# ---- raw text ----


def stage_texts(step: Step, key: str) -> list[RawText]:
    """The sources of raw text that the stage reads under a recipe key."""
    return raw_texts(step.data[key], step.recipe.worlds, key)


def training_text(
    step: Step,
    texts: Sequence[RawText],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    samples: int | None = None,
    batch_size: int = 0,
) -> TrainingText:
    """The train split of `texts`, tokenised once into the stage's folder, in the order of the recipe's seed.

    Later stages read the stores of pretrain where they hold the same. `samples` is the number of blocks that the stage
    reads in all; by default one epoch. Raises `UsageError` as `token_stores` does.
    """
    made_before = None if step.stage == "pretrain" else Path(step.recipe.out, "pretrain", TOKENS)
    with main_process_first(step.folder):
        folder = step.folder / TOKENS
        stores = token_stores(folder, texts, Encoder.of(tokenizer), made_before, batch_size, block_size)
    for text, store in zip(texts, stores, strict=True):
        line = skipped_in(text, store)
        if line is not None and step.is_main:
            console.note(line)
    return TrainingText(stores, [text.block.weight for text in texts], block_size, step.recipe.seed, samples)


# ---- validation ----


def check_completes(step: Step, model: PreTrainedModel) -> None:
    """Raises `UsageError` where the stage's `model` cannot complete prompts, as its evaluation will ask it to.

    Says so where it takes `model.generate`, which is slower than the decode engine.
    """
    named = f"{step.stage}.model" + (f" = {step.models['model']}" if "model" in step.models else "")
    try:
        way = way_of(model)
    except UsageError as problem:
        raise UsageError(f"{named}: {problem.message}", problem.hint) from problem
    if way is not Way.ENGINE and step.is_main:
        console.note(f"{named}: answers come from {way.value}; the decode engine cannot run {type(model).__name__}")


def validation_prompts(
    step: Step, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation], context: int, new_tokens: int
) -> list[Conversation]:
    """The prompts to evaluate on: those of the built-in world that the stage reads, else the validation `prompts`.

    At most `evaluation.prompts`. Prompts that leave no room for an answer of `new_tokens` in a `context` of so many
    tokens are left out.
    """
    world = step.world()
    if world is not None:
        prompts = load_prompts([DataBlock(source=world)], step.recipe.worlds, f"{step.stage}.data").validation
    fitting = prompts_with_room(tokenizer, prompts, context, "evaluation.max_new_tokens", new_tokens)
    return fitting[: step.recipe.evaluation.prompts]


def longest_row(step: Step, context: int) -> int:
    """Tokens of the longest row: `max_length`, at most what the model reads; says so where that is less."""
    asked = step.section.max_length
    if asked is not None and asked > context and step.is_main:
        console.note(
            f"{step.stage}.max_length = {asked:,}: the model reads {context:,} tokens, so that is the longest row"
        )
    return row_length(asked, context)


def longest_answer(step: Step, asked: int | None, tokenizer: PreTrainedTokenizerBase, context: int) -> int:
    """The longest answer in tokens: `asked`, else as the validation answers of `sft.data` are long (`answer_limit`)."""
    blocks = step.data.get("sft.data", []) if asked is None else []
    answers = (conversation[-1] for conversation in _validation_conversations(step, blocks))
    return answer_limit(asked, tokenizer, answers, context)


def _validation_conversations(step: Step, blocks: Sequence[DataBlock]) -> Iterator[Conversation]:
    """The conversations of `sft.data` that are not trained on, as they are read."""
    # What is trained on whole is not even parsed: it comes first.
    blocks = [block for block in blocks if block.use != "train"]
    if not blocks:
        return iter(())
    stream = stream_conversations(blocks, step.recipe.worlds, "sft.data", Report())
    return (conversation for conversation, split in stream if split == "validation")


def answering(step: Step, tokenizer: PreTrainedTokenizerBase, context: int) -> SamplingParams:
    """How validation prompts are answered."""
    settings = step.recipe.evaluation
    return SamplingParams(longest_answer(step, settings.max_new_tokens, tokenizer, context), settings.temperature)


def oracle_of(step: Step) -> Oracle | None:
    """The oracle of the built-in world that the stage reads; None where it reads none."""
    world = step.world()
    return None if world is None else world_named(world, step.recipe.worlds).oracle()


def example_prompt(step: Step) -> Conversation:
    """A validation question of the recipe, of medium length, the same in all stages: a person sees what each changed.

    Other stages' data may be missing when a stage runs alone; the question is then a general one.
    """
    try:
        single = list(islice((prompt for prompt in _prompts(step) if len(prompt) == 1), EXAMPLE_CANDIDATES))
    except UsageError:
        single = []
    if not single:
        return [{"role": "user", "content": "Who are you?"}]
    return sorted(single, key=lambda prompt: len(prompt[-1]["content"]))[len(single) // 2]


def _prompts(step: Step) -> Iterable[Conversation]:
    recipe = step.recipe
    blocks = recipe.ppo.data or recipe.rm.data or recipe.sample.data
    if blocks:
        return load_prompts(blocks, recipe.worlds, "ppo.data").validation
    blocks = with_eval_data(recipe.sft.data or [], recipe.sft.eval_data)
    return (conversation[:-1] for conversation in _validation_conversations(step, blocks))


# ---- the trainer ----


def stage_arguments(step: Step, cls: type[Arguments], reading: Reading | None = None, **more: Any) -> Arguments:
    """Arguments of type `cls` for the step's trainer; those in `more` belong to this stage only."""
    recipe = step.recipe
    return training_arguments(
        cls, step.section, step.stage, step.folder, recipe.seed, step.processes, recipe.report_to, reading, **more
    )


def stage_adapter(
    step: Step,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    section: Lora | None,
    whole: Iterable[nn.Module] = (),
    without: Sequence[str] = (),
) -> Adapter | None:
    """Puts a LoRA adapter into `model`, to be trained in place of its weights; None where `section` is None.

    `whole` modules are trained themselves; linear layers named `without` get no adapter.
    """
    if section is None:
        return None
    if step.is_main and len(tokenizer) > len(load_tokenizer(step.models["model"])):
        console.warn(
            f"{step.stage}.lora leaves the embeddings of the chat template's new tokens at random; "
            "train the model whole."
        )
    set_seed(step.recipe.seed)  # its first weights are drawn at random
    try:
        return Adapter(model, lora_settings(section, without), whole)
    except UsageError as problem:
        raise UsageError(f"{step.stage}.{problem.message}", problem.hint) from problem


def lora_settings(section: Lora, without: Sequence[str] = ()) -> Any:
    """peft's configuration of a recipe's section `lora`."""
    return lora_config(section.r, section.alpha, section.target_modules, without)


def keep_adapter(step: Step, adapter: Adapter | None) -> None:
    """Writes the adapter into STAGE/adapter where the recipe asks for it, before it is merged."""
    if adapter is not None and step.section.lora.keep_adapter:
        adapter.save(step.folder / "adapter", step.models["model"])


# ---- the rehearsal, which a dry run times ----

REHEARSED_STEPS, STEP_SECONDS, ASSUMED_SHARE_OF_PEAK = 5, 3.0, 0.5
"""A rehearsal takes so many steps at most, each of about so many seconds at that share of the device's FLOP/s."""


@dataclass(frozen=True)
class Work:
    """How much a stage computes, over all processes. All but the optimizer's `steps` are tokens.

    `trained`: read with gradients. `read` and `written`: before the updates of ppo. `validated` and `answered`: read
    and written by the evaluation.
    """

    steps: int
    trained: float
    validated: float
    answered: float
    read: float = 0.0
    written: float = 0.0


@dataclass(frozen=True)
class Rehearsal:
    """A stage on a few of its rows, ready to take a few steps.

    `tokens_of`: how many tokens a step has, numbered from 0. The stage's own micro-batch has `micro_batch` rows and
    `largest` tokens at most; `reading` knows their memory. `read` reads rows without gradients and returns the number
    of tokens. `prompts` are to be answered in up to `new_tokens` by `model`; a reward model has none. `work` is that of
    the whole stage, for answers of so many tokens on average.
    """

    trainer: Any
    model: PreTrainedModel
    tokens_of: Callable[[int], int]
    micro_batch: int
    largest: int
    reading: Reading
    read: Callable[[], int]
    work: Callable[[float], Work]
    eos_token_id: int
    prompts: Sequence[Sequence[int]] = ()
    new_tokens: int = 0


def micro_batch_of(step: Step, reading: Reading, processes: int) -> int:
    """The rows of a micro-batch in each of `processes`."""
    _, fitting = memory_settings(step.section, step.stage, reading, training_device())
    return step.section.micro_batches(processes, step.stage, fitting)["per_device_train_batch_size"]


def affordable_tokens(step: Step, reading: Reading) -> int:
    """The tokens of a rehearsal's step."""
    half = use_bf16(step.section.bf16, training_device())
    peak = peak_flops(torch.bfloat16 if half else torch.float32) or 1e14
    # forward, backward, and forward again where activations are recomputed
    return int(STEP_SECONDS * ASSUMED_SHARE_OF_PEAK * peak / sum(8 * m.num_parameters() for m in reading.models))


def with_batches_of(step: Step, rows: int, **more: Any) -> Step:
    """The step with batches of one micro-batch of so many rows; `more` are keys of its section."""
    small = {"batch_size": rows, "per_device_train_batch_size": rows, **more}
    section = step.section.model_copy(update=small)
    return replace(step, recipe=step.recipe.model_copy(update={step.stage: section, "report_to": "none"}))


def rehearsed_rows(lengths: Sequence[int] | np.ndarray, micro: int, tokens: int) -> list[list[int]]:
    """The numbers of the rows of each step of a rehearsal: at most `micro` rows and about `tokens` tokens.

    The second step has the longest rows of these, for the memory; the others any.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    short = order[: max(1, int(np.searchsorted(np.asarray(lengths)[order], tokens, side="right")))]
    rows = max(1, min(micro, int(tokens / np.mean(np.asarray(lengths)[short]))))
    drawn = np.resize(np.random.default_rng(0).permutation(short), rows * REHEARSED_STEPS).reshape(-1, rows)
    drawn[1] = np.resize(short[-max(1, min(rows, tokens // int(lengths[short[-1]]))) :], rows)
    return [step.tolist() for step in drawn]


def padded(lengths: np.ndarray, micro: int) -> np.ndarray:
    """The lengths of rows in a random order, each as long as the longest of its micro-batch."""
    drawn = np.random.default_rng(0).permutation(lengths)
    whole = np.resize(drawn, (-(-len(drawn) // micro), micro))
    return whole.max(1).repeat(micro)


def rehearsal_arguments() -> Mapping[str, Any]:
    """What a rehearsal's trainer has in place of the recipe's: a few steps in the given order, nothing saved."""
    in_order = {"train_sampling_strategy": "sequential"}
    never = dict.fromkeys(("save_strategy", "eval_strategy", "logging_strategy"), "no")
    # a schedule may have more steps than the rehearsal
    schedule = {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None}
    return {**in_order, **never, **schedule, "max_steps": REHEARSED_STEPS}


# ---- the saved folder ----


def save_checkpoint(
    step: Step, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: str | None = None
) -> None:
    """Writes model, tokenizer and card into the stage's folder; the manifest comes later and last.

    The result stays what the model at `start` was: the dtype, the special tokens, the tokenizer's files and
    generation_config.json are those. Without `start` they are those of `model` and `tokenizer`.
    """
    if start is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:  # transformers refuses to save others' settings that do not go together
        padding = tokenizer.pad_token_id if start is None else generation.pad_token_id
        ends = _ends(generation.eos_token_id, tokenizer.eos_token_id)
        kept = {"bos_token_id": generation.bos_token_id, "eos_token_id": ends, "pad_token_id": padding}
        model.generation_config = GenerationConfig(**kept)
    save_model(model, step.folder, start)
    if start is None or load_tokenizer(start).chat_template is None:
        tokenizer.save_pretrained(step.folder)
    else:
        copy_files(start, step.folder, TOKENIZER_FILES)
    if start is not None:
        copy_files(start, step.folder, PROCESSOR_FILES)
        copy_generation_config(start, step.folder, tokenizer.eos_token_id)
    card = CARD.format(stage=step.stage, title=step.title, auto=_auto_class(model), folder=step.folder.name)
    (step.folder / "README.md").write_text(card, encoding="utf-8")


def _ends(before: int | list[int] | None, eos_token_id: int) -> int | list[int]:
    """What generation stops at: the end of a turn, and what else it stopped at before, such as the end of a text."""
    others = [token for token in ([before] if isinstance(before, int) else before or []) if token != eos_token_id]
    return [eos_token_id, *others] if others else eos_token_id


def _auto_class(model: PreTrainedModel) -> str:
    """The class of transformers that opens the folder again."""
    kinds = ("ForSequenceClassification", "ForMaskedLM")
    kind = next((kind for kind in kinds if type(model).__name__.endswith(kind)), None)
    return f"AutoModel{kind}" if kind else str(causal_class(model.config).__name__)
