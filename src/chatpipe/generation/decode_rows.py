"""The rows of a model that decode together, one token a step.

A finished row leaves at once, and the last rows move into the gaps: the rows in use are always the first ones, so the
cache is read as a view, not copied. New prompts are prefilled together. The last token of a prompt is not prefilled:
the row's first decode step reads it, so tokens are sampled in one place and the output head sees no other position.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatpipe.errors import TrainingError
from chatpipe.generation.cache import RowCache
from chatpipe.generation.graphs import StepGraphs, bucket
from chatpipe.generation.sampling import BROKEN, SamplingParams, sample, uniform_numbers


def prefill_tokens(model: PreTrainedModel) -> int:
    """At most so many tokens in one prefill pass: small passes stay in a CPU's cache and pad less; a GPU wants more."""
    return 512 if model.device.type == "cpu" else 8192


@dataclass
class Completion:
    """What the model wrote to one prompt: `ids` with the eos if it came, and whether it ended by itself (`ended`).

    With stop strings: one of them ends a completion too, `ids` are the tokens that lie wholly before it, and `text` is
    the text before it to the character (without special tokens).
    """

    ids: list[int]
    ended: bool
    text: str | None = None


class Prompt(NamedTuple):
    """The tokens of a prompt, its place among the prompts, and the number of its stream of random numbers."""

    ids: Sequence[int]
    place: int
    stream: int


@dataclass
class Row:
    """A row in use: its prompt and what it has written so far."""

    prompt: Prompt
    written: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of the prompt and the completion."""
        return len(self.prompt.ids) + len(self.written)


class StepState(NamedTuple):
    """The tensors that decode steps read and write, on the model's device; the KV cache is the only other one.

    `tokens` [slots] int64: the newest token of each row, which the next step reads. `positions` [slots] int64: its
    position in the sequence. `uniforms` [slots, max_length] float64: the random number with which the token after each
    position is drawn. `key_positions` [max_length] int64: 0, 1, 2, ...
    """

    tokens: Tensor
    positions: Tensor
    uniforms: Tensor
    key_positions: Tensor


def decode_step(
    model: PreTrainedModel, cache: RowCache, state: StepState, params: SamplingParams, rows: int, kv_length: int
) -> None:
    """Read the newest token of the first `rows` rows, and write the next one and its position into `state`.

    The first `kv_length` positions of the cache are attended to. Nothing here waits for the device.
    """
    tokens, positions = state.tokens[:rows], state.positions[:rows]
    hidden = state.key_positions[:kv_length] > positions[:, None]
    cache.begin_decode(positions, kv_length)
    logits = model(
        input_ids=tokens[:, None],
        attention_mask=_additive_mask(hidden[:, None, None], model.dtype),
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    ).logits[:, -1]
    uniforms = state.uniforms[:rows].gather(1, positions[:, None])[:, 0]
    tokens.copy_(sample(logits, uniforms, params))
    positions.add_(1)


def _additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """The lowest number where `hidden`, else 0: eager attention adds it to the scores, and sdpa takes it too."""
    return hidden.to(dtype) * torch.finfo(dtype).min


class DecodeRows:
    """At most `slots` rows that decode together. `admit` prompts, `step`, and `collect` the finished ones.

    `max_length` is the longest prompt plus `params.max_new_tokens`. The model should be in evaluation mode; nothing is
    left in it. Gradients are off by `no_grad`, not `inference_mode`: what a model computes once in inference mode and
    keeps (rotary frequencies, for one) could not be trained through afterwards.

    With `bucketed` (the default on a GPU) steps run on a few fixed shapes, the smallest that holds the rows and lengths
    in use; on a GPU each is recorded as a CUDA graph.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        params: SamplingParams,
        eos_token_id: int,
        seed: int,
        slots: int,
        max_length: int,
        bucketed: bool | None = None,
    ) -> None:
        self.model, self.params, self.eos_token_id, self.seed = model, params, eos_token_id, seed
        self.slots, self.max_length = slots, max_length
        self.rows: list[Row] = []
        self.cache = RowCache(model.config.get_text_config().num_hidden_layers, slots, max_length)
        device = model.device
        self.state = StepState(
            tokens=torch.zeros(slots, dtype=torch.long, device=device),
            positions=torch.zeros(slots, dtype=torch.long, device=device),
            uniforms=torch.zeros(slots, max_length, dtype=torch.float64, device=device),
            key_positions=torch.arange(max_length, device=device),
        )
        self.bucketed = device.type == "cuda" if bucketed is None else bucketed
        step = partial(decode_step, model, self.cache, self.state, params)
        self._decode = StepGraphs(step).run if self.bucketed and device.type == "cuda" else step

    @torch.no_grad()
    def admit(self, prompts: Sequence[Prompt]) -> None:
        """Give free slots to `prompts`, best with the longest first."""
        first = len(self.rows)
        self.rows += [Row(prompt) for prompt in prompts]
        slots, device = slice(first, len(self.rows)), self.model.device
        newest = [[prompt.ids[-1] for prompt in prompts], [len(prompt.ids) - 1 for prompt in prompts]]
        self.state.tokens[slots], self.state.positions[slots] = torch.tensor(newest, device=device)
        count = self.params.max_new_tokens
        uniforms = np.zeros((len(prompts), self.max_length))
        for row, prompt in zip(uniforms, prompts, strict=True):
            start = len(prompt.ids) - 1
            row[start : start + count] = uniform_numbers(self.seed, prompt.stream, count)
        self.state.uniforms[slots] = torch.from_numpy(uniforms).to(device)
        done = 0
        while done < len(prompts):
            per_pass = max(1, prefill_tokens(self.model) // len(prompts[done].ids))
            self._prefill(first + done, [prompt.ids[:-1] for prompt in prompts[done : done + per_pass]])
            done += per_pass

    def _prefill(self, first_row: int, prefixes: list[Sequence[int]]) -> None:
        """Write the keys and values of `prefixes` into the rows from `first_row` on, padded on the right.

        The padding needs no mask: no token before it sees it, and the row overwrites it as it decodes.
        """
        width = max(len(prefix) for prefix in prefixes)
        if width == 0:
            return
        padded = [[*prefix, *[0] * (width - len(prefix))] for prefix in prefixes]
        positions = self.state.key_positions[:width]
        self.cache.begin_prefill(first_row, width)
        self.model.get_decoder()(
            input_ids=torch.tensor(padded, device=positions.device),
            attention_mask=_additive_mask(positions > positions[:, None], self.model.dtype).expand(
                len(prefixes), 1, -1, -1
            ),
            position_ids=positions.expand(len(prefixes), width),
            past_key_values=self.cache,
            use_cache=True,
        )

    @torch.no_grad()
    def step(self) -> list[int]:
        """Sample and return the next token of each row in use. Raises TrainingError if logits are not finite."""
        used = len(self.rows)
        rows, kv_length = used, max(row.length for row in self.rows)
        if self.bucketed:
            rows, kv_length = bucket(used, 8, self.slots), bucket(kv_length, 64, self.max_length)
            if rows > used:  # the others decode token 0 at position 0, which nobody reads
                self.state.tokens[used:rows] = 0
                self.state.positions[used:rows] = 0
        self._decode(rows, kv_length)
        tokens = self.state.tokens[:used].tolist()  # the one point of a step where the CPU waits for the GPU
        if BROKEN in tokens:
            raise TrainingError(
                "the model's output is not finite (NaN or infinity) while generating",
                "The weights are broken or overflow in this dtype: look at the stage that wrote the model.",
            )
        for row, token in zip(self.rows, tokens, strict=True):
            row.written.append(token)
        return tokens

    def collect(self, stopped: Collection[int] = ()) -> list[tuple[int, Completion]]:
        """Take out the rows that have finished: pairs of the prompt's place and its completion.

        A row is finished after the eos or `max_new_tokens` tokens, or if its prompt's place is among `stopped`.
        """
        finished = [
            place
            for place, row in enumerate(self.rows)
            if row.written[-1] == self.eos_token_id
            or len(row.written) == self.params.max_new_tokens
            or row.prompt.place in stopped
        ]
        if not finished:
            return []
        done = [self.rows[place] for place in finished]
        self._close_gaps(finished)
        return [(row.prompt.place, Completion(row.written, row.written[-1] == self.eos_token_id)) for row in done]

    def _close_gaps(self, finished: list[int]) -> None:
        """Move the last rows into the places of the `finished` ones, so that the rows in use are the first ones."""
        gone = set(finished)
        remaining = len(self.rows) - len(gone)
        targets = [place for place in finished if place < remaining]
        sources = [place for place in range(remaining, len(self.rows)) if place not in gone]
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[remaining:]
        if sources:
            source, target = torch.tensor([sources, targets], device=self.model.device)
            self.cache.move_rows(source, target, max(row.length for row in self.rows))
            for buffer in self.state[:3]:
                buffer.index_copy_(0, target, buffer.index_select(0, source))
