"""What a reward model makes of answers: it ranks as a rater does, and chooses the best of several.

Importing this loads no torch.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from chatpipe.data.chat_template import Message
from chatpipe.errors import UsageError
from chatpipe.models.manifest import read_manifest
from chatpipe.models.model_folder import looks_like_path

MAX_LENGTH = 2**31
"""Tokens of an answer with its prompt, where nothing bounds them."""

Asked = tuple[list[Message], list[str]]
"""A prompt, and the responses to it."""
Scorer = Callable[[Sequence[Asked]], list[list[float] | None]]
"""The score of each response to each prompt, higher is better; None where the responses cannot be read."""


def model_scorer(name: str, key: str) -> Scorer:
    """The scores of a reward model, a folder or a hub id, which reads answers as it did in training.

    Raises `UsageError` naming `key` where there is no reward model, and, when it scores, for a score that is not
    finite.
    """
    from chatpipe.checks.model_checks import embeddings_too_few
    from chatpipe.data.chat_template import add_chat_template
    from chatpipe.data.row_files import BadRow
    from chatpipe.models.context import longest_sequence
    from chatpipe.models.pretrained import load_reward_model, load_tokenizer
    from chatpipe.reward.ranking_batches import encode_answers
    from chatpipe.reward.scoring import score_sequences

    tokenizer, model = load_tokenizer(name), load_reward_model(name, frozen=True)
    add_chat_template(tokenizer)
    finding = embeddings_too_few(tokenizer, {key: model})
    if finding is not None:
        raise UsageError(finding.what, "Give a reward model whose tokenizer has a chat template and a pad token.")
    max_length = min(_trained_on(name), longest_sequence(model, tokenizer))

    def encoded(asked: Asked) -> list[list[int]] | None:
        try:
            return encode_answers(tokenizer, *asked, max_length)
        except BadRow:
            return None

    def score(asked: Sequence[Asked]) -> list[list[float] | None]:
        read = [encoded(one) for one in asked]
        flat = [ids for sequences in read for ids in sequences or ()]
        said = score_sequences(model, flat).tolist()
        if not all(map(math.isfinite, said)):
            raise UsageError(
                f"{key} = {name} gives NaN or infinity for an answer.", "Its weights are broken: train it anew."
            )
        given = iter(said)
        return [None if sequences is None else [next(given) for _ in sequences] for sequences in read]

    return score


def _trained_on(name: str) -> int:
    """The `rm.max_length` that a reward model of ours was made with: longer prompts lose their beginning."""
    manifest = read_manifest(Path(name).expanduser()) if looks_like_path(name) else None
    return manifest.settings.get("rm.max_length", MAX_LENGTH) if manifest else MAX_LENGTH
