"""The raw text of a stage: its sources and their checks, samples of a split, and the text to evaluate on.

    texts = raw_texts(step.data()["pretrain.data"], recipe.worlds, "pretrain.data")
    documents = validation_documents(texts, max_bytes=500_000)

Errors name the recipe's key of the sources.
"""

from collections.abc import Iterable, Iterator, Sequence

from chatpipe.data.documents import Piece, RawText
from chatpipe.data.formats import format_of, readers_of
from chatpipe.data.row_files import BrokenRow, Row, Split
from chatpipe.data.sources import check_sources, is_hub, source_files, source_rows
from chatpipe.data.text_files import kind_of, text_chunks
from chatpipe.data.worlds import Worlds, is_world
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock


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
