"""What a row's text decides: whether it is held out, and how often it is read where the weight is no whole number.

A tenth is held out, chosen by content, so it is the same tenth in every stage and after rows were added.
"""

import hashlib

HELD_OUT_SHARE = 0.1


def is_held_out(text: str) -> bool:
    """Whether the item with this text is held out: true for a tenth of all texts, the same ones always."""
    return is_held_out_digest(hashlib.sha256(text.encode()).digest())


def is_held_out_digest(sha256: bytes) -> bool:
    """As `is_held_out`, for a text of which only the SHA-256 is at hand."""
    return int.from_bytes(sha256[:4], "big") < HELD_OUT_SHARE * 2**32


def times_read(text: str, weight: float) -> int:
    """How often the item with this text is read in an epoch: `weight` times on average over all texts.

    The text alone decides who is read once more, so the choice does not depend on the order of rows. It looks at other
    bits of the hash than `is_held_out`, since all that is trained on is alike in those.
    """
    whole = int(weight)
    chance = int.from_bytes(hashlib.sha256(text.encode()).digest()[4:8], "big") / 2**32
    return whole + (chance < weight - whole)
