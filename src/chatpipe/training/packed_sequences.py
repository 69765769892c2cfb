"""What the trainer of conversations reads: rows and raw text, one to a sequence or several packed into one.

Packed rows do not see each other: position ids start anew with each, and transformers isolates what begins there, but
only without an attention mask and without a cache; otherwise logits are off by 1.0 to 1.5 without a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from chatpipe.data.chat_rows import Rows
from chatpipe.data.padding import pad_right
from chatpipe.data.text_blocks import TrainingText
from chatpipe.models.layers import evaluation_mode

IGNORED = -100
TRIED_LENGTHS = (7, 5)


def best_fit_decreasing(lengths: np.ndarray, max_length: int) -> list[list[int]]:
    """Rows of `lengths` [n] in packs of `max_length` tokens at most: row numbers, every row once.

    The longest rows go first, each to where it leaves the least room (arXiv 2404.10830, section 2).
    """
    packs: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(max_length + 1)]
    rooms = 0  # bit r is set where a pack has room for r more tokens
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            pack = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, pack = max_length, len(packs)
            packs.append([])
        packs[pack].append(row)
        with_room[room - length].append(pack)
        rooms |= 1 << (room - length)
    return packs


def training_sequences(rows: Rows, text: TrainingText | None, pack_to: int | None) -> Dataset:
    """The sequences of an epoch: each row of `rows` and each block of `text`, or packs of them of `pack_to` tokens.

    A sequence has `input_ids`, `labels` (-100 where nothing is learned, and always at the first token of a row, which
    nothing predicts) and `seq_lengths`, the rows in it. They are read from the disk when they are asked for.
    """
    blocks = 0 if text is None else len(text)
    lengths = np.concatenate([rows.lengths, np.full(blocks, text.block_size if text else 0)])
    packs = [[row] for row in range(len(lengths))] if pack_to is None else best_fit_decreasing(lengths, pack_to)

    def read_row(number: int) -> tuple[np.ndarray, np.ndarray]:
        if number < len(rows):
            ids, learned = rows.read(number)
            labels = np.where(learned == 1, ids, IGNORED)
        else:
            assert text is not None
            ids = text[number - len(rows)]["input_ids"].numpy()
            labels = ids.copy()
        labels[0] = IGNORED
        return ids, labels

    def read(batch: dict[str, list[list[int]]]) -> dict[str, list[Any]]:
        found = [[read_row(number) for number in pack] for pack in batch["rows"]]
        return {
            "input_ids": [np.concatenate([ids for ids, _ in pack]) for pack in found],
            "labels": [np.concatenate([labels for _, labels in pack]) for pack in found],
            "seq_lengths": [[len(ids) for ids, _ in pack] for pack in found],
        }

    ends = np.fromiter(accumulate(map(len, packs), initial=0), np.int64)
    numbers = np.fromiter((number for pack in packs for number in pack), np.int64)
    return Dataset(pa.table({"rows": pa.LargeListArray.from_arrays(ends, numbers)})).with_transform(read)


@dataclass(frozen=True)
class PackCollator:
    """Packs as a batch, padded on the right to the longest; the padding is a row of its own, which learns nothing."""

    pad_token_id: int

    def __call__(self, packs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `labels` and `position_ids`, each [packs, tokens] int64; no attention mask."""
        ids, tokens = pad_right([pack["input_ids"] for pack in packs], self.pad_token_id)
        labels, _ = pad_right([pack["labels"] for pack in packs], IGNORED)
        longest = ids.shape[1]
        rest = (longest - tokens.sum(1)).tolist()
        positions = [
            torch.cat([torch.arange(length) for length in [*pack["seq_lengths"], left]])
            for pack, left in zip(packs, rest, strict=True)
        ]
        return {"input_ids": ids, "labels": labels, "position_ids": torch.stack(positions)}


@torch.no_grad()
def isolates_packed_rows(model: PreTrainedModel) -> bool:
    """Whether `model` says the same of two rows packed into one sequence as of each alone, to 1e-3.

    It is tried out: models without position ids, or with states that are carried on, read across without a word.
    """
    entries = model.get_input_embeddings().num_embeddings
    rows = [(torch.arange(length) * 7 + 3 + length) % entries for length in TRIED_LENGTHS]
    # two sequences, since some kinds of attention look for packed rows in a batch of one alone
    pack = {"input_ids": torch.cat(rows), "labels": torch.cat(rows), "seq_lengths": list(TRIED_LENGTHS)}
    batch = {name: cells.to(model.device) for name, cells in PackCollator(0)([pack, pack]).items() if name != "labels"}
    with evaluation_mode(model):
        packed = model(**batch, use_cache=False).logits[1].float()
        alone = [model(input_ids=row[None].to(model.device), use_cache=False).logits[0].float() for row in rows]
    return torch.allclose(packed, torch.cat(alone), rtol=1e-3, atol=1e-3)
