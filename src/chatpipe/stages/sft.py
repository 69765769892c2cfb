"""sft: a chat model from a base model and conversations."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig

from chatpipe import console
from chatpipe.checks.by_stage import sft_checks
from chatpipe.checks.gate import Checks, enforce
from chatpipe.data.chat_rows import Rows, RowsNote, check_enough_rows, rows_of_conversations
from chatpipe.data.chat_template import encode_prompt
from chatpipe.data.datasets import Conversation
from chatpipe.data.packing import training_sequences
from chatpipe.data.text_blocks import TrainingText
from chatpipe.evaluation.answers import answer_example, share_within
from chatpipe.evaluation.budget import Stopwatch, chat_prompts, chat_rows
from chatpipe.evaluation.chat import EncodedConversation, chat_loss, chat_samples, evaluate_chat
from chatpipe.evaluation.language_verdicts import sft_verdict
from chatpipe.generation import SamplingParams
from chatpipe.models.logprobs import gives_label_logits, label_logits
from chatpipe.models.pretrained import load_causal_model, load_for_chat, load_tokenizer
from chatpipe.models.properties import longest_sequence
from chatpipe.stages.shared import (
    Rehearsal,
    Work,
    affordable_tokens,
    answering,
    check_completes,
    example_prompt,
    keep_adapter,
    longest_row,
    micro_batch_of,
    oracle_of,
    padded,
    rehearsal_arguments,
    rehearsed_rows,
    save_checkpoint,
    stage_adapter,
    stage_arguments,
    stage_texts,
    training_text,
    validation_prompts,
    with_batches_of,
)
from chatpipe.stages.step import Outcome, Step
from chatpipe.training.arguments import Reading
from chatpipe.training.evaluations import Measure
from chatpipe.training.machine import release_memory
from chatpipe.training.ranks import main_process_first
from chatpipe.training.run_trainer import run_trainer
from chatpipe.training.sft_trainer import SftTrainer

MAX_CONVERSATIONS = 2000
"""Enough for a precise loss; a tenth of a large file would take longer than training."""

FEW_ROWS, MANY_ROWS = 2, 100
"""How many conversations a rehearsal reads without gradients, and counts the answers of."""

KEY = "sft.data"
ROWS = "rows"


@dataclass(frozen=True)
class Prepared:
    """The model, the rows of both splits, and the conversations left out of these."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    train: Rows
    validation: Rows
    note: RowsNote
    max_length: int

    def checks(self) -> Checks:
        """The checks of the stage."""
        return sft_checks(self.tokenizer, self.model, self.train, self.validation, self.note, self.max_length)


def prepare(step: Step) -> Prepared:
    """Loads the model and makes the rows; every process has the same."""
    tokenizer, model = load_for_chat(step.models["model"], settings=step.recipe.chat_template_kwargs)
    check_completes(step, model)
    max_length = longest_row(step, longest_sequence(model))
    blocks = step.data[KEY]
    with main_process_first(step.folder):
        rows = rows_of_conversations(step.folder / ROWS, blocks, step.recipe.worlds, tokenizer, max_length, KEY)
    return Prepared(tokenizer, model, *rows, max_length)


def checks(step: Step) -> Iterator[Checks]:
    """The checks before the first step, for `chatpipe check`."""
    yield prepare(step).checks()


def run(step: Step) -> Outcome | None:
    """Trains the stage's model, saves and evaluates it; the main process returns what came out."""
    recipe = step.recipe
    prepared, evaluating = prepare(step), Stopwatch()
    enforce(step.stage, prepared.checks(), recipe.checks)
    tokenizer, model, max_length = prepared.tokenizer, prepared.model, prepared.max_length
    train, note = prepared.train, prepared.note
    check_enough_rows(train, prepared.validation, KEY)
    for line in note.left_out(max_length) if step.is_main else ():
        console.note(line)
    params = answering(step, tokenizer, longest_sequence(model))
    rows, prompts = _validation(step, prepared, params)
    with evaluating:
        before = chat_loss(model, rows)
    answers = (conversation[-1] for conversation in prepared.validation.examples())
    within = share_within(params.max_new_tokens, tokenizer, answers)
    trained = _train(step, prepared, rows, prompts, params)
    del prepared, model
    release_memory()

    if step.is_main:
        console.log_line(f"sft: evaluating {len(rows):,} conversations and {len(prompts):,} answers")
    with evaluating:
        # In float32, as before training: the forward pass of the trained model may still compute in bf16.
        model = load_causal_model(step.folder)
        evaluated, _ = evaluate_chat(model, tokenizer, rows, prompts, params, recipe.seed, oracle_of(step))
        example = answer_example(model, tokenizer, example_prompt(step))
    metrics = {
        **evaluated,
        "eval_loss_before": before,
        "answers_within_limit": within,
        "train_conversations": note.kept["train"],
        "left_out_conversations": note.too_long["train"],
        "skipped_rows": note.skipped,
        "example": example,
        **trained,
        "evaluation_seconds": trained["evaluation_seconds"] + evaluating.seconds,
    }
    return Outcome(metrics, sft_verdict(metrics).to_dict()) if step.is_main else None


def _validation(
    step: Step, prepared: Prepared, params: SamplingParams
) -> tuple[list[EncodedConversation], list[Conversation]]:
    """The validation conversations and prompts, as many as the evaluation may cost."""
    validation = prepared.validation
    prompts = [conversation[:-1] for conversation in validation.examples()]
    context = longest_sequence(prepared.model)
    prompts = validation_prompts(step, prepared.tokenizer, prompts, context, params.max_new_tokens)
    section = step.recipe.sft
    steps = section.num_train_epochs * len(prepared.train) / section.batch_size
    most_rows, most_prompts = _affordable(step, prepared, params, section.max_steps if section.max_steps > 0 else steps)
    return validation.first(most_rows), prompts[:most_prompts]


def _affordable(step: Step, prepared: Prepared, params: SamplingParams, steps: float) -> tuple[int, int]:
    """How many conversations and prompts the evaluation of so many steps may read (`evaluation.budget`)."""
    section, parameters = step.recipe.sft, prepared.model.num_parameters()
    trained = int(steps * section.batch_size * prepared.train.lengths.sum() / len(prepared.train))
    evaluations = 2 + (int(steps / section.eval_steps) if section.eval_steps else 0)
    most = chat_rows(parameters, trained, float(prepared.validation.lengths.mean()), evaluations)
    return min(most, MAX_CONVERSATIONS), chat_prompts(parameters, trained, params.max_new_tokens)


def _train(
    step: Step,
    prepared: Prepared,
    rows: Sequence[EncodedConversation],
    prompts: Sequence[Conversation],
    params: SamplingParams,
) -> dict[str, Any]:
    """Trains the model, saves it into the stage's folder and returns the speed."""
    section, tokenizer, model, max_length = step.recipe.sft, prepared.tokenizer, prepared.model, prepared.max_length
    asked = [[{"role": "user", "content": question}] for question in section.sample_prompts] or list(prompts[:2])
    sequences = _sequences(step, prepared)
    trainer = _trainer(step, prepared, sequences, partial(_measure, tokenizer, rows, asked, params.max_new_tokens))
    speed = run_trainer(trainer, model, step.stage, step.folder, max_length, section.max_nonfinite_steps)
    trainer.load_best()
    with main_process_first(step.folder):
        if step.is_main:
            keep_adapter(step, trainer.adapter)
            save_checkpoint(step, trainer.trained_model(), tokenizer, step.models["model"])
    return {**speed, **({"best_step": trainer.best_step} if section.load_best_model_at_end else {})}


def _sequences(step: Step, prepared: Prepared) -> Dataset:
    """What an epoch reads: the rows, and the raw text that is mixed in; packed where the recipe says so."""
    pack_to = prepared.max_length if step.recipe.sft.packing else None
    return training_sequences(prepared.train, _raw_text(step, prepared.train), pack_to)


def _reading(step: Step, prepared: Prepared) -> Reading:
    longest = prepared.max_length if step.recipe.sft.packing else int(prepared.train.lengths.max())
    return Reading((prepared.model,), longest)


def _trainer(
    step: Step, prepared: Prepared, sequences: Dataset, measure: Measure | None = None, **more: Any
) -> SftTrainer:
    """The stage's trainer on `sequences`; `more` are further arguments of its SFTConfig."""
    section, tokenizer, model = step.recipe.sft, prepared.tokenizer, prepared.model
    given = {
        "num_train_epochs": section.num_train_epochs,
        "max_steps": section.max_steps,
        "max_length": prepared.max_length,
        "eval_strategy": "no" if section.eval_steps is None else "steps",
        "eval_steps": section.eval_steps,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    args = stage_arguments(step, SFTConfig, _reading(step, prepared), **{**given, **more})
    adapter = stage_adapter(step, model, tokenizer, section.lora)
    return SftTrainer(
        model,
        args,
        sequences,
        tokenizer,
        packed=section.packing,
        adapter=adapter,
        measure=measure,
        keep_best=section.load_best_model_at_end and measure is not None,
        label_logits=partial(label_logits, model) if gives_label_logits(model) else None,
    )


def _measure(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedConversation],
    prompts: Sequence[Conversation],
    max_new_tokens: int,
    model: PreTrainedModel,
) -> dict[str, Any]:
    """The metrics of an evaluation during training."""
    return {"eval_loss": chat_loss(model, rows), "samples": chat_samples(model, tokenizer, prompts, max_new_tokens)}


def _raw_text(step: Step, train: Rows) -> TrainingText | None:
    """Raw text so that it makes up `sft.pretrain_mix` of all rows: blocks as long as the longest conversation.

    The model's own tokenizer reads it: a text does not end as a turn does.
    """
    mix = step.recipe.sft.pretrain_mix
    count = round(len(train) * mix / (1 - mix))
    if count == 0:
        return None
    block_size = int(train.lengths.max())
    own = load_tokenizer(step.models["model"])
    return training_text(step, stage_texts(step, "pretrain.data"), own, block_size, samples=count)


# ---- the dry run ----


def rehearse(step: Step, processes: int, amounts: Mapping[str, Any]) -> Rehearsal:
    """The stage on a few rows, for its dry run; `amounts` are those of all."""
    prepared = prepare(step)
    enforce(step.stage, prepared.checks(), step.recipe.checks)
    check_enough_rows(prepared.train, prepared.validation, KEY)
    model, reading = prepared.model, _reading(step, prepared)
    params = answering(step, prepared.tokenizer, longest_sequence(model))
    sequences = _sequences(step, prepared)
    lengths = np.array([len(row["input_ids"]) for row in sequences])
    micro = micro_batch_of(step, reading, processes)
    steps = rehearsed_rows(lengths, micro, affordable_tokens(step, reading))
    small = with_batches_of(step, len(steps[0]))
    validation, prompts = _validation(step, prepared, params)
    few = validation[:FEW_ROWS]

    def read() -> int:
        chat_loss(model, few)
        return sum(len(row) for row, _ in few)

    pads = step.recipe.sft.packing or not gives_label_logits(model)
    conversations, read_as = amounts["rows"] * (1 - step.recipe.sft.pretrain_mix), lengths
    if pads:
        read_as = padded(lengths, micro)
    work = _work(step, prepared, params, read_as, conversations / len(prepared.train))

    def tokens_of(number: int) -> int:
        chosen = lengths[steps[number]]
        return len(chosen) * int(chosen.max()) if pads else int(chosen.sum())

    return Rehearsal(
        trainer=_trainer(small, prepared, sequences.select(sum(steps, [])), **rehearsal_arguments()),
        model=model,
        tokens_of=tokens_of,
        micro_batch=micro,
        largest=micro * int(lengths.max()),
        reading=reading,
        read=read,
        work=lambda _: work,
        eos_token_id=prepared.tokenizer.eos_token_id,
        prompts=[encode_prompt(prepared.tokenizer, prompt) for prompt in prompts],
        new_tokens=params.max_new_tokens,
    )


def _work(step: Step, prepared: Prepared, params: SamplingParams, lengths: np.ndarray, share: float) -> Work:
    """What the stage computes on `share` times as many rows as are prepared; `lengths` are those of its sequences."""
    section, validation = step.recipe.sft, prepared.validation
    steps = section.num_train_epochs * share * len(lengths) / section.batch_size
    steps = section.max_steps if section.max_steps > 0 else steps
    most_rows, most_prompts = _affordable(step, prepared, params, steps)
    rows = min(most_rows, share * len(validation))
    prompts = min(most_prompts, step.recipe.evaluation.prompts, share * len(validation))
    # before and after, and twice for the question gain
    readings = 4 + (int(steps / section.eval_steps) if section.eval_steps else 0)
    learned = np.mean([sum(mask) for _, mask in validation.first(MANY_ROWS)])
    return Work(
        math.ceil(steps),
        trained=steps * section.batch_size * float(lengths.mean()),
        validated=(readings * rows + prompts) * float(validation.lengths.mean()),
        answered=prompts * min(float(learned), params.max_new_tokens),
    )
