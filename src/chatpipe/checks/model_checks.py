"""Checks of models and tokenizers: has every token an embedding, and do two models read the same tokens?"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.checks.gate import Finding
from chatpipe.models.pretrained import load_tokenizer


def embeddings_too_few(tokenizer: PreTrainedTokenizerBase, models: Mapping[str, PreTrainedModel]) -> Finding | None:
    """A model, by recipe key, has fewer embeddings than the tokenizer has tokens (trl #1674, #1979).

    On a GPU that ends in a device-side assertion, and with rare token ids only late in training.
    """
    for key, model in models.items():
        entries = embedding_count(model)
        if len(tokenizer) > entries:
            return Finding(
                f"{key}: the tokenizer has {len(tokenizer):,} entries, the model's vocabulary {entries:,}.",
                "Use the model's own tokenizer, or resize its embeddings (chatpipe sft does).",
            )
    return None


def other_vocabulary(key: str, folder: str, tokenizer: PreTrainedTokenizerBase) -> Finding | None:
    """The model in `folder`, which `key` names, was trained on other token ids than `tokenizer` gives (trl #1674)."""
    if load_tokenizer(folder).get_vocab() == tokenizer.get_vocab():
        return None
    return Finding(
        f"{key} = {folder} has another tokenizer than the policy.",
        "All models must share one tokenizer: train it on the policy's own model (chatpipe rm --model POLICY).",
    )


def token_ids_out_of_range(
    rows: Iterable[Sequence[int] | np.ndarray], model: PreTrainedModel, key: str
) -> Finding | None:
    """Token ids that are none of the model's: another tokenizer made them (trl #1979). All rows given, none empty."""
    entries = embedding_count(model)
    for ids in rows:
        foreign = [token for token in (int(np.min(ids)), int(np.max(ids))) if not 0 <= token < entries]
        if foreign:
            return Finding(
                f"{key}: token id {foreign[0]:,} is not one of the model's {entries:,}.",
                "Tokenise the data with the model's own tokenizer.",
            )
    return None


def embedding_count(model: PreTrainedModel) -> int:
    """How many tokens a model has an embedding for."""
    return int(model.get_input_embeddings().num_embeddings)
