"""The token store: raw text as memory-mapped shards of token ids, with an end-of-text token behind each document.

    train.0/
      manifest.json       fingerprint, and of each shard: size, SHA-256, tokens, pieces and bytes of text, documents
      shard-00000.bin     token ids, 2 bytes each (4 where the vocabulary has more than 65,536 entries)

Text is tokenised once. A shard counts as soon as the manifest names it, which is after its bytes are on the disk; an
interrupted build continues behind the last shard. The fingerprint covers text, settings and tokenizer.
"""

import errno
import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from chatpipe import console
from chatpipe.data.documents import Piece, RawText, too_little_text
from chatpipe.data.durable import (
    MANIFEST,
    PARTIAL,
    delete_folder,
    find_damage,
    fingerprint,
    fsync,
    read_json,
    replace_text,
)
from chatpipe.data.encoding import BATCH_CHARACTERS, SMALL_BATCHES, Encoded, Encoder, encode_stream
from chatpipe.data.sources import block_fingerprint
from chatpipe.data.text_files import PIECE_CHARACTERS
from chatpipe.data.worlds import world_settings
from chatpipe.errors import Interrupted, UsageError

SHARD_TOKENS = 1 << 24
MAX_WORKERS = 32
"""One process reads the text for all workers, and cannot keep more busy."""
CHECKED_CHARACTERS = 1 << 16
"""Of each store's text so much is also encoded whole, to see that looking up words changes no id."""

FORMAT = 1
"""Increased when the same text and tokenizer would give another store."""


@dataclass
class StoreManifest:
    """The content of `manifest.json`; `files` maps a shard's name to its size, SHA-256 and counts."""

    fingerprint: str
    dtype: str
    complete: bool = False
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows of the source that could not be used, by reason."""
    first_skipped: dict[str, str] = field(default_factory=dict)
    """The place of the first row of each reason."""


class TokenStore:
    """The token ids of one source, in the order of its text."""

    def __init__(self, folder: Path) -> None:
        """Opens a store that was built; only `build_token_store` checks it for damage."""
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
        """Pickled as its folder: another process opens the files itself."""
        return TokenStore, (self._folder,)

    def __len__(self) -> int:
        """How many tokens there are."""
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` token ids from token `start`, int64; after the last token the first follows."""
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
    """The train split of `text` as a store in `folder`. A complete store is opened; the rest of another is tokenised.

    A store of other text or of another tokenizer is replaced. `workers` processes (default: one for each core) encode
    a text of more than 64 MB; a shard has `shard_tokens` tokens or a few more. Raises `UsageError` where a finished
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
                "The same command continues behind them.",
            ) from problem
    return TokenStore(folder)


def token_stores(
    folder: Path, texts: Sequence[RawText], encoder: Encoder, made_before: Path | None, batch_size: int, block_size: int
) -> list[TokenStore]:
    """A store for each source: the same one among the stores in `made_before`, else `folder/train.N`, built if needed.

    Raises as `build_token_store` does, and where a source has nothing to train on or all of them hold fewer tokens than
    `batch_size` blocks, which one batch would then read twice; such stores are deleted.
    """
    known = [] if made_before is None else sorted(made_before.glob("train.*"))
    stores = [
        find_token_store(known, text, encoder) or build_token_store(folder / f"train.{number}", text, encoder)
        for number, text in enumerate(texts)
    ]
    tokens = sum(map(len, stores))
    if tokens < batch_size * block_size:
        shutil.rmtree(folder, ignore_errors=True)
        raise UsageError(
            f"{texts[0].key} has {tokens:,} tokens to train on, but one batch reads {batch_size * block_size:,}: "
            f"{batch_size} sequences of {block_size}.",
            "Give more text, or lower pretrain.batch_size or pretrain.block_size.",
        )
    for text, store in zip(texts, stores, strict=True):
        if len(store) == 0:
            raise too_little_text([text])
    return stores


def skipped_in(text: RawText, store: TokenStore) -> str | None:
    """One line about the rows that the store's text has left out; None where there are none."""
    if not store.skipped:
        return None
    reasons = [f"{count}: {reason}, first at {store.first_skipped[reason]}" for reason, count in store.skipped.items()]
    return f"{text.key}: {text.block.source}: {sum(store.skipped.values())} left out ({'; '.join(reasons)})"


def usable_cores() -> int:
    """How many cores this process may use; on macOS, how many there are."""
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
    return fingerprint([FORMAT, PIECE_CHARACTERS, source, world, encoder.identity])


def _manifest_of(folder: Path, made_from: str) -> StoreManifest | None:
    """The manifest of a store with this fingerprint, or None. Raises `UsageError` where its files were changed."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = StoreManifest(**read_json(folder / MANIFEST))
        fault = find_damage(folder) if manifest.fingerprint == made_from else None
    except (ValueError, TypeError) as problem:
        manifest, fault = StoreManifest(made_from, ""), f"{MANIFEST} cannot be read ({problem})"
    if fault is not None:
        raise UsageError(
            f"The token store {folder} was changed after it was built: {fault}.",
            f"Delete {folder}: the same command then builds it again.",
        )
    return manifest if manifest.fingerprint == made_from else None


def _build(
    folder: Path, text: RawText, encoder: Encoder, manifest: StoreManifest, workers: int, shard_tokens: int
) -> None:
    """Tokenises the text behind the finished shards, and adds each shard to the manifest once it is on the disk."""
    if not manifest.files and folder.exists():
        delete_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = sum(shard["pieces"] for shard in manifest.files.values())
    if done:
        console.note(f"{folder}: continuing behind {len(manifest.files)} finished shards")
    size = text.megabytes()
    small = size is None or size * 10**6 <= SMALL_BATCHES * BATCH_CHARACTERS
    pieces = islice((piece for piece in text.pieces() if piece.split == "train"), done, None)
    sample = _first_characters(pieces, CHECKED_CHARACTERS)
    checked = encoder.checked_on(sample)
    if checked != encoder:
        console.note(f"{text.block.source}: this tokenizer needs whole texts, so tokenising is slower")
    read = sum(shard["bytes"] for shard in manifest.files.values())
    writer: _ShardWriter | None = None
    with (
        console.progress("tokenising", size) as bar,
        closing(encode_stream(checked, chain(sample, pieces), workers, SMALL_BATCHES if small else 0)) as stream,
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


def _first_characters(pieces: Iterator[Piece], characters: int) -> list[Piece]:
    """The next pieces, until they have so many characters."""
    found: list[Piece] = []
    while characters > 0 and (piece := next(pieces, None)) is not None:
        found.append(piece)
        characters -= len(piece.text)
    return found


class _ShardWriter:
    """One shard while it grows, under a temporary name."""

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
        """Renames the shard once its bytes are on the disk, then adds it to the manifest."""
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
            "Make room, or choose another disk with out=; finished shards are kept, the same command continues.",
        ) from problem
