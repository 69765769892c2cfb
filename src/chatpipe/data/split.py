"""The decisions that a row's text makes alone: its split, and how often it is read where the weight is not whole.

A tenth of all texts are for validation. The SHA-256 of the text chooses them, so they are the same in every stage, on
every machine, and after rows are added.
"""

import hashlib
from typing import Literal

Split = Literal["train", "validation"]

VALIDATION_SHARE = 0.1


def split_of(text: str) -> Split:
    """The split of the item with this text."""
    return split_of_digest(hashlib.sha256(text.encode()).digest())


def split_of_digest(sha256: bytes) -> Split:
    """The split of a text whose SHA-256 is known."""
    return "validation" if int.from_bytes(sha256[:4], "big") < VALIDATION_SHARE * 2**32 else "train"


def times_read(text: str, weight: float) -> int:
    """How often an epoch reads the item with this text: `weight` times on average over all texts.

    The choice depends on the text and not on the order of the rows. It uses other bits of the hash than `split_of`,
    because the bits that choose the split are not random among the texts of one split.
    """
    whole = int(weight)
    chance = int.from_bytes(hashlib.sha256(text.encode()).digest()[4:8], "big") / 2**32
    return whole + (chance < weight - whole)
