"""The first rows of a stage's data as its model will see them, and what all of them come to."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.chat_rows import Encoded, fit_conversations
from chatpipe.data.chat_template import encode_completion, encode_conversations, encode_prompt
from chatpipe.data.datasets import Conversation, stream_rows
from chatpipe.data.documents import Piece, RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.report import Report, SourceReport
from chatpipe.data.row_files import BadRow
from chatpipe.data.sources import check_sources
from chatpipe.data.split import Split
from chatpipe.data.worlds import is_world, worlds_read
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock
from chatpipe.reward.ranking_batches import encode_answers
from chatpipe.run.data_reading import Reader, find_reader
from chatpipe.stages.step import WHAT_OF_KEY, Step, rankings_file

MAX_MEASURED = 10_000
"""Rows that are tokenised to tell lengths: seconds, and no other lengths than a million rows would give."""
MAX_READ = 100_000_000
"""Characters of raw text that are read of each source."""


@dataclass
class DataView:
    """What `chatpipe data show` says: `rows` as the model will see them, and a `summary` of all.

    `tokenizer` is where the tokenizer came from, None where there is none yet; rows then have no tokens.
    """

    stage: str
    tokenizer: str | None
    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The one object of `--json`."""
        return asdict(self)


@dataclass
class _Measured:
    """What counting and tokenising came to; a length in tokens, or in characters where there is no tokenizer."""

    splits: Counter[Split] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    too_long: int = 0
    left_out: int = 0
    stops: int = 0

    @property
    def is_full(self) -> bool:
        return len(self.lengths) >= MAX_MEASURED

    def share(self, count: int) -> float | None:
        return _share(count, len(self.lengths))


def view_data(step: Step, model: str | None, count: int) -> DataView:
    """The first `count` rows of the stage's own data and the summary; `model` gives the tokenizer in place of its own.

    Raises `UsageError` where the data, or the tokenizer that is named, cannot be used. Too many unusable rows do not
    stop it: they are what one wants to see.
    """
    key = f"{step.stage}.data"
    blocks = step.data()[key]
    if step.makes_rankings():
        raise UsageError(
            f"rm.data is not given, and the run has made no rankings yet: {rankings_file(step.recipe)}.",
            "Give a file with --data, or run the stages before first.",
        )
    check_sources(blocks, key)
    reader = find_reader(step, model)
    show = {"pretrain": _texts, "sft": _conversations, "rm": _rankings, "ppo": _prompts}[step.stage]
    rows, summary = show(step, blocks, reader, count)
    return DataView(step.stage, reader.name if reader else None, rows, summary)


# ---- sft ----


def _conversations(
    step: Step, blocks: Sequence[DataBlock], reader: Reader | None, count: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    limit = min(step.recipe.sft.max_length, reader.context) if reader else step.recipe.sft.max_length
    rows: list[dict[str, Any]] = []
    measured, report = _Measured(), Report()
    for said, split in _watched(step, blocks, report):
        measured.splits[split] += 1
        if measured.is_full:
            continue
        fitting = _measure(said, reader, limit, measured)
        if len(rows) < count:
            rows.append({"messages": said, "split": split, **_as_read(reader, measured.lengths[-1], fitting)})
    summary = _summary(blocks, report, measured, reader)
    if reader is not None:
        summary.update(
            max_length=limit,
            truncated_share=measured.share(measured.too_long),
            left_out_share=measured.share(measured.left_out),
            eos_trained_share=_share(measured.stops, len(measured.lengths) - measured.left_out),
        )
    return rows, summary


def _measure(said: Conversation, reader: Reader | None, max_length: int, measured: _Measured) -> Encoded | None:
    """What is left of a conversation in a row, as it is counted; None where nothing is, or nothing reads it."""
    if reader is None:
        measured.lengths.append(_characters(said))
        return None
    whole = encode_conversations(reader.tokenizer, [said])[0]
    too_long = len(whole[0]) > max_length
    fitting = next(fit_conversations(reader.tokenizer, [said], max_length)) if too_long else whole
    measured.lengths.append(len(whole[0]))
    measured.too_long += too_long
    measured.left_out += fitting is None
    if fitting is not None:
        eos = reader.tokenizer.eos_token_id
        measured.stops += any(learn and token == eos for token, learn in zip(*fitting, strict=True))
    return fitting


def _as_read(reader: Reader | None, tokens: int, fitting: Encoded | None) -> dict[str, Any]:
    """`tokens` before and `kept_tokens` after the cut; `parts`: what is left, in turns of trained and not."""
    if reader is None:
        return {}
    if fitting is None:
        return {"tokens": tokens, "kept_tokens": 0, "parts": []}
    parts = [{"text": text, "trained": bool(learn)} for text, learn in _in_parts(reader.tokenizer, *fitting)]
    return {"tokens": tokens, "kept_tokens": len(fitting[0]), "parts": parts}


# ---- rm ----


def _rankings(
    step: Step, blocks: Sequence[DataBlock], reader: Reader | None, count: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    limit = min(step.recipe.rm.max_length, reader.context) if reader else step.recipe.rm.max_length
    rows: list[dict[str, Any]] = []
    measured, report = _Measured(), Report()
    tied = 0
    for ranking, split in _watched(step, blocks, report):
        measured.splits[split] += 1
        tied += len(set(ranking.ranks)) == 1
        if measured.is_full:
            continue
        answers = [{"rank": rank, "text": text} for rank, text in zip(ranking.ranks, ranking.responses, strict=True)]
        row: dict[str, Any] = {"prompt": ranking.prompt, "answers": answers, "split": split}
        if reader is None:
            measured.lengths.append(_characters(ranking.prompt) + max(map(len, ranking.responses)))
        else:
            lengths = [len(encode_completion(reader.tokenizer, ranking.prompt, text)[0]) for text in ranking.responses]
            for answer, length in zip(answers, lengths, strict=True):
                answer["tokens"] = length
            measured.lengths.append(max(lengths))
            measured.too_long += max(lengths) > limit
            try:
                encode_answers(reader.tokenizer, ranking.prompt, ranking.responses, limit)
            except BadRow:
                measured.left_out += 1
            row["text"] = reader.tokenizer.decode(encode_prompt(reader.tokenizer, ranking.prompt))
        rows += [row][: count - len(rows)]
    summary = {**_summary(blocks, report, measured, reader), "all_tied": tied}
    if reader is not None:
        summary.update(
            max_length=limit,
            truncated_share=measured.share(measured.too_long),
            left_out_share=measured.share(measured.left_out),
        )
    return rows, summary


# ---- ppo ----


def _prompts(
    step: Step, blocks: Sequence[DataBlock], reader: Reader | None, count: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    measured, report = _Measured(), Report()
    room = reader.context - step.recipe.ppo.response_length if reader else 0
    for prompt, split in _watched(step, blocks, report):
        measured.splits[split] += 1
        if measured.is_full:
            continue
        row: dict[str, Any] = {"prompt": prompt, "split": split}
        if reader is None:
            measured.lengths.append(_characters(prompt))
        else:
            ids = encode_prompt(reader.tokenizer, prompt)
            measured.lengths.append(len(ids))
            measured.left_out += len(ids) > room
            row.update(tokens=len(ids), text=reader.tokenizer.decode(ids))
        rows += [row][: count - len(rows)]
    summary = _summary(blocks, report, measured, reader)
    if reader is not None:
        summary.update(max_length=room, left_out_share=measured.share(measured.left_out))
    return rows, summary


# ---- pretrain ----


def _texts(
    step: Step, blocks: Sequence[DataBlock], reader: Reader | None, count: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Blocks in the order of the sources; training shuffles them. Without a tokenizer, documents."""
    size = step.recipe.pretrain.block_size
    measured, report = _Measured(), Report()
    beginning: list[Piece] = []  # of what is trained on: enough for the blocks that are shown
    wanted = size * count * _longest_token(reader) if reader else count
    had, read_whole = 0, True
    for block in _tolerant(blocks):
        text = RawText(block, step.recipe.worlds, "pretrain.data")
        read = length = 0
        documents_before = sum(measured.splits.values())
        for piece in text.pieces():
            if piece.split == "train" and had < wanted:
                beginning.append(piece)
                had += len(piece.text) if reader else piece.ends
            length += len(piece.text)
            if piece.ends:
                measured.splits[piece.split] += 1
                measured.lengths.append(length)
                length = 0
            read += len(piece.text)
            if read > MAX_READ:
                read_whole = False
                break
        if not is_world(block.source):
            documents = sum(measured.splits.values()) - documents_before
            report.sources.append(
                SourceReport("pretrain.data", block.source, ["text"], text.rows or documents, text.skipped)
            )
    summary = {**_summary(blocks, report, measured, None), "read_whole": read_whole}
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
    """`parts` of each block: text, and where a document ends."""
    ids = Encoder.of(tokenizer).encode(pieces).ids.tolist()
    found = []
    for start in range(0, len(ids), size):
        block = ids[start : start + size]
        ends = [int(token == tokenizer.eos_token_id) for token in block]
        parts = [{"text": text, "ends_document": bool(end)} for text, end in _in_parts(tokenizer, block, ends)]
        found.append({"tokens": len(block), "parts": parts})
    return found


def _longest_token(reader: Reader) -> int:
    """Characters of its longest token, so that a text of so many times the tokens is long enough."""
    return max(map(len, reader.tokenizer.get_vocab()))


# ---- all ----


def _watched(step: Step, blocks: Sequence[DataBlock], report: Report) -> Iterator[tuple[Any, Split]]:
    """The stage's rows as they are read, with a progress bar."""
    key = f"{step.stage}.data"
    with console.progress("reading", total=None) as bar:
        rows = stream_rows(WHAT_OF_KEY[key], _tolerant(blocks), step.recipe.worlds, key, report)
        for number, row in enumerate(rows, start=1):
            yield row
            bar.update(number, "rows")


def _tolerant(blocks: Sequence[DataBlock]) -> list[DataBlock]:
    """The blocks, whatever the share of their rows that cannot be used."""
    return [block.model_copy(update={"max_skipped": 1.0}) for block in blocks]


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _characters(said: Conversation) -> int:
    return sum(len(message["content"]) for message in said)


def _in_parts(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], marks: Sequence[int]
) -> Iterator[tuple[str, int]]:
    """The text of `ids` in runs of equal `marks`; together they are the text of all, spaces between words included."""
    end, before = 0, ""
    for mark, run in groupby(marks):
        end += len(list(run))
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        yield text[len(before) :], mark
        before = text


def _summary(blocks: Sequence[DataBlock], report: Report, measured: _Measured, reader: Reader | None) -> dict[str, Any]:
    """What all stages have: sources, rows of both splits, and lengths of those that were measured."""
    built_in = [{"source": name, "formats": ["built in"]} for name in worlds_read(blocks)]
    allowed = {block.source: block.max_skipped for block in blocks}
    sources = [_source(source, allowed[source.source]) for source in report.sources]
    low, median, high, most = (
        np.percentile(measured.lengths, [0, 50, 95, 100]).tolist() if measured.lengths else [None] * 4
    )
    return {
        "sources": [*built_in, *sources],
        "train_rows": measured.splits["train"],
        "validation_rows": measured.splits["validation"],
        "measured_rows": len(measured.lengths),
        "lengths": {
            "unit": "tokens" if reader else "characters",
            "min": low,
            "median": median,
            "percentile_95": high,
            "max": most,
        },
    }


def _source(source: SourceReport, max_skipped: float) -> dict[str, Any]:
    """`stops_the_stage` says that more rows than `max_skipped` cannot be used."""
    skipped = source.skipped
    left_out = [
        {"reason": reason, "rows": count, "first": skipped.first[reason]}
        for reason, count in skipped.reasons.most_common()
    ]
    return {
        "source": source.source,
        "formats": source.formats,
        "rows": source.rows,
        "left_out": left_out,
        "stops_the_stage": skipped.reasons.total() > max_skipped * source.rows,
    }
