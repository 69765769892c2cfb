"""Conversations as rows of token ids, tokenised once into memory-mapped files.

    rows/
      manifest.json         size and SHA-256 of each file, written last
      rows.json             what the rows were made from, and what was left out
      train.ids.bin         token ids of all rows one after another, int32
      train.learned.bin     1 on what the assistant says and on its EOS, uint8
      train.ends.bin        where each row ends, int64
      train.jsonl           the first conversations as messages, for whatever has to read them
      validation....        the same for the validation split

What stays in memory is the index, eight bytes a conversation.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.chat_template import encode_conversations
from chatpipe.data.datasets import Conversation
from chatpipe.data.durable import PARTIAL, fault_of, fsync, publish, read_json, write_json
from chatpipe.data.report import Report
from chatpipe.data.split import Split

FORMAT = 1
"""Raised when the same conversations and tokenizer would give other rows."""

SPLITS: tuple[Split, ...] = ("train", "validation")
MAX_EXAMPLES = 10_000
BATCH = 256

Encoded = tuple[list[int], list[int]]
"""Token ids of a conversation, and the mask of what the assistant says in it."""


@dataclass
class RowsNote:
    """What stands in `rows.json`: how many conversations of each split were too long, and which rows could not be used.

    `made_from` is a SHA-256 over all that decides what the rows hold.
    """

    made_from: str
    too_long: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    skipped: dict[str, int] = field(default_factory=dict)


class Rows:
    """The rows of one split."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._ids, self._learned = (_mapped(folder / f"{split}.{name}.bin", kind) for name, kind in _FILES)
        self._ends = np.fromfile(folder / f"{split}.ends.bin", np.int64)
        self._examples = folder / f"{split}.jsonl"
        self._opened_as = (folder, split)

    def __reduce__(self) -> tuple[type["Rows"], tuple[Path, Split]]:
        """Opened anew in another process, and where a data set takes its fingerprint: not copied out of the files."""
        return Rows, self._opened_as

    def __len__(self) -> int:
        """How many rows there are."""
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
        """The first conversations, at most `MAX_EXAMPLES`, also those that were too long for a row."""
        with self._examples.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def open_rows(folder: Path, made_from: str) -> tuple[Rows, Rows, RowsNote] | None:
    """Both splits and the note of what was written there, or None where that is not whole or was made from other."""
    if fault_of(folder) is not None:
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
    """Tokenises `conversations` into `folder`, which is replaced.

    `report` is what reading them fills: why rows could not be used is noted. Memory does not grow with them. Raises
    `UsageError` where the chat template refuses one.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    note = RowsNote(made_from)
    with ExitStack() as stack, console.progress("tokenising", total=None) as bar:
        writers = {split: _Writer(partial, split, stack) for split in SPLITS}
        read, left = 0, iter(conversations)
        while batch := list(islice(left, BATCH)):
            encoded = fit_conversations(tokenizer, [conversation for conversation, _ in batch], max_length)
            for (conversation, split), row in zip(batch, encoded, strict=True):
                writers[split].add(conversation, row)
                note.too_long[split] += row is None
            read += len(batch)
            bar.update(read, "conversations")
    note.skipped = report.skipped
    write_json(partial / "rows.json", asdict(note))
    for path in partial.iterdir():
        fsync(path)
    publish(partial)


def fit_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Conversation], max_length: int
) -> Iterator[Encoded | None]:
    """Ids and mask of each without its oldest exchanges, as many as must go; None if its last one is too long.

    An answer is never cut: it would lose the end-of-turn token, and the model would learn not to stop (trl #3927).
    """
    conversations = list(conversations)
    for conversation, whole in zip(conversations, encode_conversations(tokenizer, conversations), strict=True):
        encoded: Encoded | None = whole
        system = conversation[:1] if conversation[0]["role"] == "system" else []
        turns = conversation[len(system) :]
        while encoded is not None and len(encoded[0]) > max_length:
            turns = turns[2:]
            encoded = encode_conversations(tokenizer, [[*system, *turns]])[0] if turns else None
        yield encoded


_FILES = (("ids", np.int32), ("learned", np.uint8))


class _Writer:
    """The files of one split while they grow."""

    def __init__(self, folder: Path, split: Split, stack: ExitStack) -> None:
        names = [f"{split}.{name}.bin" for name in ("ids", "learned", "ends")]
        self._ids, self._learned, self._ends = (stack.enter_context((folder / name).open("wb")) for name in names)
        self._examples = stack.enter_context((folder / f"{split}.jsonl").open("w", encoding="utf-8"))
        self._seen = self._end = 0

    def add(self, conversation: Conversation, row: Encoded | None) -> None:
        if self._seen < MAX_EXAMPLES:
            self._examples.write(json.dumps(conversation) + "\n")
        self._seen += 1
        if row is not None:
            ids, learned = row
            self._end += len(ids)
            self._ids.write(np.array(ids, np.int32).tobytes())
            self._learned.write(np.array(learned, np.uint8).tobytes())
            self._ends.write(np.int64(self._end).tobytes())


def _mapped(path: Path, kind: type) -> np.ndarray:
    # an empty file cannot be mapped
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)
