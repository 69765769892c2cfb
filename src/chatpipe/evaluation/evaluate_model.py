"""`chatpipe eval`: the numbers of a stage's verdict for any model folder on any data; the kind of both decides which.

The functions for each kind return the number of rows read, and the metrics.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.checks.data_checks import prompts_with_room
from chatpipe.checks.model_checks import embeddings_too_few
from chatpipe.data.chat_rows import fit_conversations
from chatpipe.data.chat_template import Message, add_chat_template
from chatpipe.data.datasets import Conversation, format_of_sources, load_prompts, stream_rows
from chatpipe.data.documents import RawText, sample_texts, whole_documents
from chatpipe.data.encoding import Encoder
from chatpipe.data.rendering import KWARGS, unreadable
from chatpipe.data.sources import Report, SourceReport, check_sources
from chatpipe.data.text_blocks import Masking, ValidationText
from chatpipe.data.worlds import WORLDS, is_world, only_world, world_named
from chatpipe.errors import UsageError
from chatpipe.evaluation.answers import Answers, answer_limit, evaluate_answers
from chatpipe.evaluation.chat import chat_samples, evaluate_chat
from chatpipe.evaluation.pair_accuracy import evaluate_ranker, is_ordered, rankings_that_fit
from chatpipe.evaluation.text import MAX_TEXT_BYTES, continuations, evaluate_text, first_words
from chatpipe.generation import SamplingParams
from chatpipe.models.manifest import manifest_of_model
from chatpipe.models.model_folder import Kind, kind_of_architectures, looks_like_path, model_kind
from chatpipe.models.pretrained import (
    load_causal_model,
    load_config,
    load_for_chat,
    load_masked_model,
    load_reward_model,
    load_tokenizer,
)
from chatpipe.models.properties import UNLIMITED, longest_sequence
from chatpipe.recipe.loading import load_recipe
from chatpipe.recipe.schema import Data, DataBlock, Recipe

MAX_BLOCK_SIZE = 1024
"""Tokens of a block of text for a model whose block size is unknown."""

KEY = "--data"

SETTINGS = ("evaluation.", *(f"{name}." for name in WORLDS), "seed", KWARGS)
"""The settings that the command line may override."""

REMEMBERED = (
    "pretrain.block_size",
    "pretrain.documents",
    "pretrain.mlm_probability",
    "sft.max_length",
    "rm.max_length",
)
"""Further recipe keys from a model's manifest with which it is evaluated."""


@dataclass
class Measurement:
    """The metrics of `model` on `data`; `measured` is text, conversations, answers or pairs."""

    model: str
    kind: Kind
    data: str
    format: str
    measured: str
    rows: int
    metrics: dict[str, Any]
    skipped_rows: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The one object of `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class EvalTask:
    """A model and its data; `known` are the settings under which a model of ours was made."""

    model: str
    blocks: list[DataBlock]
    recipe: Recipe
    known: dict[str, Any]
    limit: int | None

    def max_length(self, key: str, model: PreTrainedModel) -> int:
        """The length of rows in the stage that made the model if it is known, at most what the model reads."""
        return min(self.known.get(key) or UNLIMITED, longest_sequence(model))

    def rows(self, what: Any, report: Report) -> list[Any]:
        """All rows, or the first `limit`."""
        stream = stream_rows(what, self.blocks, self.recipe.worlds, KEY, report)
        found = [row for row, _ in islice(stream, self.limit)]
        if not found:
            raise UsageError(f"{KEY}: no row can be used.", "Give other data.")
        return found


def evaluate_model(model: str, data: str, overrides: Sequence[str], limit: int | None) -> Measurement:
    """Evaluates `model` on all of `data`, or its first `limit` rows; of a built-in world, on its validation split.

    Raises `UsageError` where the two do not fit together. Nothing is written.
    """
    blocks = TypeAdapter(Data).validate_python(data)
    check_sources(blocks, KEY)
    kind = _kind_of(model)
    form = format_of_sources(blocks, KEY)
    known = remembered_settings(model)
    task = EvalTask(model, blocks, settings_of(overrides, known), known, limit)
    measured = _what(task, kind, form)
    report = Report()
    measure = {
        "text": _masked_text if kind == "masked" else _text,
        "conversations": _conversations,
        "answers": _answers,
        "pairs": _pairs,
    }[measured]
    rows, metrics = measure(task, report)
    return Measurement(model, kind, data, form, measured, rows, metrics, report.skipped)


def _kind_of(model: str) -> Kind:
    if looks_like_path(model):
        return model_kind(model, "MODEL")
    return kind_of_architectures(load_config(model).architectures, f"MODEL = {model}")


def _what(task: EvalTask, kind: Kind, form: str) -> str:
    """What a model of this kind is evaluated on with data of this format."""
    if kind == "reward" and form in ("pairs", "rankings"):
        return "pairs"
    if kind == "masked" and (form == "text" or is_world(form)):
        return "text"
    if kind == "causal":
        if is_world(form):  # a model that was never taught to chat completes text
            return "answers" if load_tokenizer(task.model).chat_template else "text"
        return {"text": "text", "prompts": "answers"}.get(form, "conversations")
    wanted = {"reward": "rankings or pairs", "masked": "text"}[kind]
    raise UsageError(
        f"{task.model} is a {kind} model, and {KEY} {', '.join(block.source for block in task.blocks)} is {form}.",
        f"It is evaluated on {wanted}.",
    )


def remembered_settings(model: str) -> dict[str, Any]:
    """The settings under which a model of ours was made and evaluated; none for other models."""
    manifest = manifest_of_model(model)
    if manifest is None:
        return {}
    noted = {**manifest.settings, **manifest.evaluation}
    return {key: value for key, value in noted.items() if key.startswith(SETTINGS) or key in REMEMBERED}


def settings_of(overrides: Sequence[str], known: dict[str, Any]) -> Recipe:
    """A recipe with the `known` settings and the overrides. Raises `UsageError` for an override of anything else."""
    given = {override.partition("=")[0] for override in overrides}
    foreign = [key for key in given if not key.startswith(SETTINGS)]
    if foreign:
        raise UsageError(
            f"{foreign[0]} does not change how a model is evaluated.", f"These do: {', '.join(SETTINGS)} (KEY=VALUE)."
        )
    kept = {key: value for key, value in known.items() if not any(f"{key}.".startswith(f"{name}.") for name in given)}
    return load_recipe(None, overrides, kept).recipe


# ---- text ----


def _text(task: EvalTask, report: Report) -> tuple[int, dict[str, Any]]:
    tokenizer, model = load_tokenizer(task.model), load_causal_model(task.model, frozen=True)
    return _of_text(task, tokenizer, model, None, report)


def _masked_text(task: EvalTask, report: Report) -> tuple[int, dict[str, Any]]:
    tokenizer, model = load_tokenizer(task.model), load_masked_model(task.model, frozen=True)
    if tokenizer.mask_token_id is None:
        raise UsageError(
            f"The tokenizer of {task.model} has no mask token.", "Set mask_token in tokenizer_config.json."
        )
    return _of_text(task, tokenizer, model, Masking.of(tokenizer, task.recipe.pretrain.mlm_probability), report)


def _of_text(
    task: EvalTask, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, masking: Masking | None, report: Report
) -> tuple[int, dict[str, Any]]:
    documents = _documents(task, report)
    size = min(task.known.get("pretrain.block_size", MAX_BLOCK_SIZE), longest_sequence(model))
    isolate_at = tokenizer.eos_token_id if task.recipe.pretrain.documents == "isolate" else None
    text = ValidationText.of(documents, Encoder.of(tokenizer), size, isolate_at)
    metrics: dict[str, Any] = evaluate_text(model, tokenizer, text, masking)
    if masking is None:
        metrics["samples"] = continuations(model, tokenizer, first_words(documents))
    return len(documents), {**metrics, "tokens": len(text.tokens)}


def _documents(task: EvalTask, report: Report) -> list[str]:
    texts = [RawText(block, task.recipe.worlds, KEY, split=is_world(block.source)) for block in task.blocks]
    if only_world(task.blocks):
        return list(islice(sample_texts(texts, "validation", max_bytes=MAX_TEXT_BYTES), task.limit))
    found = list(islice((document for text in texts for document in whole_documents(text.pieces())), task.limit))
    report.sources += [SourceReport(KEY, text.block.source, ["text"], text.rows, text.skipped) for text in texts]
    if not any(map(str.strip, found)):
        raise UsageError(f"{KEY}: there is no text in it.", "Give other data.")
    return found


# ---- conversations and answers ----


def _conversations(task: EvalTask, report: Report) -> tuple[int, dict[str, Any]]:
    tokenizer, model = load_for_chat(task.model, frozen=True, settings=task.recipe.chat_template_kwargs)
    conversations = task.rows("conversations", report)
    readable = [turns for turns in conversations if unreadable(tokenizer, turns) is None]
    max_length = task.max_length("sft.max_length", model)
    fitting = [rows for rows, _ in fit_conversations(tokenizer, readable, max_length) if rows]
    if len(fitting) < 2:
        raise UsageError(
            f"{KEY}: {len(fitting)} of {len(conversations)} conversations fit into {max_length} tokens.",
            "Two are needed: give more, or shorter ones.",
        )
    rows = [row for rows in fitting for row in rows]
    params = _answering(task, tokenizer, model, (turns[-1] for turns in readable))
    asked = (turns[:-1] for turns in readable)
    prompts = _asked(tokenizer, model, asked, task.recipe.evaluation.prompts, params)
    metrics, answers = evaluate_chat(model, tokenizer, rows, prompts, params, task.recipe.seed, oracle=None)
    return len(conversations), {
        **metrics,
        "longest_answer": params.max_new_tokens,
        "samples": chat_samples(model, tokenizer, prompts[:2], params.max_new_tokens),
        "answers": _examples(prompts, answers),
        "left_out_conversations": len(conversations) - len(fitting),
    }


def _answers(task: EvalTask, report: Report) -> tuple[int, dict[str, Any]]:
    tokenizer, model = load_for_chat(task.model, frozen=True, settings=task.recipe.chat_template_kwargs)
    oracle, most = None, None
    world = only_world(task.blocks)
    if world is not None:
        prompts = load_prompts(task.blocks, task.recipe.worlds, KEY).validation
        oracle, most = world_named(world, task.recipe.worlds).oracle(), task.limit or task.recipe.evaluation.prompts
    else:
        prompts = task.rows("prompts", report)
    params = _answering(task, tokenizer, model, [])
    asked = _asked(tokenizer, model, prompts, most, params)
    answers = evaluate_answers(model, tokenizer, asked, params, task.recipe.seed, oracle)
    return len(asked), {
        **answers.metrics(),
        "longest_answer": params.max_new_tokens,
        "answers": _examples(asked, answers),
        "left_out_prompts": 0 if world else len(prompts) - len(asked),
    }


def _answering(
    task: EvalTask, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, answers: Iterable[Message]
) -> SamplingParams:
    """How the model answers; `answers` are those in the data."""
    settings, context = task.recipe.evaluation, longest_sequence(model)
    return SamplingParams(answer_limit(settings.max_new_tokens, tokenizer, answers, context), settings.temperature)


def _asked(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    prompts: Iterable[Conversation],
    most: int | None,
    params: SamplingParams,
) -> list[Conversation]:
    context = longest_sequence(model)
    return prompts_with_room(tokenizer, prompts, context, "evaluation.max_new_tokens", params.max_new_tokens)[:most]


def _examples(prompts: list[Conversation], answers: Answers) -> list[dict[str, str]]:
    """The first two questions with their answers."""
    examples = zip(prompts[:2], answers.answers, strict=False)
    return [{"question": prompt[-1]["content"], "answer": answer.text} for prompt, answer in examples]


# ---- rankings ----


def _pairs(task: EvalTask, report: Report) -> tuple[int, dict[str, Any]]:
    tokenizer, model = load_tokenizer(task.model), load_reward_model(task.model, frozen=True)
    add_chat_template(tokenizer)
    finding = embeddings_too_few(tokenizer, {"MODEL": model})
    if finding is not None:
        raise UsageError(finding.what, "Give a reward model whose tokenizer has a chat template and a pad token.")
    rankings = task.rows("rankings", report)
    max_length = min(task.known.get("rm.max_length") or UNLIMITED, longest_sequence(model, tokenizer))
    fitting = rankings_that_fit(tokenizer, rankings, max_length)
    if not fitting:
        raise UsageError(f"{KEY}: no ranking fits into {max_length} tokens.", "Give shorter ones.")
    if not is_ordered([ranking.ranks for ranking in fitting]):
        raise UsageError(
            f"{KEY}: none of the {len(fitting)} rankings prefers one answer to another.",
            "Give some that are not all ties.",
        )
    metrics = evaluate_ranker(model, tokenizer, fitting, max_length, task.recipe.seed)
    return len(rankings), {**metrics, "left_out_rankings": len(rankings) - len(fitting)}
