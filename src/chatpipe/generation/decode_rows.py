"""The rows of a model that decode together, one token a step.

A finished row leaves at once, and the last rows move into the gaps: the rows in use are always the first ones, so the
cache is read as a view, not copied. New prompts are prefilled together. The last token of a prompt is not prefilled:
the row's first decode step reads it, so tokens are sampled in one place and the output head sees no other position.
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatpipe.generation.cache import RowCache
from chatpipe.generation.sampling import SamplingParams, check_finite, sample, uniform_numbers


def prefill_tokens(model: PreTrainedModel) -> int:
    """At most so many tokens in one prefill pass: small passes stay in a CPU's cache and pad less; a GPU wants more."""
    return 512 if model.device.type == "cpu" else 8192


@dataclass
class Completion:
    """What the model wrote to one prompt: `ids` with the end token if it came, and whether it did (`ended`).

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
    logits = read_newest(model, cache, state, rows, kv_length)
    tokens, positions = state.tokens[:rows], state.positions[:rows]
    uniforms = state.uniforms[:rows].gather(1, positions[:, None])[:, 0]
    tokens.copy_(sample(logits, uniforms, params))
    positions.add_(1)


def read_newest(model: PreTrainedModel, cache: RowCache, state: StepState, rows: int, kv_length: int) -> Tensor:
    """The logits [rows, vocabulary] after the newest token of each of the first `rows` rows."""
    tokens, positions = state.tokens[:rows], state.positions[:rows]
    cache.begin_decode(positions, kv_length)
    logits: Tensor = model(
        input_ids=tokens[:, None],
        attention_mask=_attention_mask(model, positions[:, None], state.key_positions[:kv_length], rows),
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    ).logits
    return logits[:, -1]


def _attention_mask(model: PreTrainedModel, queries: Tensor, keys: Tensor, rows: int) -> Tensor | dict[str, Tensor]:
    """What is added to the attention scores of the positions `keys` [k] at those of `queries` [rows or 1, q].

    The lowest number where a key is hidden, else 0: [rows, 1, q, k]. Where the model's layers differ, it is a mask for
    each type of layer, as the models of transformers take it.
    """

    def mask(hidden: Tensor) -> Tensor:
        # Numbers, not booleans: eager attention adds them, and sdpa takes them too.
        return (hidden.to(model.dtype) * torch.finfo(model.dtype).min)[:, None].expand(rows, -1, -1, -1)

    config, newest = model.config.get_text_config(), queries[:, :, None]
    window = getattr(config, "sliding_window", None)
    if window is None:
        return mask(keys > newest)
    sliding = mask((keys > newest) | (keys <= newest - window))
    if getattr(config, "layer_types", None) is None:
        return sliding
    return {"full_attention": mask(keys > newest), "sliding_attention": sliding}


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
        end_tokens: Collection[int],
        seed: int,
        slots: int,
        max_length: int,
        bucketed: bool | None = None,
    ) -> None:
        self.model, self.params, self.end_tokens, self.seed = model, params, end_tokens, seed
        self.slots, self.max_length = slots, max_length
        self.rows: list[Row] = []
        self.cache = RowCache(model.config.get_text_config(), slots, max_length)
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
        self._prefill_each_once(first, [tuple(prompt.ids[:-1]) for prompt in prompts])

    def _prefill_each_once(self, first_row: int, prefixes: list[tuple[int, ...]]) -> None:
        """Prefill the rows from `first_row` on; several completions to one prompt share the work, and it is copied."""
        places = {prefix: place for place, prefix in enumerate(dict.fromkeys(prefixes))}
        different, done = list(places), 0
        while done < len(different):
            per_pass = max(1, prefill_tokens(self.model) // (len(different[done]) + 1))
            self._prefill(first_row + done, different[done : done + per_pass])
            done += per_pass
        if len(different) < len(prefixes):
            source = [[first_row + places[prefix] for prefix in prefixes]]
            target = range(first_row, first_row + len(prefixes))
            from_rows, to_rows = torch.tensor([*source, [*target]], device=self.model.device)
            self.cache.move_rows(from_rows, to_rows, max(map(len, different)))

    def _prefill(self, first_row: int, prefixes: Sequence[Sequence[int]]) -> None:
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
            attention_mask=_attention_mask(self.model, positions[None], positions, len(prefixes)),
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
        check_finite(tokens)
        for row, token in zip(self.rows, tokens, strict=True):
            row.written.append(token)
        return tokens

    def collect(self, stopped: Collection[int] = ()) -> list[tuple[int, Completion]]:
        """Take out the rows that have finished: pairs of the prompt's place and its completion.

        A row is finished after an end token or `max_new_tokens` tokens, or if its prompt's place is among `stopped`.
        """
        finished = [
            place
            for place, row in enumerate(self.rows)
            if row.written[-1] in self.end_tokens
            or len(row.written) == self.params.max_new_tokens
            or row.prompt.place in stopped
        ]
        if not finished:
            return []
        done = [self.rows[place] for place in finished]
        self._close_gaps(finished)
        return [(row.prompt.place, Completion(row.written, row.written[-1] in self.end_tokens)) for row in done]

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


# ---- steps on fixed shapes ----
#
# A decode step of a small model is hundreds of kernels of a few microseconds; launched one by one, the GPU waits for
# Python most of the time. A graph replays them with one call, but only for the shapes it was recorded with.


def bucket(size: int, smallest: int, limit: int) -> int:
    """The shape that a step of `size` rows or positions runs on: from `smallest`, a multiple of 4, up to `limit`.

    There are four to each doubling (8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ...), so it is at most a quarter more.
    """
    spacing = max(1 << max((size - 1).bit_length() - 3, 0), smallest // 4)
    return min(max(-(-size // spacing) * spacing, smallest), limit)


class StepGraphs:
    """Runs `step(rows, kv_length)`, which must read and write the same memory each time and never wait for the GPU.

    A shape runs without a graph the first time (libraries set themselves up then), is recorded the second time and
    replayed from then on. All graphs share one pool of memory. A model that cannot be recorded runs without graphs.
    """

    def __init__(self, step: Callable[[int, int], None]) -> None:
        """`step` must not refer to this object's owner: such a cycle keeps the KV cache until garbage collection."""
        self._step = step
        self._seen: set[tuple[int, int]] = set()
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._recordable = True

    def run(self, rows: int, kv_length: int) -> None:
        """Do one step."""
        shape = rows, kv_length
        if shape in self._seen and shape not in self._graphs and self._recordable:
            self._record(shape)
        self._seen.add(shape)
        if shape in self._graphs:
            self._graphs[shape].replay()
        else:
            self._step(rows, kv_length)

    def _record(self, shape: tuple[int, int]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Does not run the step. "thread_local": CUDA calls of other threads (NCCL's watchdog) do not break it off.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._step(*shape)
        except RuntimeError as problem:
            self._recordable = False
            warnings.warn(f"decoding without CUDA graphs, which this model does not allow: {problem}", stacklevel=2)
        else:
            self._graphs[shape] = graph
