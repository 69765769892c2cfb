"""Raw text as one flat, memory-mapped row of token ids, with an end-of-text token behind each document.

It is tokenised once; a fingerprint over the text and the tokenizer says whether a stored one still fits.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from chatpipe.durable import replace_text

BATCH = 1000


class TokenStore(Dataset[dict[str, torch.Tensor]]):
    """Blocks of `block_size` tokens over a memory-mapped file; block i covers tokens [i * size, (i + 1) * size).

    The last block ends with the last token, so no token is left out (it may overlap the one before it).
    `num_bytes` counts the UTF-8 bytes of the text; end-of-text tokens have none.
    """

    def __init__(self, path: Path, block_size: int) -> None:
        meta = json.loads(path.with_suffix(".json").read_text())
        self.tokens = np.memmap(path, dtype=meta["dtype"], mode="r")
        self.num_bytes: int = meta["num_bytes"]
        self.block_size = min(block_size, len(self.tokens))

    def __len__(self) -> int:
        """How many blocks there are."""
        return -(-len(self.tokens) // self.block_size)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, both (block_size,); the model shifts the labels by one itself."""
        start = min(index * self.block_size, len(self.tokens) - self.block_size)
        ids = torch.from_numpy(self.tokens[start : start + self.block_size].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def build_token_store(
    path: Path, documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int
) -> TokenStore:
    """Tokenises `documents` into `path` unless it already holds exactly them; returns the store."""
    fingerprint = _fingerprint(documents, tokenizer)
    meta_path = path.with_suffix(".json")
    if not (meta_path.exists() and json.loads(meta_path.read_text())["fingerprint"] == fingerprint):
        dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
        path.parent.mkdir(parents=True, exist_ok=True)
        meta_path.unlink(missing_ok=True)
        with path.open("wb") as file:
            for start in range(0, len(documents), BATCH):
                texts = list(documents[start : start + BATCH])
                for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
                    file.write(np.asarray([*ids, tokenizer.eos_token_id], dtype=dtype).tobytes())
        num_bytes = sum(len(document.encode()) for document in documents)
        # Written last: a store that was interrupted has none, and is built anew.
        meta = {"fingerprint": fingerprint, "dtype": dtype.name, "num_bytes": num_bytes}
        replace_text(meta_path, json.dumps(meta))
    return TokenStore(path, block_size)


def _fingerprint(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for document in documents:
        digest.update(document.encode() + b"\0")
    return digest.hexdigest()
