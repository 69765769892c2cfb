"""The rows of a data set of the Hugging Face hub, streamed: none of it is kept on the disk."""

import os
import textwrap
from collections.abc import Iterator

from chatpipe.data.row_files import BrokenRow, Row, as_row
from chatpipe.errors import UsageError

MAX_REASON = 300
"""Characters of the library's message."""


def hub_rows(name: str, config: str | None, split: str, revision: str | None, key: str) -> Iterator[Row | BrokenRow]:
    """The rows of one split, in the data set's own order; `name` is a hub id, or a local folder in its form.

    Raises `UsageError` naming `key` where it cannot be opened, or breaks off.
    """
    from datasets import load_dataset

    number = 0
    try:
        for values in load_dataset(name, config, split=split, revision=revision, streaming=True):
            number += 1
            yield as_row(values, f"hub:{name} row {number}")
    except GeneratorExit:
        raise
    except Exception as problem:  # the library raises anything: its own errors, those of the network, bare Exception
        reason = textwrap.shorten(f"{type(problem).__name__}: {problem}", MAX_REASON, placeholder=" ...")
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}
        raise UsageError(
            f"{key}: hub:{name} (split {split}) cannot be read at row {number + 1}: {reason}",
            "HF_HUB_OFFLINE forbids to fetch it: unset it, or give files."
            if offline
            else "Check name, configuration and split, and the network; a private one needs `hf auth login`.",
        ) from problem
