"""sft: a chat model from a base model and conversations."""

from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from chatpipe import console
from chatpipe.data.load import Conversation, load_conversations
from chatpipe.data.template import add_chat_template, encode_conversation
from chatpipe.evaluation.language import conversation_loss, question_gain
from chatpipe.evaluation.verdicts import sft_verdict
from chatpipe.guards.by_stage import sft_guards
from chatpipe.guards.run import guard
from chatpipe.models.loading import load_causal_model, load_tokenizer
from chatpipe.stages.arguments import stage_arguments
from chatpipe.stages.example import answer_example
from chatpipe.stages.job import Job, Outcome
from chatpipe.stages.judging import judge, judged_prompts
from chatpipe.stages.saving import save_checkpoint
from chatpipe.stages.text import stage_texts, training_text
from chatpipe.training.nonfinite import SkipNonFinite
from chatpipe.training.resume import ResumePoints
from chatpipe.training.run import run_trainer

EVAL_BATCH_SIZE = 32

Encoded = tuple[list[int], list[int]]
"""Token ids of a conversation, and the mask of what the assistant says in it."""


class SftTrainer(ResumePoints, SkipNonFinite, SFTTrainer):
    """trl's SFTTrainer with our resume points, which hold what it counts between two logs too."""

    def extra_state(self) -> dict[str, Any]:
        """The tokens seen and the metrics that no log has averaged yet."""
        return {"tokens": self._total_train_tokens, "metrics": self._metrics["train"]}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Goes on counting from there."""
        self._total_train_tokens = extra["tokens"]
        self._metrics["train"].update(extra["metrics"])


def run_sft(job: Job) -> Outcome | None:
    """Trains the stage's model; the main process evaluates it, saves it and returns what came out."""
    recipe, section = job.recipe, job.recipe.sft
    conversations = load_conversations(job.data()["sft.data"], recipe.pocketworld, "sft.data")
    if job.is_main:
        conversations.report.say()
    tokenizer, model = load_for_chat(job.models["model"])
    max_length = min(section.max_length, model.config.max_position_embeddings)
    with console.progress("tokenising", total=None):
        train = _encode_all(tokenizer, conversations.train, max_length)
        held_out = _encode_all(tokenizer, conversations.held_out, max_length)
    guard(job.stage, recipe.guards, sft_guards(tokenizer, model, conversations, train, held_out, max_length))
    for some, fitting in ((conversations.train, train), (conversations.held_out, held_out)):
        if len(fitting) < len(some) and job.is_main:
            left_out = f"{len(some) - len(fitting)} of {len(some)} conversations left out"
            console.note(f"sft: {left_out}: longer than {max_length} tokens")
    prompts = [conversation[:-1] for conversation in conversations.held_out]
    prompts = judged_prompts(job, tokenizer, prompts, model.config.max_position_embeddings)
    before = _held_out_loss(model, tokenizer, held_out) if job.is_main else None

    args = stage_arguments(
        job,
        SFTConfig,
        num_train_epochs=section.num_train_epochs,
        max_steps=section.max_steps,
        max_length=max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = [_training_row(ids, mask) for ids, mask in train] + _raw_text_rows(job, tokenizer, train)
    trainer = SftTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    speed = run_trainer(trainer, model, job.stage, job.folder, max_length, section.max_nonfinite_steps)
    if before is None:
        return None

    save_checkpoint(job, model, tokenizer)
    # SFTTrainer replaced the model's forward by one that returns no logits; the saved one has its own.
    model = load_causal_model(job.folder)
    with console.progress("evaluating", total=None):
        gain = question_gain(model, held_out, tokenizer.pad_token_id, EVAL_BATCH_SIZE)
    metrics = {
        "eval_loss": _held_out_loss(model, tokenizer, held_out),
        "eval_loss_before": before,
        "question_gain": gain.gain,
        "question_gain_low": gain.low,
        **judge(job, model, tokenizer, prompts).metrics(job),
        "train_conversations": len(train),
        "left_out_conversations": len(conversations.train) - len(train),
        "skipped_rows": conversations.skipped,
        "example": answer_example(job, model, tokenizer),
        **speed,
    }
    return Outcome(metrics, sft_verdict(metrics).to_dict())


def _held_out_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: list[Encoded]) -> float:
    with console.progress("evaluating", total=None):
        return conversation_loss(model, held_out, tokenizer.pad_token_id, EVAL_BATCH_SIZE)


def load_for_chat(model: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A causal model in float32 and its tokenizer, with a chat template and embeddings for all of its tokens."""
    tokenizer = load_tokenizer(model)
    loaded = load_causal_model(model)
    add_chat_template(tokenizer)
    entries = loaded.get_input_embeddings().num_embeddings
    if len(tokenizer) > entries:
        console.note(f"sft: the vocabulary grows from {entries:,} to {len(tokenizer):,}: tokens of the chat template")
        set_seed(0)  # the new rows are drawn at random
        loaded.resize_token_embeddings(len(tokenizer))
    loaded.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, loaded


def _encode_all(
    tokenizer: PreTrainedTokenizerBase, conversations: list[Conversation], max_length: int
) -> list[Encoded]:
    """All conversations that fit, the longer ones without their oldest turns."""
    fitting = (fit_conversation(tokenizer, conversation, max_length) for conversation in conversations)
    return [pair for pair in fitting if pair is not None]


def fit_conversation(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, max_length: int) -> Encoded | None:
    """Ids and mask of the conversation without its oldest exchanges, as many as must go; None if the last is too long.

    An answer is never cut: it would lose the end-of-turn token, and the model would learn not to stop (trl #3927).
    """
    system = conversation[:1] if conversation[0]["role"] == "system" else []
    turns = conversation[len(system) :]
    while turns:
        ids, mask = encode_conversation(tokenizer, [*system, *turns])
        if len(ids) <= max_length:
            return ids, mask
        turns = turns[2:]
    return None


def _training_row(ids: list[int], mask: list[int]) -> dict[str, list[int]]:
    """A row as SFTTrainer takes it unchanged: labels are -100 where nothing is to be learned."""
    return {"input_ids": ids, "labels": [token if learn else -100 for token, learn in zip(ids, mask, strict=True)]}


def _raw_text_rows(job: Job, tokenizer: PreTrainedTokenizerBase, train: list[Encoded]) -> list[dict[str, list[int]]]:
    """Raw text so that it makes up `sft.pretrain_mix` of all rows: blocks as long as the longest conversation."""
    mix = job.recipe.sft.pretrain_mix
    if mix == 0:
        return []
    count = round(len(train) * mix / (1 - mix))
    block_size = max(len(ids) for ids, _ in train)
    blocks = training_text(job, stage_texts(job, "pretrain.data"), tokenizer, block_size, samples=count)
    return [{name: ids.tolist() for name, ids in blocks[number].items()} for number in range(count)]
