"""sft: a chat model from a base model and conversations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig

from chatpipe import console
from chatpipe.checks.by_stage import sft_checks
from chatpipe.checks.gate import Checks, enforce
from chatpipe.data.chat_rows import Rows, RowsNote, check_enough_rows, rows_of_conversations
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
from chatpipe.models.properties import longest_sequence, row_length
from chatpipe.stages.shared import (
    answering,
    check_completes,
    example_prompt,
    keep_adapter,
    oracle_of,
    save_checkpoint,
    stage_adapter,
    stage_arguments,
    stage_texts,
    training_text,
    validation_prompts,
)
from chatpipe.stages.step import Outcome, Step
from chatpipe.training.arguments import Reading
from chatpipe.training.machine import release_memory
from chatpipe.training.ranks import main_process_first
from chatpipe.training.run_trainer import run_trainer
from chatpipe.training.sft_trainer import SftTrainer

MAX_CONVERSATIONS = 2000
"""Enough for a precise loss; a tenth of a large file would take longer than training."""

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
    max_length = row_length(step.recipe.sft.max_length, longest_sequence(model))
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
    """The validation conversations and prompts, as many as the evaluation may cost (`evaluation.budget`)."""
    section, validation, model = step.recipe.sft, prepared.validation, prepared.model
    prompts = [conversation[:-1] for conversation in validation.examples()]
    context = longest_sequence(model)
    prompts = validation_prompts(step, prepared.tokenizer, prompts, context, params.max_new_tokens)
    parameters, tokens = model.num_parameters(), int(prepared.train.lengths.sum())
    epochs = section.num_train_epochs
    steps = section.max_steps if section.max_steps > 0 else epochs * len(prepared.train) / section.batch_size
    trained = int(steps * section.batch_size * tokens / len(prepared.train))
    evaluations = 2 + (int(steps / section.eval_steps) if section.eval_steps else 0)
    most = chat_rows(parameters, trained, float(validation.lengths.mean()), evaluations)
    rows = validation.first(min(most, MAX_CONVERSATIONS))
    return rows, prompts[: chat_prompts(parameters, trained, params.max_new_tokens)]


def _train(
    step: Step,
    prepared: Prepared,
    rows: Sequence[EncodedConversation],
    prompts: Sequence[Conversation],
    params: SamplingParams,
) -> dict[str, Any]:
    """Trains the model, saves it into the stage's folder and returns the speed."""
    section, tokenizer, model, max_length = step.recipe.sft, prepared.tokenizer, prepared.model, prepared.max_length
    longest = max_length if section.packing else int(prepared.train.lengths.max())
    args = stage_arguments(
        step,
        SFTConfig,
        Reading((model,), longest),
        num_train_epochs=section.num_train_epochs,
        max_steps=section.max_steps,
        max_length=max_length,
        eval_strategy="no" if section.eval_steps is None else "steps",
        eval_steps=section.eval_steps,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    text = _raw_text(step, prepared.train)
    adapter = stage_adapter(step, model, tokenizer, section.lora)
    asked = [[{"role": "user", "content": question}] for question in section.sample_prompts] or list(prompts[:2])
    trainer = SftTrainer(
        model,
        args,
        training_sequences(prepared.train, text, max_length if section.packing else None),
        tokenizer,
        packed=section.packing,
        adapter=adapter,
        measure=partial(_measure, tokenizer, rows, asked, params.max_new_tokens),
        keep_best=section.load_best_model_at_end,
        label_logits=partial(label_logits, model) if gives_label_logits(model) else None,
    )
    speed = run_trainer(trainer, model, step.stage, step.folder, max_length, section.max_nonfinite_steps)
    trainer.load_best()
    with main_process_first(step.folder):
        if step.is_main:
            keep_adapter(step, adapter)
            save_checkpoint(step, trainer.trained_model(), tokenizer, step.models["model"])
    return {**speed, **({"best_step": trainer.best_step} if section.load_best_model_at_end else {})}


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
