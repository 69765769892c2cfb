"""What is held out: a tenth, chosen by content, so it is the same tenth in every stage and after rows were added."""

import hashlib

HELD_OUT_SHARE = 0.1


def is_held_out(text: str) -> bool:
    """Whether the item with this text is held out: true for a tenth of all texts, the same ones always."""
    return is_held_out_digest(hashlib.sha256(text.encode()).digest())


def is_held_out_digest(sha256: bytes) -> bool:
    """As `is_held_out`, for a text of which only the SHA-256 is at hand."""
    return int.from_bytes(sha256[:4], "big") < HELD_OUT_SHARE * 2**32
