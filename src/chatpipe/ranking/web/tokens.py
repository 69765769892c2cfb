"""The token of each annotator: the same at every start, so an address that was given out stays valid.

A token is derived from a secret that lies beside the store, readable by its owner alone, and the annotator's name. The
store itself holds nothing of it, so it can be handed on. Deleting the secret makes all addresses invalid.
"""

import base64
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from chatpipe.data.durable import PARTIAL, fsync

SECRET_BYTES = 32
TOKEN_BYTES = 24  # 192 bits


def secret_beside(store: Path) -> bytes:
    """The secret in `STORE.key`, made where there is none yet. Only who holds the store for writing may call this."""
    path = store.with_name(store.name + ".key")
    if path.is_file() and len(secret := path.read_bytes()) == SECRET_BYTES:
        return secret
    secret = secrets.token_bytes(SECRET_BYTES)
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)  # of a start that was killed
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    fsync(partial)
    partial.replace(path)
    fsync(path.parent)
    return secret


def token_for(secret: bytes, annotator: str) -> str:
    """An annotator's token: HMAC-SHA-256 of the name, cut to 192 bits, in URL-safe base64."""
    digest = hmac.digest(secret, annotator.encode(), "sha256")
    return base64.urlsafe_b64encode(digest[:TOKEN_BYTES]).decode()


def annotator_of(token: str, tokens: Mapping[str, str]) -> str | None:
    """Whose token it is among `tokens` (annotator to token); takes the same time for any answer."""
    found = None
    for annotator, known in tokens.items():
        if hmac.compare_digest(token.encode(), known.encode()):
            found = annotator
    return found
