"""Raw text as a stream of documents, each in one split: train or validation; its checks, and samples of a split.

    texts = raw_texts(step.data()["pretrain.data"], recipe.worlds, "pretrain.data")
    for piece in texts[0].pieces(): ...
    documents = validation_documents(texts, max_bytes=500_000)

The content of a document decides its split. A long document comes in pieces, so that no file has to fit into memory. Of
a single document, and of each text file where a source has few of them, the last tenth is for validation.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from chatpipe.data.formats import format_of, readers_of
from chatpipe.data.row_files import (
    VALIDATION_SHARE,
    BadRow,
    BrokenRow,
    Row,
    Split,
    Use,
    quotas,
    split_of,
    split_of_digest,
    wanted,
)
from chatpipe.data.sources import Skipped, check_sources, is_hub, one_file_each, source_files, source_rows
from chatpipe.data.text_files import (
    PACKED,
    characters_between,
    in_pieces,
    kind_of,
    line_start,
    numbered_lines,
    survey,
    text_chunks,
)
from chatpipe.data.worlds import Worlds, is_world, world_named
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock

FEW_FILES = 100
"""With fewer text files a hash might choose none for validation (0.9^100 = 0.00003), so each gives its last tenth."""

ROWS_BETWEEN_CHECKS = 10_000
"""A source is checked every so many rows, so one with mostly bad rows is not read to its end."""


@dataclass(frozen=True)
class Piece:
    """A document or a part of it; `ends` is true where the document ends."""

    text: str
    split: Split
    ends: bool


@dataclass(frozen=True)
class _Document:
    """A document whose text comes in parts; `parts` need not be read."""

    split: Split
    parts: Iterable[str]


class RawText:
    """The documents of one block of `data:`; each reading gives the same ones.

    Without `split`, a text that would be cut into a train and a validation part stays one document. After a reading,
    `rows` is the number of rows and `skipped` counts the unusable ones; too many of these raise `UsageError`.
    """

    def __init__(self, block: DataBlock, worlds: Worlds, key: str, split: bool = True) -> None:
        self.block, self.worlds, self.key, self.split = block, worlds, key, split
        self.skipped = Skipped()
        self.rows = 0
        self._of_world: Sequence[str] | None = None

    def pieces(self) -> Iterator[Piece]:
        """The pieces of both splits in the order of the source, within `limit`."""
        left = None if self.block.limit is None else quotas(self.block.limit, self.block.use)
        for document in self._documents(left):
            if left is not None and not any(left.values()):
                self._check_skipped()
                return
            if left is None or left[document.split]:
                if left is not None:
                    left[document.split] -= 1
                yield from _marked(document)

    def megabytes(self) -> float | None:
        """About the size of the train split; None where file sizes do not show it."""
        if is_world(self.block.source) or is_hub(self.block) or self.block.limit is not None:
            return None
        files = source_files(self.block.source, self.key)
        if any(path.suffix.lower() in PACKED or kind_of(path) in (".parquet", ".arrow") for path in files):
            return None
        return round((1 - VALIDATION_SHARE) * sum(path.stat().st_size for path in files) / 10**6)

    def _documents(self, left: Mapping[Split, int] | None) -> Iterator[_Document]:
        """All documents; `left`, which falls while they are read, is how many of each split are wanted."""
        self.skipped, self.rows = Skipped(), 0
        whole_files = self._whole_files()
        few = self.split and len(whole_files) < FEW_FILES
        for part in whole_files:
            path = Path(part.source)
            own_split = few and part.use == "auto"
            yield from _sides_of_file(path, self.key) if own_split else _file_as_one(path, self.key, part.use)
        texts = iter(self._texts(left))
        first, second = next(texts, None), next(texts, None)
        if self.split and first is not None and second is None and not whole_files and first[1] == "auto":
            yield from _sides_of_text(first[0])
            return
        for text, use in chain((text for text in (first, second) if text is not None), texts):
            yield _Document(split_of(text) if use == "auto" else use, [text])

    def _whole_files(self) -> list[DataBlock]:
        """The text files of which each is one document."""
        if is_world(self.block.source) or is_hub(self.block) or self.block.document != "file":
            return []
        return [part for part in one_file_each(self.block, self.key) if kind_of(Path(part.source)) == ".txt"]

    def _texts(self, left: Mapping[Split, int] | None) -> Iterator[tuple[str, Use]]:
        """The usable documents of the source except whole files, each with its use; unusable ones are counted."""
        for item, use in self._items(left):
            self.rows += 1
            try:
                yield _text_of(item), use
            except BadRow as problem:
                self.skipped.add(str(problem), item)
            if self.rows % ROWS_BETWEEN_CHECKS == 0 and self.skipped.reasons.total() > self.rows / 2:
                self._check_skipped()
        self._check_skipped()

    def _check_skipped(self) -> None:
        """Raises `UsageError` where too many of the rows read so far cannot be used."""
        self.skipped.check(f"{self.key}: {self.block.source}", self.rows, self.block.max_skipped)

    def _items(self, left: Mapping[Split, int] | None) -> Iterator[tuple[Row | BrokenRow, Use]]:
        """The rows of each file, as far as they are wanted."""
        if is_world(self.block.source):
            for number, text in enumerate(self._world_documents(), start=1):
                yield Row({"text": text}, f"{self.block.source} document {number}"), "auto"
            return
        for part in one_file_each(self.block, self.key):
            rows: Iterable[Row | BrokenRow] = ()
            if is_hub(part) or kind_of(Path(part.source)) != ".txt":
                rows = source_rows(part, self.key)
            elif part.document != "file":
                rows = _units(Path(part.source), part.document)
            for row in rows:
                if left is not None and not wanted(left, part.use):
                    break
                yield row, part.use

    def _world_documents(self) -> Sequence[str]:
        if self._of_world is None:
            self._of_world = world_named(self.block.source, self.worlds).documents()
        return self._of_world


def _text_of(item: Row | BrokenRow) -> str:
    """The text of a row. Raises `BadRow` where there is no usable text."""
    if isinstance(item, BrokenRow):
        raise BadRow(item.reason)
    text = item.values.get("text")
    if not isinstance(text, str):
        raise BadRow("text is not text" if "text" in item.values else "there is no field text")
    if not text.strip():
        raise BadRow("text is empty")
    try:
        text.encode()
    except UnicodeEncodeError as problem:  # JSON allows "\ud800" alone
        raise BadRow("a text holds half a character, a lone surrogate") from problem
    return text


def _units(path: Path, document: str) -> Iterator[Row]:
    """The lines of a text file, or its paragraphs (between blank lines), each without its line end."""
    start, lines = 1, list[str]()
    for number, line in numbered_lines(path):
        if line.strip() and document == "line":
            yield Row({"text": line}, f"{path}:{number}")
        elif line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield Row({"text": "\n".join(lines)}, f"{path}:{start}")
            lines = []
    if lines:
        yield Row({"text": "\n".join(lines)}, f"{path}:{start}")


def _marked(document: _Document) -> Iterator[Piece]:
    """The document's pieces, the last of them marked."""
    before: str | None = None
    for part in document.parts:
        for piece in in_pieces([part]):
            if before is not None:
                yield Piece(before, document.split, False)
            before = piece
    if before is not None:
        yield Piece(before, document.split, True)


# ---- whole files ----


def _sides_of_file(path: Path, key: str) -> Iterator[_Document]:
    """One running text: its last tenth is for validation, from the start of a line where one begins there."""
    characters, _ = survey(path, key)
    tenth = int(characters * (1 - VALIDATION_SHARE))
    at = tenth + line_start(characters_between(path, tenth, None))
    yield _Document("train", in_pieces(characters_between(path, 0, at)))
    yield _Document("validation", in_pieces(characters_between(path, at, None)))


def _sides_of_text(text: str) -> Iterator[_Document]:
    tenth = int(len(text) * (1 - VALIDATION_SHARE))
    at = tenth + line_start([text[tenth:]])
    yield _Document("train", [text[:at]])
    yield _Document("validation", [text[at:]])


def _file_as_one(path: Path, key: str, use: Use) -> Iterator[_Document]:
    _, sha256 = survey(path, key)
    yield _Document(split_of_digest(sha256) if use == "auto" else use, in_pieces(text_chunks(path)))


# ---- the sources of a stage ----


def raw_texts(blocks: Sequence[DataBlock], worlds: Worlds, key: str) -> list[RawText]:
    """The sources of raw text of a stage, in the order of its blocks."""
    check_sources(blocks, key)
    return [RawText(block, worlds, key) for block in blocks]


def sample_texts(sources: Sequence[RawText], split: Split, max_bytes: int) -> Iterator[str]:
    """The first texts of one split of each source; every source has an equal share of `max_bytes` (of UTF-8).

    A share ends with the document that fills it; a document longer than a share is cut.
    """
    share = max(max_bytes // len(sources), 1)
    for source in sources:
        taken = 0
        for document in whole_documents((piece for piece in source.pieces() if piece.split == split), share):
            yield document
            taken += len(document.encode())
            if taken >= share:
                break


def whole_documents(pieces: Iterable[Piece], max_characters: int | None = None) -> Iterator[str]:
    """`pieces` joined to documents; one longer than `max_characters` comes in parts of that length."""
    document = ""
    for piece in pieces:
        document += piece.text
        while max_characters is not None and len(document) > max_characters:
            yield document[:max_characters]
            document = document[max_characters:]
        if piece.ends and document:
            yield document
            document = ""


def validation_documents(texts: Sequence[RawText], max_bytes: int) -> list[str]:
    """Documents of the validation split, an equal share of each source. Raises `UsageError` where there are none."""
    found = list(sample_texts(texts, "validation", max_bytes))
    if not any(map(str.strip, found)):
        raise too_little_text(texts)
    return found


def check_train_split(texts: Sequence[RawText]) -> None:
    """Raises `UsageError` where a source has nothing to train on; reads each only up to its first train piece."""
    for text in texts:
        if all(piece.split == "validation" for piece in text.pieces()):
            raise too_little_text([text])


def too_little_text(texts: Sequence[RawText]) -> UsageError:
    """The error for sources that leave one split empty."""
    sources = ", ".join(text.block.source for text in texts)
    return UsageError(
        f"{texts[0].key} = {sources} holds too little: nothing to train on, or nothing for validation.",
        "A tenth is for validation, chosen by its text; give dozens of documents, or one, whose last tenth is taken.",
    )


def check_documents(blocks: Sequence[DataBlock] | None, key: str) -> None:
    """Raises `UsageError` where a source is missing, is not text, or its first row has none; reads no further."""
    check_sources(blocks, key)
    for block in blocks or ():
        _check_settings(block, key)
        if is_world(block.source) or is_hub(block):
            continue
        files = source_files(block.source, key)
        _check_used(block, {kind_of(path) for path in files}, key)
        for path in files:
            if kind_of(path) == ".txt":
                next(text_chunks(path), None)
            else:
                _check_first_row(block.model_copy(update={"source": str(path)}), key)


def _check_settings(block: DataBlock, key: str) -> None:
    if block.format not in ("auto", "text"):
        raise UsageError(
            f"{key}: {block.source} is {block.format}, not text.",
            f"Leave format out, or set it to text; {readers_of(block.format)} reads {block.format}.",
        )
    other = set(block.columns) - {"text"}
    if other:
        raise UsageError(f"{key}: raw text has no field {sorted(other)[0]}.", "columns takes text: {text: THEIR NAME}.")


def _check_used(block: DataBlock, kinds: set[str], key: str) -> None:
    """Raises `UsageError` for a setting that applies to no file of the source."""
    if block.columns and kinds == {".txt"}:
        raise UsageError(f"{key}: {block.source} is running text, which has no columns.", "Leave columns out.")
    if block.document != "file" and ".txt" not in kinds:
        raise UsageError(f"{key}: {block.source} has a document in each row.", "Leave document out.")


def _check_first_row(block: DataBlock, key: str) -> None:
    row = next(iter(source_rows(block, key)), None)
    if row is None:
        raise UsageError(f"{key}: {block.source} holds no rows.", "Give a file with at least one row.")
    hint = "Name the field that holds it: data: [{source: FILE, columns: {text: FIELD}}]."
    if isinstance(row, BrokenRow) and row.reason.startswith("there is no field"):
        raise UsageError(f"{row.where}: {row.reason}; {row.detail}.", hint)
    if isinstance(row, Row) and "text" not in row.values:
        fields = ", ".join(sorted(row.values)) or "none"
        form = format_of(row)
        use = f" As {form} it is for {readers_of(form)}." if form else ""
        raise UsageError(f"{row.where}: {key} finds no text in it; its fields are {fields}.{use}", hint)
