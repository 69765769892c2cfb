"""Finding stop strings in text that is written token by token."""

from collections.abc import Sequence
from dataclasses import replace

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from chatpipe.generation.decode_rows import Completion


class StopFinder:
    """Follows the text of one completion, and ends it before the first of `stops`, which may span tokens.

    Special tokens give no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self.stops = stops
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer.backend_tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ends: list[int] = []  # the length of the text after each token

    def add(self, token: int) -> bool:
        """Read the next token. True if a stop string is complete; `text` is then cut before it."""
        before = len(self.text)
        self.text += self._decoder.step(self._tokenizer, token) or ""  # None inside a character
        self._ends.append(len(self.text))
        found = [self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self.stops]
        starts = [start for start in found if start >= 0]
        if starts:
            self.text = self.text[: min(starts)]
            self.stopped = True
        return self.stopped

    @property
    def safe(self) -> int:
        """How many characters of `text` cannot become part of a stop string any more."""
        if self.stopped:
            return len(self.text)
        longest = max(map(len, self.stops), default=0)
        tails = range(max(0, len(self.text) - longest + 1), len(self.text))
        return next((at for at in tails if self._may_begin_a_stop(self.text[at:])), len(self.text))

    def _may_begin_a_stop(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self.stops)

    def cut(self, completion: Completion) -> Completion:
        """What remains of a finished `completion` whose tokens, but for the eos, were read."""
        if not self.stopped:
            return replace(completion, text=self.text)
        # The fewest tokens that give all of the text that whole tokens can give.
        ends = [0, *(end for end in self._ends if end <= len(self.text))]
        kept = 0 if ends[-1] == 0 else self._ends.index(ends[-1]) + 1
        return Completion(completion.ids[:kept], ended=True, text=self.text)
