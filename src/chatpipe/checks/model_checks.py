"""Checks of a model and its tokenizer: is there an embedding for every token?"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.checks.gate import Finding


def embeddings_too_few(tokenizer: PreTrainedTokenizerBase, models: Mapping[str, PreTrainedModel]) -> Finding | None:
    """A model, by recipe key, has fewer embeddings than the tokenizer has tokens (trl #1674, #1979).

    On a GPU that ends in an assertion somewhere, or in another model's memory; with token ids that seldom come, late.
    """
    for key, model in models.items():
        entries = _entries(model)
        if len(tokenizer) > entries:
            return Finding(
                f"{key}: the tokenizer has {len(tokenizer):,} entries, the model's vocabulary {entries:,}.",
                "Take the model's own tokenizer, or resize its embeddings (chatpipe sft does).",
            )
    return None


def token_ids_out_of_range(
    rows: Iterable[Sequence[int] | np.ndarray], model: PreTrainedModel, key: str
) -> Finding | None:
    """Token ids that are none of the model's: another tokenizer made them (trl #1979). All rows given, none empty."""
    entries = _entries(model)
    for ids in rows:
        foreign = [token for token in (int(np.min(ids)), int(np.max(ids))) if not 0 <= token < entries]
        if foreign:
            return Finding(
                f"{key}: token id {foreign[0]:,} is none of the model's {entries:,}.",
                "Tokenise the data with the model's own tokenizer.",
            )
    return None


def _entries(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().num_embeddings)
