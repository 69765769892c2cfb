"""pretrain: a base model from raw text."""

import gc
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from chatpipe import console
from chatpipe.data.load import Loaded, load_documents
from chatpipe.data.token_store import build_token_store
from chatpipe.errors import UsageError
from chatpipe.evaluation.masked import unigram_nats
from chatpipe.evaluation.ngram import trigram_bits_per_byte
from chatpipe.evaluation.verdicts import masked_verdict, pretrain_verdict
from chatpipe.models.architecture import new_model
from chatpipe.models.loading import load_causal_model, load_masked_model, load_tokenizer
from chatpipe.models.tokenizer import train_tokenizer
from chatpipe.pretraining.arguments import pretrain_arguments
from chatpipe.pretraining.masking import Masking, add_mask_token
from chatpipe.pretraining.trainer import PretrainTrainer
from chatpipe.stages.arguments import stage_arguments
from chatpipe.stages.example import complete_example
from chatpipe.stages.job import Job, Outcome
from chatpipe.stages.measuring import HeldOut, first_words
from chatpipe.stages.saving import main_process_first, save_checkpoint
from chatpipe.training.run import run_trainer

MAX_EVAL_BYTES = 500_000


def run_pretrain(job: Job) -> Outcome | None:
    """Trains the stage's model; the main process evaluates it, saves it and returns what came out."""
    recipe, section = job.recipe, job.recipe.pretrain
    with console.progress("reading", total=None):
        documents = load_documents(job.data()["pretrain.data"], recipe.pocketworld, "pretrain.data")
        set_seed(recipe.seed)
        tokenizer, model = _start(job, documents)
    _check_fit(section.block_size, model, tokenizer)
    held_out_texts = _limit_bytes(documents.held_out)
    with main_process_first(job), console.progress("tokenising", total=None):
        train = build_token_store(job.folder / "tokens" / "train.bin", documents.train, tokenizer, section.block_size)
        store = build_token_store(job.folder / "tokens" / "held_out.bin", held_out_texts, tokenizer, section.block_size)
    masking = Masking.of(tokenizer, section.mlm_probability) if section.objective == "masked" else None
    prompts = section.sample_prompts or first_words(held_out_texts)
    held_out = HeldOut(store, tokenizer, prompts, masking)
    before = _score(held_out, model) if job.is_main else None

    args = stage_arguments(job, TrainingArguments, **pretrain_arguments(section))
    trainer = PretrainTrainer(
        model,
        args,
        train,
        muon=section.optimizer == "muon",
        masking=masking,
        measure=held_out.measure,
        bytes_per_token=None if masking else train.num_bytes / len(train.tokens),
        eval_dataset=store,
        processing_class=tokenizer,
    )
    speed = run_trainer(trainer, model, job.stage, job.folder, section.block_size, section.max_nonfinite_steps)
    if before is None:
        return None

    save_checkpoint(job, model, tokenizer)
    del trainer
    gc.collect()  # the optimizer's memory: trainer and callbacks hold each other
    # The trained one's forward may still run in bf16; before and after are both measured in float32.
    model = _load(job, job.folder)
    after = _score(held_out, model)
    metrics: dict[str, Any] = {
        "eval_loss": after.pop("loss"),
        **after,
        "parameters": model.num_parameters(),
        "train_tokens": section.max_steps * section.batch_size * train.block_size,
        **speed,
    }
    # With pretrain.model given, what it started from is not untrained.
    began = "{}_before" if job.models else "untrained_{}"
    if masking is not None:
        metrics["unigram_loss"] = unigram_nats(train, store, masking.special_ids, masking.tokens)
        metrics[began.format("eval_loss")] = before["loss"]
        return Outcome(metrics, masked_verdict(metrics).to_dict())
    metrics["trigram_bits_per_byte"] = trigram_bits_per_byte(documents.train, held_out_texts)
    metrics[began.format("bits_per_byte")] = before["bits_per_byte"]
    metrics["example"] = complete_example(job, model, tokenizer)
    return Outcome(metrics, pretrain_verdict(metrics).to_dict())


def _score(held_out: HeldOut, model: PreTrainedModel) -> dict[str, float]:
    """How well the model predicts the held-out text."""
    with console.progress("evaluating", total=None):
        return held_out.score(model)


def _start(job: Job, documents: Loaded[str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A new tokenizer and model, or the ones to go on from."""
    section = job.recipe.pretrain
    if "model" in job.models:
        return load_tokenizer(job.models["model"]), _load(job, job.models["model"])
    tokenizer = train_tokenizer(documents.train, section.tokenizer.vocab_size, section.architecture.n_positions)
    if section.objective == "masked":
        add_mask_token(tokenizer)
    return tokenizer, new_model(section.architecture, tokenizer)


def _load(job: Job, model: Any) -> PreTrainedModel:
    return load_masked_model(model) if job.recipe.pretrain.objective == "masked" else load_causal_model(model)


def _check_fit(block_size: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `UsageError` where the model cannot read so many tokens at once, or not all tokens there are."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and block_size > longest:
        raise UsageError(
            f"pretrain.block_size = {block_size}, but the model reads {longest} tokens at most.",
            "Lower it, or raise pretrain.architecture.n_positions.",
        )
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UsageError(
            f"The tokenizer has {len(tokenizer):,} tokens, but the model's vocabulary {rows:,}.",
            "Give the model's own tokenizer, or a new model.",
        )


def _limit_bytes(documents: list[str]) -> list[str]:
    """Enough held-out text for a precise figure; all of a large corpus' tenth would take longer than training."""
    kept, size = [], 0
    for document in documents:
        if size >= MAX_EVAL_BYTES:
            break
        kept.append(document[:MAX_EVAL_BYTES])
        size += len(kept[-1].encode())
    return kept
