"""Tokenising a stream of text in several processes, in order and in bounded memory.

This file does not import torch, because every worker process imports it.
"""

import json
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice, pairwise
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken, Tokenizer, normalizers

from chatpipe.data.documents import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_CHARACTERS = 1 << 18
SMALL_BATCHES = 1 << 8
"""64 MB: more processes start only behind so much text, because starting them takes as long as encoding it."""

WORD = re.compile(r"\s*\S+(?:(?!\n\w)[^\S ]\s*\S*)*(?:\n(?=\w))?|\s+")
"""A word of a text: the text is cut before each space that follows no other white space, and behind a newline before a
letter or digit without other white space. The cuts of `text_files.CLEAN_CUT` are some of these."""
WORDS_AT_ONCE = 1000
MAX_KNOWN_WORDS, MAX_KNOWN_LENGTH = 1 << 19, 32
"""The number and the length of the words whose ids a process keeps, at most 100 MB; then it starts over."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of some pieces in one array, with end-of-text where a document ends.

    `num_bytes` counts the UTF-8 bytes of the text; end-of-text has none.
    """

    ids: np.ndarray
    pieces: int
    documents: int
    num_bytes: int


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that can be sent to other processes. Special tokens in a text are encoded as plain text.

    With `by_words`, the ids of words that came before are looked up, which is several times as fast. That is right only
    for tokenizers whose words end where `WORD` cuts; `of` and `checked_on` decide it.
    """

    tokenizer: str
    eos_token_id: int
    dtype: str
    by_words: bool

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Encoder":
        """The encoder of a fast tokenizer with an end-of-text token."""
        dtype = "<u2" if len(tokenizer) <= 2**16 else "<u4"
        backend = tokenizer.backend_tokenizer
        return cls(backend.to_str(), tokenizer.eos_token_id, dtype, cuts_cleanly(backend))

    @property
    def identity(self) -> tuple[str, int, str]:
        """The parts that decide the ids; `by_words` only decides how fast they come."""
        return self.tokenizer, self.eos_token_id, self.dtype

    def checked_on(self, pieces: Sequence[Piece]) -> "Encoder":
        """This encoder; without `by_words` where cutting changes an id of `pieces`, a sample of the real text."""
        texts = [piece.text for piece in pieces]
        same = not self.by_words or self._encode_texts(texts) == self._encode_whole(texts)
        return self if same else replace(self, by_words=False)

    @cached_property
    def _backend(self) -> Tokenizer:
        backend = Tokenizer.from_str(self.tokenizer)
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        return backend

    @cached_property
    def _known(self) -> dict[str, bytes]:
        return {}

    def encode(self, pieces: Iterable[Piece]) -> Encoded:
        """Token ids of `pieces`, in this process."""
        pieces = list(pieces)
        texts = self._encode_texts([piece.text for piece in pieces])
        end = np.array(self.eos_token_id, dtype=self.dtype).tobytes()
        data = b"".join(text + end if piece.ends else text for text, piece in zip(texts, pieces, strict=True))
        return Encoded(
            np.frombuffer(data, dtype=self.dtype),
            len(pieces),
            sum(piece.ends for piece in pieces),
            sum(len(piece.text.encode()) for piece in pieces),
        )

    def _encode_texts(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, as bytes."""
        if not self.by_words:
            return self._encode_whole(texts)
        cut_up = [WORD.findall(text) for text in texts]
        known = self._known
        if len(known) > MAX_KNOWN_WORDS:
            known.clear()
        new = list(set(chain.from_iterable(cut_up)).difference(known))
        known.update(zip(new, self._encode_words(new), strict=True))
        encoded = [b"".join(map(known.__getitem__, words)) for words in cut_up]
        for word in new:
            if len(word) > MAX_KNOWN_LENGTH:
                del known[word]
        return encoded

    def _encode_whole(self, texts: Sequence[str]) -> list[bytes]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype).tobytes() for encoding in encodings]

    def _encode_words(self, words: list[str]) -> Iterator[bytes]:
        """The ids of each word, as bytes; many words make one input, because an input has an overhead of its own."""
        size = np.dtype(self.dtype).itemsize
        groups = [words[start : start + WORDS_AT_ONCE] for start in range(0, len(words), WORDS_AT_ONCE)]
        encodings = self._backend.encode_batch(groups, is_pretokenized=True, add_special_tokens=False)
        for group, encoding in zip(groups, encodings, strict=True):
            data = np.array(encoding.ids, dtype=self.dtype).tobytes()
            ends = np.searchsorted(np.array(encoding.word_ids), np.arange(len(group)), side="right") * size
            yield from (data[start:end] for start, end in pairwise([0, *ends.tolist()]))


def encode_stream(
    encoder: Encoder, pieces: Iterable[Piece], workers: int, before_workers: int = 0
) -> Generator[Encoded]:
    """`pieces` encoded in batches, in their order; the ids do not depend on `workers`.

    More than one worker are processes, which start after this process has encoded `before_workers` batches. At most
    two batches for each worker are in memory at a time. Close the generator (`contextlib.closing`) where it may not be
    read to its end.
    """
    batches = _batches(pieces)
    yield from map(encoder.encode, islice(batches, before_workers if workers > 1 else None))
    following = next(batches, None)
    if following is None:
        return
    context = get_context("spawn")  # a fork of a process that has used torch's or tokenizers' threads can hang
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(replace(encoder),))
    running: deque[Future[Encoded]] = deque()
    try:
        for batch in chain([following], batches):
            running.append(pool.submit(_encode_in_worker, batch))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def cuts_cleanly(tokenizer: Tokenizer) -> bool:
    """Whether a text cut into `WORD`s has the tokens of the whole text, as far as the tokenizer's parts and about a
    hundred pairs of characters show: `Encoder.checked_on` then compares real text.

    True of byte-level BPE as in GPT-2, Llama 3 and Qwen, and of characters; False where the first word of a text is
    marked, as in Llama 2.
    """
    if not isinstance(tokenizer.normalizer, normalizers.NFC | None):
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    if any(_minds_cuts(token) for token in added if not token.special):
        return False
    if tokenizer.pre_tokenizer is None:
        return json.loads(tokenizer.to_str())["model"].get("merges") == []

    def words(text: str) -> list[str]:
        return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    before, behind = ("a", "Z", "7", ".", "'", "é", "中"), ("b", "B", "8", "é", "中", "_")
    lines = [(f"{a}\n", b) for a in before for b in behind]
    spaces = [(a, f" {b}") for a in before for b in (*behind, ".", "'s", "", " ", "  b", "\n", "\nb", "\t\n.")]
    return all(words(left) + words(right) == words(left + right) for left, right in lines + spaces)


def _minds_cuts(token: AddedToken) -> bool:
    """Whether an added token can contain the end of a `WORD`, or be found only because a text ends there."""
    content = token.content
    across = re.search(r"\S\s|\n\w", content) or token.rstrip or (token.lstrip and re.match(r"\w", content))
    # `single_word` looks at the characters around the token: across the cut there may be a letter
    return bool(across or (token.single_word and content != content.strip()))


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Batches of pieces with a quarter of a megabyte of text or more."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_worker_encoder: Encoder


def _start_worker(encoder: Encoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one

    def end_with_parent() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)  # killed: nobody would ever send this process anything again

    threading.Thread(target=end_with_parent, daemon=True).start()


def _encode_in_worker(pieces: list[Piece]) -> Encoded:
    return _worker_encoder.encode(pieces)
