"""The log-probs with which the decode engine draws tokens, for tests that compare them with other ones."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from chatpipe.generation import decode_rows
from chatpipe.generation.decode_rows import DecodeRows
from chatpipe.models.logprobs import exclude


@contextmanager
def recorded_logprobs() -> Iterator[dict[int, list[float]]]:
    """Inside, the log-probs (nats) of all tokens that are drawn, by the place of their prompt."""
    logprobs: dict[int, list[float]] = defaultdict(list)
    sample, step = decode_rows.sample, DecodeRows.step
    newest = []

    def recording_sample(logits, uniforms, params):
        tokens = sample(logits, uniforms, params)
        scaled = logits.float() / (params.temperature or 1)
        exclude(scaled, params.excluded)
        newest[:] = scaled.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
        return tokens

    def recording_step(rows):
        tokens = step(rows)
        for row, logprob in zip(rows.rows, newest, strict=False):
            logprobs[row.prompt.place].append(logprob)
        return tokens

    with (
        mock.patch.object(decode_rows, "sample", recording_sample),
        mock.patch.object(DecodeRows, "step", recording_step),
    ):
        yield logprobs
