"""The rows of a model that decode together, one token a step.

A row that is finished leaves at once, and the last rows move into the gaps: the rows in use are always the first ones,
so the cache is read as a view, not copied. New prompts are prefilled together. The last token of a prompt is not
prefilled: it is what the row's first decode step reads, so tokens are sampled in one place and the output head sees no
other position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatpipe.errors import TrainingError
from chatpipe.generation.cache import RowCache
from chatpipe.generation.graphs import StepGraphs, bucket
from chatpipe.generation.sampling import BROKEN, SamplingParams, sample, token_logprobs, uniform_numbers


def prefill_tokens(model: PreTrainedModel) -> int:
    """Of one forward pass, at most: small passes pad less and stay in a CPU's cache; a GPU wants large ones."""
    return 512 if model.device.type == "cpu" else 8192


@dataclass
class Completion:
    """What the model wrote to one prompt: `ids` with the eos if it came, and whether it ended by itself (`ended`).

    `logprobs`, if asked for, are those of the tokens in nats, under softmax(logits / temperature): the full
    distribution, whatever top-k, top-p and min-p excluded.

    With stop strings: one of them ends a completion too, `ids` are those of the tokens that lie wholly before it, and
    `text` is the text before it to the character (without special tokens).
    """

    ids: list[int]
    logprobs: list[float] | None
    ended: bool
    text: str | None = None


class Prompt(NamedTuple):
    """The tokens of a prompt, its place among the prompts, and the number of its stream of random numbers."""

    ids: Sequence[int]
    place: int
    stream: int


@dataclass(frozen=True)
class _Occupant:
    """Whose row it is: the place of the prompt, its number of tokens, and the step before which it came in."""

    place: int
    prompt_length: int
    admitted: int


class DecodeRows:
    """At most `slots` rows that decode together. `admit` prompts, `step`, and `collect` what has finished.

    `max_length` is the longest prompt plus `params.max_new_tokens`. The model should be in evaluation mode; nothing is
    left in it. Gradients are off by `no_grad`: what a model computes once in `inference_mode` and keeps (rotary
    frequencies, for one) could not be trained through afterwards.

    With `bucketed` steps run on a few fixed shapes, the smallest that holds the rows and lengths in use; on a GPU each
    is then recorded as a CUDA graph. That is the default there, and needs no other code: a row that is not in use
    decodes zeros that nobody reads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        params: SamplingParams,
        eos_token_id: int,
        seed: int,
        slots: int,
        max_length: int,
        logprobs: bool = False,
        bucketed: bool | None = None,
    ) -> None:
        self.model, self.params, self.eos_token_id, self.seed = model, params, eos_token_id, seed
        self.slots, self.max_length = slots, max_length
        self.cache = RowCache(model.config.get_text_config().num_hidden_layers, slots, max_length)
        self.occupants: list[_Occupant] = []
        self.steps = 0
        device = model.device
        self.bucketed = device.type == "cuda" if bucketed is None else bucketed
        self._graphs = StepGraphs(self._decode) if self.bucketed and device.type == "cuda" else None
        # The last token, its position and the number of tokens sampled so far, for each row.
        self._state = torch.zeros(3, slots, dtype=torch.long, device=device)
        self._tokens = torch.zeros(slots, params.max_new_tokens, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(self._tokens.shape, dtype=torch.float64, device=device) if logprobs else None
        self._uniforms = torch.zeros(self._tokens.shape, dtype=torch.float64, device=device)
        self._key_positions = torch.arange(max_length, device=device)

    @torch.no_grad()
    def admit(self, prompts: Sequence[Prompt]) -> None:
        """Give free slots to `prompts`, best with the longest first."""
        first = len(self.occupants)
        rows = slice(first, first + len(prompts))
        self.occupants += [_Occupant(prompt.place, len(prompt.ids), self.steps) for prompt in prompts]
        state = [
            [prompt.ids[-1] for prompt in prompts],
            [len(prompt.ids) - 1 for prompt in prompts],
            [0] * len(prompts),
        ]
        self._state[:, rows] = torch.tensor(state, device=self._state.device)
        count = self.params.max_new_tokens
        uniforms = np.stack([uniform_numbers(self.seed, prompt.stream, count) for prompt in prompts])
        self._uniforms[rows] = torch.from_numpy(uniforms).to(self._uniforms.device)
        start = 0
        while start < len(prompts):
            per_pass = max(1, prefill_tokens(self.model) // len(prompts[start].ids))
            self._prefill(first + start, [prompt.ids[:-1] for prompt in prompts[start : start + per_pass]])
            start += per_pass

    def _prefill(self, first_row: int, prefixes: list[Sequence[int]]) -> None:
        """Write the keys and values of `prefixes` into the rows from `first_row` on, right-padded.

        The padding needs no mask of its own: no token before it sees it, and the row overwrites it as it decodes.
        """
        width = max(len(prefix) for prefix in prefixes)
        if width == 0:
            return
        padded = [[*prefix, *[0] * (width - len(prefix))] for prefix in prefixes]
        positions = self._key_positions[:width]
        self.cache.begin_prefill(first_row, width)
        self.model.get_decoder()(
            input_ids=torch.tensor(padded, device=positions.device),
            attention_mask=self._mask(positions > positions[:, None]).expand(len(prefixes), 1, -1, -1),
            position_ids=positions.expand(len(prefixes), width),
            past_key_values=self.cache,
            use_cache=True,
        )

    @torch.no_grad()
    def step(self) -> Tensor:
        """Sample the next token of each row in use: [rows] int64, on the model's device."""
        rows, kv_length = len(self.occupants), self._longest()
        if self.bucketed:
            rows, kv_length = bucket(rows, 8, self.slots), bucket(kv_length, 64, self.max_length)
        if self._graphs:
            self._graphs.run(rows, kv_length)
        else:
            self._decode(rows, kv_length)
        self.steps += 1
        return self._state[0, : len(self.occupants)]

    def _decode(self, rows: int, kv_length: int) -> None:
        """One step of the first `rows` rows over the first `kv_length` positions, from and to the buffers alone."""
        last, position, count = self._state[:, :rows]
        self.cache.begin_decode(position, kv_length)
        later = self._key_positions[:kv_length] > position[:, None]
        logits = self.model(
            input_ids=last.clamp(min=0)[:, None],  # BROKEN is no token
            attention_mask=self._mask(later[:, None, None]),
            position_ids=position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        at = count[:, None]
        tokens = sample(logits, self._uniforms[:rows].gather(1, at)[:, 0], self.params)
        self._tokens[:rows].scatter_(1, at, tokens[:, None])
        if self._logprobs is not None:
            logprobs = token_logprobs(logits, tokens.clamp(min=0), self.params)
            self._logprobs[:rows].scatter_(1, at, logprobs[:, None].double())
        last.copy_(tokens)
        self._state[1:, :rows] += 1

    def _mask(self, hidden: Tensor) -> Tensor:
        """The lowest number where `hidden`: added to the scores by eager attention, and taken by sdpa too."""
        return hidden.to(self.model.dtype) * torch.finfo(self.model.dtype).min

    def _longest(self) -> int:
        """The number of tokens read in the longest row, after the next step."""
        return self.steps + max(row.prompt_length - row.admitted for row in self.occupants)

    def collect(self, stopped: Sequence[int] = ()) -> list[tuple[int, Completion]]:
        """Take out the rows that have finished: pairs of the prompt's place and its completion.

        A row is finished after the eos or `max_new_tokens` tokens, or if its prompt's place is among `stopped`. Raises
        TrainingError when the model's logits were not finite.
        """
        last, _, count = self._state[:, : len(self.occupants)]
        done = (last == self.eos_token_id) | (count == self.params.max_new_tokens) | (last == BROKEN)
        finished = done.nonzero()[:, 0].tolist()  # the one point of a step where the CPU waits for the GPU
        if stopped:
            asked = {row for row, occupant in enumerate(self.occupants) if occupant.place in stopped}
            finished = sorted(asked.union(finished))
        completions = [(self.occupants[row].place, self._completion(row)) for row in finished]
        if finished:
            self._close_gaps(finished)
        return completions

    def _completion(self, row: int) -> Completion:
        length = self.steps - self.occupants[row].admitted
        ids = self._tokens[row, :length].tolist()
        if ids[-1] == BROKEN:
            raise TrainingError(
                "the model's output is not finite (NaN or infinity) while generating",
                "The weights are broken or overflow in this dtype: look at the stage that wrote the model.",
            )
        logprobs = None if self._logprobs is None else self._logprobs[row, :length].tolist()
        return Completion(ids, logprobs, ended=ids[-1] == self.eos_token_id)

    def _close_gaps(self, finished: list[int]) -> None:
        """Move the last rows into the places of the `finished` ones, so that the rows in use are the first ones."""
        gone = set(finished)
        remaining = len(self.occupants) - len(gone)
        targets = [row for row in finished if row < remaining]
        sources = [row for row in range(remaining, len(self.occupants)) if row not in gone]
        for source, target in zip(sources, targets, strict=True):
            self.occupants[target] = self.occupants[source]
        del self.occupants[remaining:]
        if sources:
            source, target = torch.tensor([sources, targets], device=self._state.device)
            self.cache.move_rows(source, target, self._longest())
            for buffer in (self._state.T, self._tokens, self._logprobs, self._uniforms):
                if buffer is not None:
                    buffer.index_copy_(0, target, buffer.index_select(0, source))
        # Rows that are not in use may be stepped too (`bucketed`): from 0 on they stay within the buffers, since every
        # row in use came in earlier and leaves before they reach the end.
        self._state[:, remaining:] = 0
