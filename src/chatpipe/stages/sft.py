"""sft: a chat model from a base model and conversations."""

import gc
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig

from chatpipe import console
from chatpipe.checks.by_stage import sft_checks
from chatpipe.checks.gate import Checks, enforce
from chatpipe.data.chat_rows import Rows, RowsNote
from chatpipe.data.chat_template import add_chat_template
from chatpipe.data.datasets import Conversation
from chatpipe.data.text_blocks import TrainingText
from chatpipe.evaluation.chat_loss import MAX_CONVERSATIONS, HeldOutChats
from chatpipe.evaluation.verdicts import sft_verdict
from chatpipe.models.context import longest_sequence
from chatpipe.models.pretrained import load_causal_model, load_tokenizer
from chatpipe.stages.adapting import stage_adapter
from chatpipe.stages.arguments import stage_arguments
from chatpipe.stages.chats import chat_rows, check_enough, say_left_out
from chatpipe.stages.example import answer_example
from chatpipe.stages.judging import judge, judged_prompts
from chatpipe.stages.raw_text import stage_texts, training_text
from chatpipe.stages.saving import save_checkpoint
from chatpipe.stages.step import Outcome, Step
from chatpipe.training.packed_sequences import training_sequences
from chatpipe.training.run_trainer import run_trainer
from chatpipe.training.sft_trainer import SftTrainer

SAMPLE_TOKENS = 32


@dataclass(frozen=True)
class Prepared:
    """What fine-tuning begins with: the model and the rows of both sides, and what was left out of these."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    train: Rows
    held_out: Rows
    note: RowsNote
    max_length: int

    def checks(self) -> Checks:
        """The checks of the stage."""
        return sft_checks(self.tokenizer, self.model, self.train, self.held_out, self.note, self.max_length)


def prepare(step: Step) -> Prepared:
    """Loads the model and makes the rows; every process has the same."""
    tokenizer, model = load_for_chat(step.models["model"])
    max_length = min(step.recipe.sft.max_length, longest_sequence(model, decodes=True))
    return Prepared(tokenizer, model, *chat_rows(step, tokenizer, max_length), max_length)


def run(step: Step) -> Outcome | None:
    """Trains the stage's model; the main process evaluates it, saves it and returns what came out."""
    section = step.recipe.sft
    prepared = prepare(step)
    enforce(step.stage, step.recipe.checks, prepared.checks())
    tokenizer, model, max_length = prepared.tokenizer, prepared.model, prepared.max_length
    train, others, note = prepared.train, prepared.held_out, prepared.note
    del prepared  # it would hold the trained model while the saved one is measured
    check_enough(train, others)
    if step.is_main:
        say_left_out(train, others, note, max_length)
    prompts = [conversation[:-1] for conversation in others.examples()]
    prompts = judged_prompts(step, tokenizer, prompts, longest_sequence(model, decodes=True))
    held_out = HeldOutChats(
        others.first(MAX_CONVERSATIONS),
        tokenizer,
        _sample_prompts(section.sample_prompts) or prompts[:2],
        min(SAMPLE_TOKENS, step.recipe.evaluation.max_new_tokens),
    )
    before = _loss(held_out, model) if step.is_main else None

    args = stage_arguments(
        step,
        SFTConfig,
        num_train_epochs=section.num_train_epochs,
        max_steps=section.max_steps,
        max_length=max_length,
        eval_strategy="no" if section.eval_steps is None else "steps",
        eval_steps=section.eval_steps,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    text = _raw_text(step, train)
    adapter = stage_adapter(step, model, tokenizer, section.lora)
    trainer = SftTrainer(
        model,
        args,
        training_sequences(train, text, max_length if section.packing else None),
        tokenizer,
        packed=section.packing,
        adapter=adapter,
        measure=held_out.measure,
        keep_best=section.load_best_model_at_end,
    )
    speed = run_trainer(trainer, model, step.stage, step.folder, max_length, section.max_nonfinite_steps)
    trainer.load_best()
    if before is None:
        return None

    save_checkpoint(step, trainer.trained_model(), tokenizer)
    best = {"best_step": trainer.best_step} if section.load_best_model_at_end else {}
    del trainer
    gc.collect()  # the optimizer's memory: trainer and callbacks hold each other
    # The trained one's forward may still run in bf16; before and after are both measured in float32.
    model = load_causal_model(step.folder)
    with console.progress("evaluating", total=None):
        gain = held_out.gain(model)
    metrics = {
        "eval_loss": _loss(held_out, model),
        "eval_loss_before": before,
        "question_gain": gain.gain,
        "question_gain_low": gain.low,
        **judge(step, model, tokenizer, prompts).metrics(),
        **best,
        "train_conversations": len(train),
        "left_out_conversations": note.too_long["train"],
        "skipped_rows": note.skipped,
        "example": answer_example(step, model, tokenizer),
        **speed,
    }
    return Outcome(metrics, sft_verdict(metrics).to_dict())


def load_for_chat(model: str, frozen: bool = False) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A causal model in float32 and its tokenizer, with a chat template and embeddings for all of its tokens."""
    tokenizer = load_tokenizer(model)
    loaded = load_causal_model(model, frozen)
    add_chat_template(tokenizer)
    entries = loaded.get_input_embeddings().num_embeddings
    if len(tokenizer) > entries:
        console.note(
            f"the vocabulary grows from {entries:,} to {len(tokenizer):,}: tokens of the chat template, untrained"
        )
        set_seed(0)  # the new rows are drawn at random
        loaded.resize_token_embeddings(len(tokenizer))
    loaded.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, loaded


def _loss(held_out: HeldOutChats, model: PreTrainedModel) -> float:
    with console.progress("evaluating", total=None):
        return held_out.loss(model)


def _sample_prompts(questions: list[str]) -> list[Conversation]:
    return [[{"role": "user", "content": question}] for question in questions]


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
