"""The token store: raw text as memory-mapped shards of token ids, with an end-of-text token behind each document.

    train.0/
      manifest.json       fingerprint, and of each shard: size, SHA-256, tokens, pieces and bytes of text, documents
      shard-00000.bin     token ids, 2 bytes each (4 where the vocabulary has more than 65,536 entries)

Text is tokenised once. A shard counts from the moment the manifest names it, which is after its bytes are on the disk;
a build that was interrupted reads on behind the last one. The fingerprint says what a store was made from.
"""

import errno
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np

from chatpipe import console
from chatpipe.data.documents import RawText
from chatpipe.data.durable import MANIFEST, PARTIAL, fault_of, fingerprint, fsync, read_json, replace_text, retire
from chatpipe.data.encoding import BATCH_CHARACTERS, SMALL_BATCHES, Encoded, Encoder, encode_stream
from chatpipe.data.sources import block_fingerprint
from chatpipe.data.text_files import PIECE_CHARACTERS
from chatpipe.data.worlds import world_settings
from chatpipe.errors import Interrupted, UsageError

SHARD_TOKENS = 1 << 24
MAX_WORKERS = 32
"""One process reads the text for all of them; it keeps no more busy."""

FORMAT = 1
"""Raised when the same text and tokenizer would give another store."""


@dataclass
class StoreManifest:
    """What stands in `manifest.json`; `files` maps a shard's name to what is known of it."""

    fingerprint: str
    dtype: str
    complete: bool = False
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows of the source that could not be used, by reason."""
    first_skipped: dict[str, str] = field(default_factory=dict)
    """Where the first of each stands."""


class TokenStore:
    """The token ids of one source, in the order of its text."""

    def __init__(self, folder: Path) -> None:
        """Opens a store that was built; `build_token_store` is what looks for damage."""
        manifest = StoreManifest(**read_json(folder / MANIFEST))
        shards = manifest.files.values()
        self.num_bytes: int = sum(shard["bytes"] for shard in shards)
        self.documents: int = sum(shard["documents"] for shard in shards)
        self.skipped, self.first_skipped = manifest.skipped, manifest.first_skipped
        # As plain arrays: a slice of a memmap takes ten times as long.
        self._shards = [np.asarray(np.memmap(folder / name, manifest.dtype, "r")) for name in manifest.files]
        self._ends = list(accumulate(map(len, self._shards)))
        self._folder = folder

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        """Opened anew in another process, not copied out of its files."""
        return TokenStore, (self._folder,)

    def __len__(self) -> int:
        """How many tokens there are."""
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` token ids from token `start` on, int64; behind the last token comes the first again."""
        parts = []
        while count:
            start %= len(self)
            number = bisect_right(self._ends, start)
            shard = self._shards[number]
            offset = start - (self._ends[number] - len(shard))
            parts.append(shard[offset : offset + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, np.int64)


def build_token_store(
    folder: Path, text: RawText, encoder: Encoder, workers: int | None = None, shard_tokens: int = SHARD_TOKENS
) -> TokenStore:
    """The train split of `text` as a store in `folder`: the one that is there, or what of it is missing tokenised.

    A store of other text or of another tokenizer is replaced. `workers` processes (default: one for each core) encode
    a text of more than 64 MB; a shard has `shard_tokens` tokens and a little more. Raises `UsageError` where a finished
    shard was changed, the text cannot be used, or the disk is full, and `Interrupted` on Ctrl-C.
    """
    made_from = store_fingerprint(text, encoder)
    manifest = _manifest_of(folder, made_from) or StoreManifest(made_from, encoder.dtype)
    if not manifest.complete:
        workers = workers or min(usable_cores(), MAX_WORKERS)
        try:
            _build(folder, text, encoder, manifest, workers, shard_tokens)
        except KeyboardInterrupt as problem:
            raise Interrupted(
                f"Tokenising {text.block.source} was interrupted; {len(manifest.files)} finished shards are kept.",
                "The same command goes on behind them.",
            ) from problem
    return TokenStore(folder)


def usable_cores() -> int:
    """How many cores this process may use; where the system does not tell (macOS), how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_token_store(folders: Sequence[Path], text: RawText, encoder: Encoder) -> TokenStore | None:
    """The first complete store of `text` among `folders`. Raises `UsageError` where its files were changed."""
    made_from = store_fingerprint(text, encoder)
    for folder in folders:
        manifest = _manifest_of(folder, made_from)
        if manifest is not None and manifest.complete:
            return TokenStore(folder)
    return None


def store_fingerprint(text: RawText, encoder: Encoder) -> str:
    """Fingerprint of all that decides the tokens of a store: the text, its settings, and the tokenizer."""
    world = world_settings([text.block], text.worlds)
    # the weight of a source does not change its tokens
    source = block_fingerprint(text.block.model_copy(update={"weight": 1.0}), text.key)
    return fingerprint([FORMAT, PIECE_CHARACTERS, source, world, asdict(encoder)])


def _manifest_of(folder: Path, made_from: str) -> StoreManifest | None:
    """What is there of the store, unless it is another one. Raises `UsageError` where its files were changed."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = StoreManifest(**read_json(folder / MANIFEST))
        fault = fault_of(folder) if manifest.fingerprint == made_from else None
    except (ValueError, TypeError) as problem:
        manifest, fault = StoreManifest(made_from, ""), f"{MANIFEST} cannot be read ({problem})"
    if fault is not None:
        raise UsageError(
            f"The token store {folder} is not as it was built: {fault}.",
            f"Delete {folder}: the same command then builds it anew.",
        )
    return manifest if manifest.fingerprint == made_from else None


def _build(
    folder: Path, text: RawText, encoder: Encoder, manifest: StoreManifest, workers: int, shard_tokens: int
) -> None:
    """Tokenises what no finished shard holds, and notes each shard in the manifest as soon as it is on the disk."""
    if not manifest.files and folder.exists():
        retire(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = sum(shard["pieces"] for shard in manifest.files.values())
    if done:
        console.note(f"{folder}: going on behind {len(manifest.files)} finished shards")
    size = text.megabytes()
    small = size is None or size * 10**6 <= SMALL_BATCHES * BATCH_CHARACTERS
    pieces = islice((piece for piece in text.pieces() if piece.split == "train"), done, None)
    read = sum(shard["bytes"] for shard in manifest.files.values())
    writer: _ShardWriter | None = None
    with (
        console.progress("tokenising", size) as bar,
        closing(encode_stream(encoder, pieces, workers, SMALL_BATCHES if small else 0)) as stream,
    ):
        for encoded in stream:
            writer = writer or _ShardWriter(folder, len(manifest.files))
            writer.add(encoded)
            read += encoded.num_bytes
            bar.update(read // 10**6, "MB")
            if writer.tokens >= shard_tokens:
                writer.finish(manifest)
                writer = None
    if writer is not None:
        writer.finish(manifest)
    manifest.complete = True
    manifest.skipped, manifest.first_skipped = dict(text.skipped.reasons), text.skipped.first
    _write_manifest(folder, manifest)


class _ShardWriter:
    """One shard as it grows, under a name that is not yet its own."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.name = folder, f"shard-{number:05}.bin"
        self.tokens = self._pieces = self._documents = self._bytes = 0
        self._digest = hashlib.sha256()
        self._partial = folder / f"{self.name}{PARTIAL}"
        self._partial.unlink(missing_ok=True)  # of a build that was interrupted

    def add(self, encoded: Encoded) -> None:
        data = encoded.ids.tobytes()
        with _room_for(self.folder), self._partial.open("ab") as file:
            file.write(data)
        self._digest.update(data)
        self.tokens += len(encoded.ids)
        self._pieces += encoded.pieces
        self._documents += encoded.documents
        self._bytes += encoded.num_bytes

    def finish(self, manifest: StoreManifest) -> None:
        """Gives the shard its name once its bytes are on the disk, then notes it in the manifest."""
        with _room_for(self.folder):
            fsync(self._partial)
            size = self._partial.stat().st_size
            self._partial.rename(self.folder / self.name)
        manifest.files[self.name] = {
            "size": size,
            "sha256": self._digest.hexdigest(),
            "tokens": self.tokens,
            "pieces": self._pieces,
            "documents": self._documents,
            "bytes": self._bytes,
        }
        _write_manifest(self.folder, manifest)


def _write_manifest(folder: Path, manifest: StoreManifest) -> None:
    with _room_for(folder):
        replace_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))


@contextmanager
def _room_for(folder: Path) -> Iterator[None]:
    """Turns a full disk into a `UsageError`."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UsageError(
            f"The token store {folder} cannot be written: {problem.strerror}.",
            "Make room, or choose another disk with out=; finished shards are kept, the same command goes on.",
        ) from problem
