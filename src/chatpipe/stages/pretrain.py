"""pretrain: a base model from raw text."""

from typing import Any

from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from chatpipe import console
from chatpipe.data.documents import sample_texts
from chatpipe.data.packing import BlockCollator, HeldOutText
from chatpipe.errors import UsageError
from chatpipe.evaluation.language import LanguageScore, held_out_loss
from chatpipe.evaluation.ngram import trigram_bits_per_byte
from chatpipe.evaluation.verdicts import pretrain_verdict
from chatpipe.models.architecture import new_model
from chatpipe.models.loading import load_causal_model
from chatpipe.stages.arguments import stage_arguments
from chatpipe.stages.example import complete_example
from chatpipe.stages.job import Job, Outcome
from chatpipe.stages.saving import save_checkpoint
from chatpipe.stages.text import (
    check_one_batch,
    check_vocabulary,
    held_out_text,
    held_out_texts,
    pretraining_tokenizer,
    stage_texts,
    training_text,
)
from chatpipe.training.nonfinite import SkipNonFinite
from chatpipe.training.resume import ResumePoints
from chatpipe.training.run import run_trainer

EVAL_BATCH_SIZE = 32
MAX_TRIGRAM_BYTES = 50_000_000
"""More text to count in hardly changes what the 3-gram model predicts."""


class PretrainTrainer(ResumePoints, SkipNonFinite, Trainer):
    """transformers' Trainer over the token store; the model itself shifts the labels and computes the loss."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler[int]:
        # item s of the data set is sample s of the run: processes and resumes only say who takes which, and from where
        return SequentialSampler(self.train_dataset)


def run_pretrain(job: Job) -> Outcome | None:
    """Trains the stage's model; the main process evaluates it, saves it and returns what came out."""
    section = job.recipe.pretrain
    texts = stage_texts(job, "pretrain.data")
    tokenizer = pretraining_tokenizer(job, texts)
    model = _start(job, tokenizer)
    check_vocabulary(tokenizer, model)
    if section.block_size > model.config.max_position_embeddings:
        raise UsageError(
            f"pretrain.block_size = {section.block_size}, but the model reads "
            f"{model.config.max_position_embeddings} tokens at most.",
            "Lower it, or raise pretrain.architecture.n_positions.",
        )
    train = training_text(job, texts, tokenizer, section.block_size, section.max_steps * section.batch_size)
    check_one_batch(train, section.batch_size, "pretrain.data")
    isolate = section.documents == "isolate"
    documents = held_out_texts(texts)
    held_out = held_out_text(documents, tokenizer, section.block_size, isolate)
    untrained = _score(model, held_out) if job.is_main else None

    args = stage_arguments(
        job,
        TrainingArguments,
        max_steps=section.max_steps,
    )
    trainer = PretrainTrainer(
        model=model,
        args=args,
        train_dataset=train,
        data_collator=BlockCollator(tokenizer.eos_token_id if isolate else None),
        processing_class=tokenizer,
    )
    speed = run_trainer(trainer, model, job.stage, job.folder, section.block_size, section.max_nonfinite_steps)
    if untrained is None:
        return None

    save_checkpoint(job, model, tokenizer)
    # The trained one's forward may still run in bf16; before and after are both measured in float32.
    model = load_causal_model(job.folder)
    score = _score(model, held_out)
    metrics = {
        "eval_loss": score.nats_per_token,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        # With pretrain.model given, what it started from is not untrained.
        "bits_per_byte_before" if job.models else "untrained_bits_per_byte": untrained.bits_per_byte,
        "trigram_bits_per_byte": trigram_bits_per_byte(
            sample_texts(texts, held_out=False, max_bytes=MAX_TRIGRAM_BYTES), documents
        ),
        "parameters": model.num_parameters(),
        "train_tokens": section.max_steps * section.batch_size * train.block_size,
        "corpus_tokens": sum(map(len, train.stores)),
        "example": complete_example(job, model, tokenizer),
        **speed,
    }
    return Outcome(metrics, pretrain_verdict(metrics).to_dict())


def _score(model: PreTrainedModel, held_out: HeldOutText) -> LanguageScore:
    """How well the model predicts the held-out text."""
    with console.progress("evaluating", total=None):
        return held_out_loss(model, held_out, EVAL_BATCH_SIZE)


def _start(job: Job, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A new model, or the one to go on from."""
    set_seed(job.recipe.seed)
    if "model" in job.models:
        return load_causal_model(job.models["model"])
    return new_model(job.recipe.pretrain.architecture, tokenizer)
