"""Two ways to complete prompts: the decode engine, and `model.generate` for models that the engine cannot run.

Which one a model takes is tried once: the engine must give the logits of the model's own forward pass on rows of
different length. It does not for recurrent layers (Mamba, linear attention), position biases (Bloom, MPT) and local
attention that the model masks by itself (GPT-Neo). Both ways draw tokens with the same sampler and random numbers.
"""

import queue
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, StoppingCriteria

from chatpipe.errors import UsageError, reason_of
from chatpipe.generation.decode_rows import Completion, DecodeRows, Prompt, read_newest
from chatpipe.generation.sampling import SamplingParams, check_finite, sample, uniform_numbers
from chatpipe.models.properties import evaluation_mode, longest_sequence


class Way(Enum):
    """How a model completes prompts; the value is what `chatpipe check` shows."""

    ENGINE = "the decode engine"
    PADDED = "model.generate"
    EQUAL_LENGTHS = "model.generate, prompts of equal length together"
    """Padding changes what the model writes, as with recurrent layers that read it."""
    ALONE = "model.generate, one prompt at a time"
    """So do other rows (RWKV in transformers)."""


# ---- which way: tried once for each model ----

TRIED_LENGTHS = (40, 7, 7)
TRIED_WINDOW = 8
"""Sliding windows are so short during the trial, so that its rows are longer."""
LONGEST_TRIED_WINDOW = 1024
"""The engine does not run models with a window of their own kind (GPT-Neo: 256) that is longer than this."""
STEPS = 3
TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
TOLERANCE_TF32 = 0.02
"""Mean difference of two ways' logits, as a share of the logits' standard deviation; on a GPU float32 may be TF32."""

_ways: WeakKeyDictionary[PreTrainedModel, Way] = WeakKeyDictionary()


def way_of(model: PreTrainedModel) -> Way:
    """How `model` completes prompts. The first call tries the ways on three short rows.

    Raises UsageError for a model that `model.generate` cannot run either.
    """
    if model not in _ways:
        _ways[model] = _tried(model)
    return _ways[model]


@torch.no_grad()
def _tried(model: PreTrainedModel) -> Way:
    with evaluation_mode(model), _short_windows(model), torch.autocast(model.device.type, enabled=False):
        try:
            rows = _tried_rows(model)
            expected = torch.stack([_of_forward(model, row) for row in rows])
            if _own_window(model) <= LONGEST_TRIED_WINDOW and _agrees(expected, _of_engine, model, rows):
                return Way.ENGINE
            if _agrees(expected, _of_generate, model, rows):
                return Way.PADDED
            if _agrees(expected[1:], _of_generate, model, rows[1:]):
                return Way.EQUAL_LENGTHS
            _of_generate(model, rows[-1:])
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # transformers raises anything here: RuntimeError, ValueError, AttributeError
            raise UsageError(
                f"{type(model).__name__} cannot complete a prompt: {reason_of(problem)}",
                "Use a causal language model that transformers' `generate` can run.",
            ) from problem
    return Way.ALONE


def _tried_rows(model: PreTrainedModel) -> list[list[int]]:
    """A long row and two short ones: plain tokens, none that the configuration names."""
    config = model.config.get_text_config()
    special = {
        value for name, value in config.to_dict().items() if name.endswith("token_id") and isinstance(value, int)
    }
    tokens = range(min(1000, model.get_input_embeddings().num_embeddings))
    plain = [token for token in tokens if token not in special] or tokens
    window = _own_window(model)
    longest = max(TRIED_LENGTHS[0], window + STEPS if window <= LONGEST_TRIED_WINDOW else 0)
    lengths = [min(length, longest_sequence(model)) for length in (longest, *TRIED_LENGTHS[1:])]
    return [
        [plain[(place * 7 + 31 * row) % len(plain)] for place in range(length)] for row, length in enumerate(lengths)
    ]


def _own_window(model: PreTrainedModel) -> int:
    """The longest attention window that is no `sliding_window`: the model masks it by itself. 0 if there is none."""
    values = model.config.get_text_config().to_dict()
    names = [name for name in values if name.endswith(("window", "window_size")) and name != "sliding_window"]
    return max((values[name] for name in names if isinstance(values[name], int)), default=0)


@contextmanager
def _short_windows(model: PreTrainedModel) -> Iterator[None]:
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, config.sliding_window) for config in configs.values() if getattr(config, "sliding_window", None)]
    for config, window in before:
        config.sliding_window = min(window, TRIED_WINDOW)
    try:
        yield
    finally:
        for config, window in before:
            config.sliding_window = window


def _agrees(
    expected: Tensor,
    logits_of: Callable[[PreTrainedModel, list[list[int]]], Tensor],
    model: PreTrainedModel,
    rows: list[list[int]],
) -> bool:
    """Whether a way gives the logits `expected` [rows, STEPS, vocabulary]. Not if it fails, or one is NaN."""
    try:
        difference = (logits_of(model, rows) - expected).float()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model that does not fit raises anything: TypeError, AttributeError, IndexError
        return False
    in_tf32 = model.dtype == torch.float32 and model.device.type == "cuda"
    tolerance = TOLERANCE_TF32 if in_tf32 else TOLERANCES[model.dtype]
    return bool(difference.abs().mean() <= tolerance * expected.float().std())


def _of_forward(model: PreTrainedModel, row: list[int]) -> Tensor:
    """The model's own logits at the last `STEPS` tokens of a row."""
    ids = _ids(model, [row])
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits[0, -STEPS:]


def _of_engine(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """The logits of the engine at the last `STEPS` tokens of each row."""
    longest = len(rows[0])
    decoding = DecodeRows(model, SamplingParams(STEPS), (), 0, len(rows), longest + STEPS, bucketed=False)
    decoding.admit([Prompt(row[: len(row) - STEPS + 1], place, place) for place, row in enumerate(rows)])
    logits = []
    for step in range(STEPS):
        logits.append(read_newest(model, decoding.cache, decoding.state, len(rows), longest - STEPS + 1 + step))
        following = [row[(len(row) - STEPS + 1 + step) % len(row)] for row in rows]  # after the last step: none
        decoding.state.tokens.copy_(torch.tensor(following))
        decoding.state.positions.add_(1)
    return torch.stack(logits, 1)


def _of_generate(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """The logits of `model.generate` at the last `STEPS` tokens of each row."""
    logits: list[Tensor] = []

    def follow(scores: Tensor) -> Tensor:
        logits.append(scores)
        step = min(len(logits), STEPS - 1)
        return torch.tensor([row[len(row) - STEPS + step] for row in rows], device=scores.device)

    _generate(model, [row[: len(row) - STEPS + 1] for row in rows], STEPS, follow, [False] * len(rows))
    return torch.stack(logits[:STEPS], 1)


# ---- model.generate ----

TOKENS_AT_ONCE = {"cpu": 2**15, "cuda": 2**17}
"""The most tokens of one batch, prompts and completions, whose cache is held at once."""


def complete_by_generate(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    end_tokens: Collection[int],
    seed: int,
    slots: int,
    ends: Callable[[int, int], bool],
) -> Iterator[tuple[int, Completion]]:
    """Complete `prompts`, at most `slots` at once: pairs of a prompt's place and its completion, the longest first.

    `ends(place, token)` receives each new token but `end_tokens`, and says whether it ends the completion.
    """
    way = way_of(model)
    most = TOKENS_AT_ONCE.get(model.device.type, TOKENS_AT_ONCE["cuda"])
    waiting = sorted(prompts, key=lambda prompt: -len(prompt.ids))
    while waiting:
        length = len(waiting[0].ids)
        rows = max(1, min(slots, most // (length + params.max_new_tokens)))
        if way is not Way.PADDED:
            rows = min(rows, sum(len(prompt.ids) == length for prompt in waiting)) if way is Way.EQUAL_LENGTHS else 1
        batch = _Batch(waiting[:rows], params, end_tokens, seed, ends, model.device)
        _generate(model, [prompt.ids for prompt in batch.prompts], params.max_new_tokens, batch.draw, batch.done)
        for prompt, ids in zip(batch.prompts, batch.written, strict=True):
            yield prompt.place, Completion(ids, ids[-1] in end_tokens)
        waiting = waiting[rows:]


def stream_by_generate(
    model: PreTrainedModel, prompt: Prompt, params: SamplingParams, end_tokens: Collection[int], seed: int
) -> Generator[int]:
    """The tokens of the completion to `prompt`, one by one: `model.generate` runs in a thread of its own."""
    tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    left = threading.Event()

    def ends(_: int, token: int) -> bool:
        tokens.put(token)
        return left.is_set()

    def run() -> None:
        try:
            for _, completion in complete_by_generate(model, [prompt], params, end_tokens, seed, 1, ends):
                if completion.ended:
                    tokens.put(completion.ids[-1])
            tokens.put(None)
        except BaseException as problem:  # raised again in the thread that reads
            tokens.put(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (token := tokens.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            yield token
    finally:
        left.set()
        thread.join()


class _Batch:
    """Rows that `model.generate` completes together: what each has written, and whether it is done."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        end_tokens: Collection[int],
        seed: int,
        ends: Callable[[int, int], bool],
        device: torch.device,
    ) -> None:
        self.prompts, self.params, self.end_tokens, self.ends = prompts, params, end_tokens, ends
        numbers = [uniform_numbers(seed, prompt.stream, params.max_new_tokens) for prompt in prompts]
        self.uniforms = torch.from_numpy(np.stack(numbers)).to(device)
        self.written: list[list[int]] = [[] for _ in prompts]
        self.done = [False] * len(prompts)

    def draw(self, logits: Tensor) -> Tensor:
        """The next tokens [rows]; those of rows that are done are not looked at. Raises TrainingError as `step`."""
        step = max(map(len, self.written))
        if step == self.params.max_new_tokens:  # transformers may notice the end one step late
            return torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        drawn = sample(logits, self.uniforms[:, step], self.params)
        tokens = drawn.tolist()
        check_finite([token for token, done in zip(tokens, self.done, strict=True) if not done])
        for row, token in enumerate(tokens):
            if not self.done[row]:
                self.written[row].append(token)
                ended = token in self.end_tokens or self.ends(self.prompts[row].place, token)
                self.done[row] = ended or step + 1 == self.params.max_new_tokens
        return drawn.clamp(min=0)


def _generate(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    draw: Callable[[Tensor], Tensor],
    done: list[bool],
) -> None:
    """Let `model.generate` complete `rows`, padded on the left, with the tokens [rows] that `draw(logits)` chooses.

    It ends when all rows are `done`, which `draw` keeps, or have `max_new_tokens` tokens.
    """
    width = max(map(len, rows))
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    settings = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, pad_token_id=0)
    own, model.generation_config = model.generation_config, GenerationConfig()  # it would fill in what is not set
    try:
        model.generate(
            _ids(model, [[*[0] * (width - len(row)), *row] for row in rows]),
            attention_mask=mask,
            generation_config=settings,
            logits_processor=[_Chosen(draw)],
            stopping_criteria=[_Done(done)],
        )
    finally:
        model.generation_config = own


class _Chosen(LogitsProcessor):
    """Leaves one token in each row for greedy search to take."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        self.draw = draw

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).scatter_(1, self.draw(scores)[:, None], 0)


class _Done(StoppingCriteria):
    """Ends generation when all rows are done."""

    def __init__(self, done: list[bool]) -> None:
        self.done = done

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.tensor(self.done, device=input_ids.device)


def _ids(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, device=model.device)
