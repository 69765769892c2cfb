"""pretrain: a base model from raw text."""

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from chatpipe import console
from chatpipe.data.load import Loaded, load_documents
from chatpipe.data.token_store import TokenStore, build_token_store
from chatpipe.errors import UsageError
from chatpipe.evaluation.language import LanguageScore, held_out_loss
from chatpipe.evaluation.ngram import trigram_bits_per_byte
from chatpipe.evaluation.verdicts import pretrain_verdict
from chatpipe.models.architecture import new_model
from chatpipe.models.loading import load_causal_model, load_tokenizer
from chatpipe.models.tokenizer import train_tokenizer
from chatpipe.stages.arguments import stage_arguments
from chatpipe.stages.example import complete_example
from chatpipe.stages.job import Job, Outcome
from chatpipe.stages.saving import main_process_first, save_checkpoint
from chatpipe.training.nonfinite import SkipNonFinite
from chatpipe.training.resume import ResumePoints
from chatpipe.training.run import run_trainer

EVAL_BATCH_SIZE = 32
MAX_EVAL_BYTES = 500_000


class PretrainTrainer(ResumePoints, SkipNonFinite, Trainer):
    """transformers' Trainer over the token store; the model itself shifts the labels and computes the loss."""


def run_pretrain(job: Job) -> Outcome | None:
    """Trains the stage's model; the main process evaluates it, saves it and returns what came out."""
    recipe, section = job.recipe, job.recipe.pretrain
    with console.progress("reading", total=None):
        documents = load_documents(job.data()["pretrain.data"], recipe.pocketworld, "pretrain.data")
        set_seed(recipe.seed)
        tokenizer, model = _start(job, documents)
    if section.block_size > model.config.max_position_embeddings:
        raise UsageError(
            f"pretrain.block_size = {section.block_size}, but the model reads "
            f"{model.config.max_position_embeddings} tokens at most.",
            "Lower it, or raise pretrain.architecture.n_positions.",
        )
    held_out_texts = _limit_bytes(documents.held_out)
    with main_process_first(job), console.progress("tokenising", total=None):
        train = build_token_store(job.folder / "tokens" / "train.bin", documents.train, tokenizer, section.block_size)
        held_out = build_token_store(
            job.folder / "tokens" / "held_out.bin", held_out_texts, tokenizer, section.block_size
        )
    untrained = _score(model, held_out) if job.is_main else None

    args = stage_arguments(
        job,
        TrainingArguments,
        max_steps=section.max_steps,
    )
    trainer = PretrainTrainer(model=model, args=args, train_dataset=train, processing_class=tokenizer)
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
        "trigram_bits_per_byte": trigram_bits_per_byte(documents.train, held_out_texts),
        "parameters": model.num_parameters(),
        "train_tokens": section.max_steps * section.batch_size * train.block_size,
        "example": complete_example(job, model, tokenizer),
        **speed,
    }
    return Outcome(metrics, pretrain_verdict(metrics).to_dict())


def _score(model: PreTrainedModel, held_out: TokenStore) -> LanguageScore:
    """How well the model predicts the held-out text."""
    with console.progress("evaluating", total=None):
        return held_out_loss(model, held_out, EVAL_BATCH_SIZE)


def _start(job: Job, documents: Loaded[str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A new tokenizer and model, or the ones to go on from."""
    section = job.recipe.pretrain
    if "model" in job.models:
        tokenizer = load_tokenizer(job.models["model"])
        return tokenizer, load_causal_model(job.models["model"])
    tokenizer = train_tokenizer(documents.train, section.tokenizer.vocab_size, section.architecture.n_positions)
    return tokenizer, new_model(section.architecture, tokenizer)


def _limit_bytes(documents: list[str]) -> list[str]:
    """Enough held-out text for a precise figure; all of a large corpus' tenth would take longer than training."""
    kept, size = [], 0
    for document in documents:
        if size >= MAX_EVAL_BYTES:
            break
        kept.append(document[:MAX_EVAL_BYTES])
        size += len(kept[-1].encode())
    return kept
