"""The first rows of a stage's data as its model will read them, and a summary of all rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.chat_rows import fit_conversations
from chatpipe.data.chat_template import add_chat_template, encode_completion, encode_conversations, encode_prompt
from chatpipe.data.datasets import Conversation, stream_rows
from chatpipe.data.documents import Piece, RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.formats import What
from chatpipe.data.rankings import Ranking
from chatpipe.data.rendering import loses_reasoning, unreadable
from chatpipe.data.row_files import BadRow, Split
from chatpipe.data.sources import Report, SourceReport, check_sources
from chatpipe.data.worlds import is_world, worlds_read
from chatpipe.errors import UsageError
from chatpipe.models.model_folder import check_tokenizer, looks_like_path
from chatpipe.models.pretrained import load_config, load_tokenizer
from chatpipe.models.properties import UNLIMITED, longest_sequence, row_length, shared_context
from chatpipe.recipe.schema import DataBlock
from chatpipe.reward.training_data import encode_ranking
from chatpipe.run.steps import tokenizer_of
from chatpipe.stages.shared import longest_answer
from chatpipe.stages.step import WHAT_OF_KEY, Step

MAX_MEASURED = 10_000
"""Rows that are tokenised to measure lengths. It takes seconds; more rows hardly change the distribution."""
MAX_READ = 100_000_000
"""Characters of raw text that are read of each source."""


@dataclass
class DataView:
    """What `chatpipe data show` prints: `rows` as the model will read them, and a `summary` of all rows.

    `tokenizer` is the folder or hub id of the tokenizer, None where there is none yet; rows then have no tokens.
    """

    stage: str
    tokenizer: str | None
    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Reader:
    """A tokenizer, the folder or hub id that it came from, and the longest sequence that all models read, in tokens."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    context: int


@dataclass(frozen=True)
class _Row:
    """One row as a model reads it: what is shown, and what is counted.

    `length` is in tokens, or in characters without a tokenizer. `stops`: whether an end-of-turn token is trained.
    `loses_reasoning`: whether the chat template does not write its reasoning.
    """

    shown: dict[str, Any]
    length: int
    too_long: bool = False
    left_out: bool = False
    stops: bool = False
    loses_reasoning: bool = False


def view_data(step: Step, model: str | None, count: int) -> DataView:
    """The first `count` rows of the stage's data, and the summary. `model` gives the tokenizer in place of the stage's.

    Raises `UsageError` where the data, or the tokenizer that is named, cannot be used. Unusable rows never stop it: the
    summary shows them.
    """
    key = f"{step.stage}.data"
    blocks = step.data[key]
    if key in step.makers and not Path(blocks[-1].source).exists():
        raise UsageError(
            f"rm.data is not given, and the run has made no rankings yet: {blocks[-1].source}.",
            "Give a file with --data, or run the stages before first.",
        )
    check_sources(blocks, key)
    blocks = [block.model_copy(update={"max_skipped": 1.0}) for block in blocks]
    reader = find_reader(step, model)
    rows, summary = (_view_rows if key in WHAT_OF_KEY else _view_text)(step, blocks, reader, count)
    return DataView(step.stage, reader.name if reader else None, rows, summary)


def find_reader(step: Step, model: str | None) -> Reader | None:
    """The tokenizer of `model` if given, else of the model that the stage starts from; None where there is none yet.

    It is found before the models of the run exist, and no weights are loaded. Raises `UsageError` where it cannot be
    used.
    """
    if model is not None:
        check_tokenizer(model, "--model")
    name = model or tokenizer_of(step)
    if name is None:
        return None
    tokenizer = load_tokenizer(name)
    if f"{step.stage}.data" in WHAT_OF_KEY:
        add_chat_template(tokenizer, step.recipe.chat_template_kwargs)
    if name in step.tokenizers().values() or not _is_model(name):
        return Reader(name, tokenizer, step.recipe.pretrain.architecture.n_positions)
    config = load_config(name)
    if step.makes == "reward":
        return Reader(name, tokenizer, longest_sequence(config, tokenizer))
    return Reader(name, tokenizer, shared_context(config, _scorers(step), tokenizer))


def _scorers(step: Step) -> list[PreTrainedConfig]:
    """The configurations of the reward models that read the step's answers and are there already."""
    models = [model for key, model in step.models.items() if step.kinds(key)[0] == "reward"]
    return [load_config(model) for model in models if _is_model(model)]


def _is_model(name: str) -> bool:
    """Whether `name` is a hub id, or a folder with a model in it."""
    return not looks_like_path(name) or (Path(name).expanduser() / "config.json").is_file()


# ---- rows of chats ----


def _view_rows(
    step: Step, blocks: Sequence[DataBlock], reader: Reader | None, count: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Conversations, rankings or prompts."""
    key = f"{step.stage}.data"
    what, limit = WHAT_OF_KEY[key], _limit(step, reader)
    readers: dict[What, Callable[..., _Row]] = {
        "conversations": _conversation,
        "rankings": _ranking,
        "prompts": _prompt,
    }
    read = partial(readers[what], reader, limit)
    report, splits = Report(), Counter[Split]()
    rows: list[_Row] = []
    all_tied = 0
    with console.progress("reading", total=None) as bar:
        for item, split in stream_rows(what, blocks, step.recipe.worlds, key, report):
            splits[split] += 1
            all_tied += what == "rankings" and len(set(item.ranks)) == 1
            bar.update(splits.total(), "rows")
            if len(rows) < MAX_MEASURED:
                row = read(item)
                row.shown["split"] = split
                rows.append(row)
    summary = _summary(step.data[key], report, splits, [row.length for row in rows], reader)
    if reader is not None:
        kept = len(rows) - sum(row.left_out for row in rows)
        summary["max_length"] = limit
        summary["left_out_share"] = _share(len(rows) - kept, len(rows))
        if what != "prompts":
            summary["truncated_share"] = _share(sum(row.too_long for row in rows), len(rows))
        if what == "conversations":
            summary["eos_trained_share"] = _share(sum(row.stops for row in rows), kept)
            summary["without_reasoning"] = sum(row.loses_reasoning for row in rows)
    if what == "rankings":
        summary["all_tied"] = all_tied
    return [row.shown for row in rows[:count]], summary


def _limit(step: Step, reader: Reader | None) -> int:
    """The longest row that the stage reads, in tokens."""
    if WHAT_OF_KEY[f"{step.stage}.data"] == "prompts":
        if reader is None:
            return 0
        asked = step.recipe.ppo.response_length
        return reader.context - longest_answer(step, asked, reader.tokenizer, reader.context)
    return row_length(step.section.max_length, reader.context if reader else UNLIMITED)


def _conversation(reader: Reader | None, limit: int, conversation: Conversation) -> _Row:
    """`tokens` before and `kept_tokens` after the cut; `parts`: the kept text, alternately trained and not.

    Where each answer is a row of its own, `rows` is their number, and the numbers are those of the longest.
    """
    row: dict[str, Any] = {"messages": conversation}
    if reader is None:
        return _Row(row, _characters(conversation))
    reason = unreadable(reader.tokenizer, conversation)
    if reason is not None:
        return _Row({**row, "tokens": 0, "kept_tokens": 0, "parts": [], "left_out": reason}, 0, left_out=True)
    length = max((len(ids) for ids, _ in encode_conversations(reader.tokenizer, [conversation])[0]), default=0)
    too_long = length > limit
    fitting, _ = next(fit_conversations(reader.tokenizer, [conversation], limit))
    row |= {"tokens": length, "kept_tokens": max((len(ids) for ids, _ in fitting), default=0)}
    row["parts"] = [
        {"text": text, "trained": bool(learn)}
        for ids, mask in fitting
        for text, learn in _in_parts(reader.tokenizer, ids, mask)
    ]
    if len(fitting) > 1:
        row["rows"] = len(fitting)
    eos = reader.tokenizer.eos_token_id
    stops = any(learn and token == eos for ids, mask in fitting for token, learn in zip(ids, mask, strict=True))
    silent = loses_reasoning(reader.tokenizer, conversation)
    return _Row(row, length, too_long, left_out=not fitting, stops=stops, loses_reasoning=silent)


def _ranking(reader: Reader | None, limit: int, ranking: Ranking) -> _Row:
    answers = [{"rank": rank, "text": text} for rank, text in zip(ranking.ranks, ranking.responses, strict=True)]
    row: dict[str, Any] = {"prompt": ranking.prompt, "answers": answers}
    for answer, before in zip(answers, ranking.turns or (), strict=ranking.turns is not None):
        answer["turns"] = before
    if reader is None:
        return _Row(row, _characters(ranking.prompt) + max(map(len, ranking.responses)))
    wholes = [ranking.whole(number) for number in range(len(answers))]
    lengths = [len(encode_completion(reader.tokenizer, one[:-1], one[-1]["content"])[0]) for one in wholes]
    for answer, length in zip(answers, lengths, strict=True):
        answer["tokens"] = length
    row["text"] = reader.tokenizer.decode(encode_prompt(reader.tokenizer, ranking.prompt))
    try:
        encode_ranking(reader.tokenizer, ranking, limit)
    except BadRow:
        return _Row(row, max(lengths), max(lengths) > limit, left_out=True)
    return _Row(row, max(lengths), max(lengths) > limit)


def _prompt(reader: Reader | None, limit: int, prompt: Conversation) -> _Row:
    if reader is None:
        return _Row({"prompt": prompt}, _characters(prompt))
    ids = encode_prompt(reader.tokenizer, prompt)
    row = {"prompt": prompt, "tokens": len(ids), "text": reader.tokenizer.decode(ids)}
    return _Row(row, len(ids), left_out=len(ids) > limit)


# ---- raw text ----


def _view_text(
    step: Step, blocks: Sequence[DataBlock], reader: Reader | None, count: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Blocks in the order of the sources (training shuffles them); documents without a tokenizer."""
    size = step.recipe.pretrain.block_size
    report, splits, lengths = Report(), Counter[Split](), list[int]()
    beginning: list[Piece] = []  # of the training text: enough for the blocks that are shown
    # Characters that hold as many tokens as the blocks need: no token is longer than the longest one.
    wanted = size * count * max(map(len, reader.tokenizer.get_vocab())) if reader else count
    had, read_whole = 0, True
    for block in blocks:
        text = RawText(block, step.recipe.worlds, "pretrain.data")
        read = length = 0
        documents_before = splits.total()
        for piece in text.pieces():
            if piece.split == "train" and had < wanted:
                beginning.append(piece)
                had += len(piece.text) if reader else piece.ends
            length += len(piece.text)
            if piece.ends:
                splits[piece.split] += 1
                lengths.append(length)
                length = 0
            read += len(piece.text)
            if read > MAX_READ:
                read_whole = False
                break
        if not is_world(block.source):
            rows = text.rows or splits.total() - documents_before
            report.sources.append(SourceReport("pretrain.data", block.source, ["text"], rows, text.skipped))
    summary = {**_summary(step.data["pretrain.data"], report, splits, lengths, None), "read_whole": read_whole}
    if reader is None:
        return _documents(beginning)[:count], summary
    return _blocks(reader.tokenizer, beginning, size)[:count], {**summary, "block_size": size}


def _documents(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    found, text = [], ""
    for piece in pieces:
        text += piece.text
        if piece.ends:
            found.append({"text": text})
            text = ""
    return [*found, {"text": text}] if text else found


def _blocks(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], size: int) -> list[dict[str, Any]]:
    """`parts` of each block: its text, split where a document ends."""
    ids = Encoder.of(tokenizer).encode(pieces).ids.tolist()
    found = []
    for start in range(0, len(ids), size):
        block = ids[start : start + size]
        ends = [int(token == tokenizer.eos_token_id) for token in block]
        parts = [{"text": text, "ends_document": bool(end)} for text, end in _in_parts(tokenizer, block, ends)]
        found.append({"tokens": len(block), "parts": parts})
    return found


# ---- the summary of both ----


def _summary(
    blocks: Sequence[DataBlock],
    report: Report,
    splits: Counter[Split],
    lengths: Sequence[int],
    reader: Reader | None,
) -> dict[str, Any]:
    """The summary's part that all stages have: the sources, the rows of both splits, the lengths of measured rows."""
    built_in = [{"source": name, "formats": ["built in"]} for name in worlds_read(blocks)]
    allowed = {block.source: block.max_skipped for block in blocks}
    percentiles = np.percentile(lengths, [0, 50, 95, 100]).tolist() if lengths else [None] * 4
    return {
        "sources": [*built_in, *(_source(source, allowed[source.source]) for source in report.sources)],
        "train_rows": splits["train"],
        "validation_rows": splits["validation"],
        "measured_rows": len(lengths),
        "lengths": {
            "unit": "tokens" if reader else "characters",
            **dict(zip(("min", "median", "percentile_95", "max"), percentiles, strict=True)),
        },
    }


def _source(source: SourceReport, max_skipped: float) -> dict[str, Any]:
    """`stops_the_stage` is true where more rows than `max_skipped` cannot be used, without those that say so."""
    skipped = source.skipped
    return {
        "source": source.source,
        "formats": source.formats,
        "rows": source.rows,
        "left_out": [
            {"reason": reason, "rows": count, "first": skipped.first[reason]}
            for reason, count in skipped.reasons.most_common()
        ],
        "fields_not_read": source.unread,
        "files_not_read": source.left_files,
        "with_tools": source.with_tools,
        "stops_the_stage": skipped.reasons.total() - skipped.marked > max_skipped * source.rows,
    }


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _characters(conversation: Conversation) -> int:
    return sum(len(message["content"]) for message in conversation)


def _in_parts(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], marks: Sequence[int]
) -> Iterator[tuple[str, int]]:
    """The text of `ids` in runs of equal `marks`. Joined, they are the text of all ids, spaces included."""
    end, before = 0, ""
    for mark, run in groupby(marks):
        end += len(list(run))
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        yield text[len(before) :], mark
        before = text
