"""Conversations as rows of token ids, tokenised once into memory-mapped files.

    rows/
      manifest.json         size and SHA-256 of each file, written last
      rows.json             fingerprint, and what was left out
      train.ids.bin         token ids of all rows one after another, int32
      train.learned.bin     1 on the tokens of the assistant and on its EOS, uint8
      train.ends.bin        where each row ends, int64
      train.jsonl           the first conversations as messages, for checks and evaluation
      validation....        the same for the validation split

Only the index stays in memory, eight bytes a conversation.
"""

import json
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.chat_template import Encoded, Message, encode_conversations
from chatpipe.data.datasets import Conversation, stream_conversations
from chatpipe.data.durable import PARTIAL, find_damage, fingerprint, fsync, publish, read_json, write_json
from chatpipe.data.rendering import KWARGS, loses_reasoning, render, tokenise, traits_of, unreadable
from chatpipe.data.row_files import Split
from chatpipe.data.sources import Report, data_fingerprints
from chatpipe.data.worlds import Worlds, world_settings
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock

FORMAT = 3
"""Increased when the same conversations and tokenizer would give other rows."""

SPLITS: tuple[Split, ...] = ("train", "validation")
MAX_EXAMPLES = 10_000
BEHIND = 8
"""More tokens than a template writes behind the end of an answer."""
BATCH = 256


@dataclass
class RowsNote:
    """The content of `rows.json`: conversations of each split that were too long, and unusable rows by reason.

    `made_from` is the fingerprint of all that decides the rows. `refused`: conversations that the chat template cannot
    write, by reason. `in_parts`: conversations of which each answer is a row. `silent`: those whose reasoning the
    template does not write. `kept`: conversations of each split that have a row. `answers_left_out`: answers of these
    conversations that have none.
    """

    made_from: str
    too_long: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    skipped: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    in_parts: int = 0
    silent: int = 0
    kept: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    answers_left_out: int = 0

    def left_out(self, max_length: int) -> list[str]:
        """A line for each split of which conversations were left out, and one for answers of the others."""
        lines = [
            f"sft: {count} of {count + self.kept[split]} {split} conversations left out: "
            f"longer than {max_length} tokens"
            for split, count in self.too_long.items()
            if count
        ]
        if self.answers_left_out:
            lines.append(
                f"sft: {self.answers_left_out} answers left out of conversations that are longer than {max_length} "
                "tokens and keep other answers"
            )
        return lines

    def refuses(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> bool:
        """Counts a conversation that the chat template cannot write, or whose reasoning it does not write."""
        reason = unreadable(tokenizer, conversation)
        if reason is not None:
            self.refused[reason] = self.refused.get(reason, 0) + 1
            return True
        self.silent += loses_reasoning(tokenizer, conversation)
        return False

    def say(self) -> None:
        """Prints what the chat template does to the conversations."""
        for reason, count in self.refused.items():
            console.warn(f"sft: {count} conversations left out: {reason}")
        if self.silent:
            console.warn(f"sft: the chat template writes no reasoning; it is left out of {self.silent} conversations")
        if self.in_parts:
            console.note(
                f"sft: each answer of {self.in_parts} conversations is a row of its own, behind the prompt that "
                "serving gives: the chat template writes an answer differently once the conversation goes on"
            )


class Rows:
    """The rows of one split."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._ids, self._learned = (_mapped(folder / f"{split}.{name}.bin", kind) for name, kind in _FILES)
        self._ends = np.fromfile(folder / f"{split}.ends.bin", np.int64)
        self._examples = folder / f"{split}.jsonl"
        self._opened_as = (folder, split)

    def __reduce__(self) -> tuple[type["Rows"], tuple[Path, Split]]:
        """Pickled as its folder: another process opens the files itself."""
        return Rows, self._opened_as

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._ends)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        return np.diff(self._ends, prepend=0)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask of a row, both int64."""
        cells = slice(self._ends[row - 1] if row else 0, self._ends[row])
        return self._ids[cells].astype(np.int64), self._learned[cells].astype(np.int64)

    def first(self, count: int) -> list[Encoded]:
        """The first rows, as lists."""
        read = map(self.read, range(min(count, len(self))))
        return [(ids.tolist(), learned.tolist()) for ids, learned in read]

    def examples(self) -> list[Conversation]:
        """The first conversations, at most `MAX_EXAMPLES`, including those too long for a row."""
        with self._examples.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def rows_of_conversations(
    folder: Path,
    blocks: Sequence[DataBlock],
    worlds: Worlds,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    key: str,
) -> tuple[Rows, Rows, RowsNote]:
    """The rows of both splits and their note, from `folder`; they are tokenised first unless they are there already.

    Raises `UsageError` where a source or a conversation cannot be used.
    """
    settings = getattr(tokenizer, KWARGS, {})
    reads = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map, settings]
    sources = [data_fingerprints(blocks, key), world_settings(blocks, worlds)]
    made_from = fingerprint([FORMAT, sources, reads, max_length])
    found = open_rows(folder, made_from)
    if found is None:
        report = Report()
        stream = stream_conversations(blocks, worlds, key, report)
        write_rows(folder, stream, report, tokenizer, max_length, made_from)
        report.say()
        found = open_rows(folder, made_from)
        if traits_of(tokenizer).dated:
            console.warn("sft: the chat template writes today's date: serving on another day reads other tokens")
        if found is not None:
            found[2].say()
    assert found is not None, f"{folder} was just written"
    return found


def check_enough_rows(train: Rows, validation: Rows, key: str) -> None:
    """Raises `UsageError` where there is nothing to train on, or fewer than two conversations for validation."""
    if len(train) == 0 or len(validation) < 2:
        raise UsageError(
            f"{key} holds too little: {len(train)} conversations for training, {len(validation)} for validation.",
            "A tenth is for validation, chosen by its text; give at least some dozens of different ones.",
        )


def open_rows(folder: Path, made_from: str) -> tuple[Rows, Rows, RowsNote] | None:
    """Both splits and the note of a folder, or None where it is damaged, missing or made from something else."""
    if find_damage(folder) is not None:
        return None
    note = RowsNote(**read_json(folder / "rows.json"))
    return (Rows(folder, "train"), Rows(folder, "validation"), note) if note.made_from == made_from else None


def write_rows(
    folder: Path,
    conversations: Iterable[tuple[Conversation, Split]],
    report: Report,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    made_from: str,
) -> None:
    """Tokenises `conversations` into `folder`, which is replaced, in memory that does not grow with them.

    Reading `conversations` fills `report`; its counts go into the note. Raises `UsageError` where the chat template
    refuses a conversation.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    note = RowsNote(made_from)
    with ExitStack() as stack, console.progress("tokenising", total=None) as bar:
        writers = {split: _Writer(partial, split, stack) for split in SPLITS}
        read, left = 0, iter(conversations)
        while batch := list(islice(left, BATCH)):
            written = [each for each in batch if not note.refuses(tokenizer, each[0])]
            encoded = fit_conversations(tokenizer, [conversation for conversation, _ in written], max_length)
            for (conversation, split), (rows, answers) in zip(written, encoded, strict=True):
                writers[split].add(conversation, rows)
                note.too_long[split] += not rows
                note.kept[split] += bool(rows)
                if rows:
                    note.answers_left_out += _learned_in(conversation) - answers
                note.in_parts += len(rows) > 1
            read += len(batch)
            bar.update(read, "conversations")
    note.skipped = report.skipped
    write_json(partial / "rows.json", asdict(note))
    for path in partial.iterdir():
        fsync(path)
    publish(partial)


def fit_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Conversation], max_length: int
) -> Iterator[tuple[list[Encoded], int]]:
    """The rows of each conversation, and the number of its answers in them.

    The oldest exchanges are left out until the rest fits; there are no rows if the last exchange alone is too long.

    Where each answer is a row of its own, each loses its own oldest exchanges, and those that are too long alone are
    left out. An answer is never cut: it would lose the end-of-turn token, and the model would learn not to stop
    (trl #3927).
    """
    conversations = list(conversations)
    for conversation, rows in zip(conversations, encode_conversations(tokenizer, conversations), strict=True):
        yield _fitting(tokenizer, conversation, rows, max_length)


def _fitting(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, rows: list[Encoded], max_length: int
) -> tuple[list[Encoded], int]:
    while any(len(ids) > max_length for ids, _ in rows):
        if len(rows) > 1:
            parts = _one_answer_each(conversation)
            encoded = encode_conversations(tokenizer, parts)
            fitting = [_fitting(tokenizer, *each, max_length) for each in zip(parts, encoded, strict=True)]
            return [row for found, _ in fitting for row in found], sum(answers for _, answers in fitting)
        conversation = _nearly_fitting(tokenizer, _without_oldest(conversation), max_length)
        rows = encode_conversations(tokenizer, [conversation])[0] if conversation else []
    return rows, _learned_in(conversation) if rows else 0


def _nearly_fitting(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, max_length: int) -> Conversation:
    """The conversation without the oldest exchanges that surely do not fit.

    They are found by bisection: one after another, a conversation of a hundred exchanges would take minutes.
    """
    shorter = [conversation]
    while shorter[-1]:
        shorter.append(_without_oldest(shorter[-1]))

    def fits(place: int) -> bool:
        last = max((i for i, message in enumerate(shorter[place]) if _is_learned(message)), default=-1)
        text = [render(tokenizer, shorter[place][: last + 1])] if last >= 0 else []
        return all(len(tokens.ids) <= max_length + BEHIND for tokens in tokenise(tokenizer, text))

    return shorter[bisect_left(range(len(shorter) - 1), True, key=fits)]


def _learned_in(conversation: Conversation) -> int:
    """The number of answers to be learned."""
    return sum(map(_is_learned, conversation))


def _one_answer_each(conversation: Conversation) -> list[Conversation]:
    """For each answer to be learned the conversation up to it, in which it is the only one."""
    return [
        [*({**message, "train": False} for message in conversation[:place]), message]
        for place, message in enumerate(conversation)
        if _is_learned(message)
    ]


def _is_learned(message: Message) -> bool:
    return message["role"] == "assistant" and bool(message.get("train", True))


def _without_oldest(conversation: Conversation) -> Conversation:
    """The conversation without its first question and all up to the next one; nothing if there is no other."""
    start = int(conversation[0]["role"] in ("system", "developer"))
    questions = [i for i, message in enumerate(conversation) if message["role"] == "user" and i > start]
    if not questions:
        return []
    first, *rest = [*conversation[:start], *conversation[questions[0] :]]
    of_the_whole = {name: conversation[0][name] for name in ("tools", KWARGS) if name in conversation[0]}
    return [{**first, **of_the_whole}, *rest]


_FILES = (("ids", np.int32), ("learned", np.uint8))


class _Writer:
    """The files of one split while they grow."""

    def __init__(self, folder: Path, split: Split, stack: ExitStack) -> None:
        names = [f"{split}.{name}.bin" for name in ("ids", "learned", "ends")]
        self._ids, self._learned, self._ends = (stack.enter_context((folder / name).open("wb")) for name in names)
        self._examples = stack.enter_context((folder / f"{split}.jsonl").open("w", encoding="utf-8"))
        self._seen = self._end = 0

    def add(self, conversation: Conversation, rows: Sequence[Encoded]) -> None:
        if self._seen < MAX_EXAMPLES:
            self._examples.write(json.dumps(conversation) + "\n")
        self._seen += 1
        for ids, learned in rows:
            self._end += len(ids)
            self._ids.write(np.array(ids, np.int32).tobytes())
            self._learned.write(np.array(learned, np.uint8).tobytes())
            self._ends.write(np.int64(self._end).tobytes())


def _mapped(path: Path, kind: type) -> np.ndarray:
    # an empty file cannot be mapped
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)
