"""The vocabulary size of a new model, before its tokenizer is made or loaded. No torch."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import Pretrain


def expected_vocabulary(section: Pretrain) -> int | None:
    """Rows of a new model's embedding; None where `tokenizer.pretrained` is on the hub.

    For a tokenizer that is not trained yet it is the most that it may have: a bpe of enough text reaches it. Raises
    `UsageError` for a damaged tokenizer.
    """
    if section.architecture.vocab_size is not None:
        return section.architecture.vocab_size
    is_masked = section.objective == "masked"
    if section.tokenizer.pretrained is None:
        return section.tokenizer.vocab_size + is_masked
    file = Path(section.tokenizer.pretrained).expanduser() / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        entries: int = Tokenizer.from_file(str(file)).get_vocab_size()
        return entries + (is_masked and not _has_mask(file.with_name("tokenizer_config.json")))
    except Exception as problem:  # what `tokenizers` raises is nothing more specific
        raise UsageError(
            f"{file.parent} holds no tokenizer that can be read ({problem}).", "Give the folder of a complete one."
        ) from problem


def _has_mask(config: Path) -> bool:
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("mask_token") is not None
