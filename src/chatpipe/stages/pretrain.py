"""pretrain: a base model from raw text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from chatpipe import console
from chatpipe.checks.by_stage import pretrain_checks, token_checks
from chatpipe.checks.gate import Checks, enforce
from chatpipe.data.documents import RawText, check_train_split, sample_texts, validation_documents
from chatpipe.data.encoding import Encoder
from chatpipe.data.text_blocks import BlockCollator, Masking, TrainingText, ValidationText, add_mask_token
from chatpipe.errors import UsageError
from chatpipe.evaluation.answers import complete_example
from chatpipe.evaluation.baselines import trigram_bits_per_byte, unigram_nats
from chatpipe.evaluation.budget import Stopwatch, text_blocks
from chatpipe.evaluation.language_verdicts import masked_verdict, pretrain_verdict
from chatpipe.evaluation.text import MAX_TEXT_BYTES, continuations, evaluate_text, first_words
from chatpipe.models.new_model import new_model, tokenizer_of_text
from chatpipe.models.pretrained import load_causal_model, load_masked_model, load_tokenizer
from chatpipe.models.properties import check_block_size, longest_sequence
from chatpipe.stages.shared import (
    TOKENS,
    check_completes,
    example_prompt,
    save_checkpoint,
    stage_arguments,
    stage_texts,
    training_text,
)
from chatpipe.stages.step import Outcome, Step
from chatpipe.training.arguments import pretrain_arguments
from chatpipe.training.machine import release_memory
from chatpipe.training.pretrain_trainer import PretrainTrainer
from chatpipe.training.ranks import main_process_first
from chatpipe.training.run_trainer import run_trainer

MAX_TRIGRAM_BYTES = 50_000_000
"""More text to count in hardly changes what the 3-gram model predicts."""


@dataclass(frozen=True)
class Prepared:
    """What pretraining begins with, before its text is tokenised. `validation`: documents."""

    texts: list[RawText]
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    validation: list[str]

    def checks(self) -> Checks:
        """The checks that need no tokens."""
        return pretrain_checks(self.tokenizer, self.model, self.texts, self.validation)


def prepare(step: Step) -> Prepared:
    """Makes or loads tokenizer and model, and reads the validation documents; every process has the same."""
    texts = stage_texts(step, "pretrain.data")
    check_train_split(texts)  # before a tokenizer is trained and kept
    validation = validation_documents(texts, MAX_TEXT_BYTES)
    tokenizer = _tokenizer(step, texts)
    if step.recipe.pretrain.objective == "masked":
        add_mask_token(tokenizer)
    model = _start(step, tokenizer)
    if step.recipe.pretrain.objective == "causal":
        check_completes(step, model)
    # Here too: the positions of a model of the hub are not known before it is loaded.
    check_block_size(step.recipe.pretrain.block_size, longest_sequence(model))
    return Prepared(texts, tokenizer, model, validation)


def checks(step: Step) -> Iterator[Checks]:
    """The checks before the first step, for `chatpipe check`."""
    yield prepare(step).checks()


def run(step: Step) -> Outcome | None:
    """Trains the stage's model, saves and evaluates it; the main process returns what came out."""
    section = step.recipe.pretrain
    prepared, evaluating = prepare(step), Stopwatch()
    texts, tokenizer, model = prepared.texts, prepared.tokenizer, prepared.model
    enforce(step.stage, prepared.checks(), step.recipe.checks)
    samples = section.max_steps * section.batch_size
    train = training_text(step, texts, tokenizer, section.block_size, samples, section.batch_size)
    enforce(step.stage, token_checks(tokenizer, model, train), step.recipe.checks)
    masking = Masking.of(tokenizer, section.mlm_probability) if section.objective == "masked" else None
    documents, text = _validation(step, prepared)
    with evaluating:
        before = evaluate_text(model, tokenizer, text, masking)

    def measure(model: PreTrainedModel) -> dict[str, Any]:
        """The metrics of an evaluation during training."""
        found = evaluate_text(model, tokenizer, text, masking)
        metrics: dict[str, Any] = {f"eval_{name.removeprefix('eval_')}": value for name, value in found.items()}
        if masking is None:
            prompts = section.sample_prompts or first_words(documents)
            metrics["samples"] = continuations(model, tokenizer, prompts)
        return metrics

    trained = _train(step, prepared, train, masking, measure)
    del prepared, model
    release_memory()

    if step.is_main:
        console.log_line(f"pretrain: evaluating {len(text.tokens):,} tokens")
    with evaluating:
        # In float32, as before training: the forward pass of the trained model may still compute in bf16.
        model = _load(step, step.folder)
        metrics: dict[str, Any] = {
            **evaluate_text(model, tokenizer, text, masking),
            "parameters": model.num_parameters(),
            "train_tokens": samples * train.block_size,
            "corpus_tokens": sum(map(len, train.stores)),
            **trained,
        }
        if not step.is_main:
            return None
        # With pretrain.model given, what it started from is not untrained.
        began = "{}_before" if step.models else "untrained_{}"
        if masking is not None:
            metrics["unigram_loss"] = unigram_nats(train.stores, text, masking.special_ids, masking.tokens)
            metrics[began.format("eval_loss")] = before["eval_loss"]
        else:
            counted = sample_texts(texts, "train", max_bytes=MAX_TRIGRAM_BYTES)
            metrics["trigram_bits_per_byte"] = trigram_bits_per_byte(counted, documents)
            metrics[began.format("bits_per_byte")] = before["bits_per_byte"]
            metrics["example"] = complete_example(model, tokenizer, example_prompt(step))
    metrics["evaluation_seconds"] += evaluating.seconds
    verdict = pretrain_verdict(metrics) if masking is None else masked_verdict(metrics)
    return Outcome(metrics, verdict.to_dict())


def _validation(step: Step, prepared: Prepared) -> tuple[list[str], ValidationText]:
    """The validation documents and their tokens, as many as the evaluation may cost (`evaluation.budget`)."""
    section, documents = step.recipe.pretrain, prepared.validation
    encoder = Encoder.of(prepared.tokenizer)
    isolate_at = prepared.tokenizer.eos_token_id if section.documents == "isolate" else None
    text = ValidationText.of(documents, encoder, section.block_size, isolate_at)
    trained = section.max_steps * section.batch_size * section.block_size
    evaluations = 2 + (section.max_steps // section.eval_steps if section.eval_steps else 0)
    most = section.block_size * text_blocks(prepared.model.num_parameters(), trained, section.block_size, evaluations)
    if len(text.tokens) <= most:
        return documents, text
    most_bytes, size = text.num_bytes * most / len(text.tokens), 0
    kept: list[str] = []
    for document in documents:
        size += len(document.encode())
        if kept and size > most_bytes:
            break
        kept.append(document)
    return kept, ValidationText.of(kept, encoder, section.block_size, isolate_at)


def _train(
    step: Step,
    prepared: Prepared,
    train: TrainingText,
    masking: Masking | None,
    measure: Callable[[PreTrainedModel], dict[str, Any]],
) -> dict[str, Any]:
    """Trains the model, saves it into the stage's folder and returns the speed."""
    section, tokenizer, model = step.recipe.pretrain, prepared.tokenizer, prepared.model
    trainer = PretrainTrainer(
        model,
        stage_arguments(step, TrainingArguments, **pretrain_arguments(section)),
        train,
        muon=section.optimizer == "muon",
        masking=masking,
        measure=measure,
        data_collator=BlockCollator(tokenizer.eos_token_id if section.documents == "isolate" else None),
        eval_dataset=[],  # `measure` evaluates; Trainer wants to see one where it is to evaluate
        processing_class=tokenizer,
    )
    speed = run_trainer(trainer, model, step.stage, step.folder, section.block_size, section.max_nonfinite_steps)
    with main_process_first(step.folder):
        if step.is_main:
            save_checkpoint(step, model, tokenizer)
    return speed


def _tokenizer(step: Step, texts: Sequence[RawText]) -> PreTrainedTokenizerBase:
    """The tokenizer that the recipe names, that of the model to start from, or a new one, trained once for all ranks.

    Raises `UsageError` for one that cannot be used.
    """
    section = step.recipe.pretrain.tokenizer
    if section.pretrained is not None:
        return _usable(load_tokenizer(section.pretrained), f"pretrain.tokenizer.pretrained = {section.pretrained}")
    if "model" in step.models:
        return _usable(load_tokenizer(step.models["model"]), f"The tokenizer of {step.models['model']}")
    folder = step.folder / TOKENS / "tokenizer"
    with main_process_first(step.folder):
        tokenizer_of_text(folder, section, texts, step.recipe.pretrain.architecture.n_positions)
    return load_tokenizer(folder)


def _usable(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    if not tokenizer.is_fast:
        raise UsageError(f"{name} has no tokenizer.json.", "Convert it to a fast tokenizer, or take another.")
    if tokenizer.eos_token_id is None:
        raise UsageError(f"{name} has no end-of-text token.", "Set eos_token in its tokenizer_config.json.")
    return tokenizer


def _start(step: Step, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A new model, or the one to continue from."""
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
