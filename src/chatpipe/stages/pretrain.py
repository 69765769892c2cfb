"""pretrain: a base model from raw text."""

import gc
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from chatpipe import console
from chatpipe.checks.by_stage import pretrain_checks, token_checks
from chatpipe.checks.gate import Checks, enforce
from chatpipe.data.documents import RawText, sample_texts
from chatpipe.data.masking import Masking, add_mask_token
from chatpipe.data.text_blocks import BlockCollator
from chatpipe.evaluation.masked import unigram_nats
from chatpipe.evaluation.ngram import trigram_bits_per_byte
from chatpipe.evaluation.verdicts import masked_verdict, pretrain_verdict
from chatpipe.models.context import longest_sequence
from chatpipe.models.new_model import new_model
from chatpipe.models.pretrained import load_causal_model, load_masked_model
from chatpipe.stages.arguments import stage_arguments
from chatpipe.stages.example import complete_example
from chatpipe.stages.measuring import HeldOut, first_words
from chatpipe.stages.raw_text import (
    check_training_side,
    pretraining_tokenizer,
    stage_texts,
    training_text,
    validation_documents,
    validation_text,
)
from chatpipe.stages.saving import save_checkpoint
from chatpipe.stages.step import Outcome, Step
from chatpipe.stages.step_checks import check_context
from chatpipe.training.pretrain_arguments import pretrain_arguments
from chatpipe.training.pretrain_trainer import PretrainTrainer
from chatpipe.training.run_trainer import run_trainer

MAX_TRIGRAM_BYTES = 50_000_000
"""More text to count in hardly changes what the 3-gram model predicts."""


@dataclass(frozen=True)
class Prepared:
    """What pretraining begins with, before its text is tokenised. `held_out`: documents."""

    texts: list[RawText]
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    held_out: list[str]

    def checks(self) -> Checks:
        """The checks that need no tokens."""
        return pretrain_checks(self.tokenizer, self.model, self.texts, self.held_out)


def prepare(step: Step) -> Prepared:
    """Makes or loads tokenizer and model, and reads what is held out; every process has the same."""
    texts = stage_texts(step, "pretrain.data")
    check_training_side(texts)  # before a tokenizer is trained and kept
    held_out = validation_documents(texts)
    tokenizer = pretraining_tokenizer(step, texts)
    if step.recipe.pretrain.objective == "masked":
        add_mask_token(tokenizer)
    model = _start(step, tokenizer)
    # Here too: the positions of a model of the hub are not known before it is loaded.
    check_context(step.recipe.pretrain.block_size, longest_sequence(model))
    return Prepared(texts, tokenizer, model, held_out)


def run(step: Step) -> Outcome | None:
    """Trains the stage's model; the main process evaluates it, saves it and returns what came out."""
    section = step.recipe.pretrain
    prepared = prepare(step)
    texts, tokenizer, model, documents = prepared.texts, prepared.tokenizer, prepared.model, prepared.held_out
    enforce(step.stage, step.recipe.checks, prepared.checks())
    del prepared  # it would hold the trained model while the saved one is measured
    samples = section.max_steps * section.batch_size
    train = training_text(step, texts, tokenizer, section.block_size, samples, section.batch_size)
    enforce(step.stage, step.recipe.checks, token_checks(tokenizer, model, train))
    isolate = section.documents == "isolate"
    masking = Masking.of(tokenizer, section.mlm_probability) if section.objective == "masked" else None
    held_out = HeldOut(
        validation_text(documents, tokenizer, section.block_size, isolate),
        tokenizer,
        section.sample_prompts or first_words(documents),
        masking,
    )
    before = _score(held_out, model) if step.is_main else None

    args = stage_arguments(step, TrainingArguments, **pretrain_arguments(section))
    trainer = PretrainTrainer(
        model,
        args,
        train,
        muon=section.optimizer == "muon",
        masking=masking,
        measure=held_out.measure,
        data_collator=BlockCollator(tokenizer.eos_token_id if isolate else None),
        eval_dataset=[],  # `held_out` measures; Trainer wants to see one where it is to evaluate
        processing_class=tokenizer,
    )
    speed = run_trainer(trainer, model, step.stage, step.folder, section.block_size, section.max_nonfinite_steps)
    if before is None:
        return None

    save_checkpoint(step, model, tokenizer)
    del trainer
    gc.collect()  # the optimizer's memory: trainer and callbacks hold each other
    # The trained one's forward may still run in bf16; before and after are both measured in float32.
    model = _load(step, step.folder)
    after = _score(held_out, model)
    metrics: dict[str, Any] = {
        "eval_loss": after.pop("loss"),
        **after,
        "parameters": model.num_parameters(),
        "train_tokens": section.max_steps * section.batch_size * train.block_size,
        "corpus_tokens": sum(map(len, train.stores)),
        **speed,
    }
    # With pretrain.model given, what it started from is not untrained.
    began = "{}_before" if step.models else "untrained_{}"
    if masking is not None:
        metrics["unigram_loss"] = unigram_nats(train.stores, held_out.text, masking.special_ids, masking.tokens)
        metrics[began.format("eval_loss")] = before["loss"]
        return Outcome(metrics, masked_verdict(metrics).to_dict())
    counted = sample_texts(texts, "train", max_bytes=MAX_TRIGRAM_BYTES)
    metrics["trigram_bits_per_byte"] = trigram_bits_per_byte(counted, documents)
    metrics[began.format("bits_per_byte")] = before["bits_per_byte"]
    metrics["example"] = complete_example(step, model, tokenizer)
    return Outcome(metrics, pretrain_verdict(metrics).to_dict())


def _score(held_out: HeldOut, model: PreTrainedModel) -> dict[str, float]:
    """How well the model predicts the held-out text."""
    with console.progress("evaluating", total=None):
        return held_out.score(model)


def _start(step: Step, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A new model, or the one to go on from."""
    set_seed(step.recipe.seed)
    if "model" in step.models:
        model = _load(step, step.models["model"])
        if step.recipe.pretrain.tokenizer.pretrained is not None:
            _forget_ends(model, tokenizer)
        return model
    return new_model(step.recipe.pretrain.architecture, tokenizer)


def _forget_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Leaves the model no end of its own that is an ordinary token of `tokenizer`, where generation would stop."""
    generation = getattr(model, "generation_config", None)
    if generation is None or generation.eos_token_id is None:  # of an encoder
        return
    ends = generation.eos_token_id
    known = tokenizer.added_tokens_decoder
    generation.eos_token_id = [end for end in ([ends] if isinstance(ends, int) else ends) if end in known] or None


def _load(step: Step, model: Any) -> PreTrainedModel:
    return load_masked_model(model) if step.recipe.pretrain.objective == "masked" else load_causal_model(model)
