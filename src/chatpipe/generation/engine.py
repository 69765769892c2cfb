"""The decode engine: completes many prompts at once with any decoder model of transformers.

A fixed number of slots decode together, one token a step. A row that is finished leaves at once, the last rows move
into the gaps so that the rows in use are always the first ones (the cache is then read as a view, not copied), and
waiting prompts are prefilled together when enough slots are free. The last token of a prompt is not prefilled: it is
what the row's first decode step reads, so tokens are sampled in one place and the output head sees no other position.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from chatpipe.errors import TrainingError, UsageError
from chatpipe.generation.cache import RowCache
from chatpipe.generation.sampling import SamplingParams, sample, uniform_numbers

MAX_PREFILL_TOKENS = 8192  # of one forward pass, which bounds the memory of its activations


@dataclass
class Completion:
    """What the model wrote to one prompt: `ids` with the eos if it came, and whether it came (`ended`).

    `logprobs` are those of the sampled tokens in nats, under softmax(logits / temperature).
    """

    ids: list[int]
    logprobs: list[float]
    ended: bool


@dataclass(frozen=True)
class _Occupant:
    """Whose row it is: `index` of the prompt, its number of tokens, and the step before which it came in."""

    index: int
    prompt_length: int
    admitted: int


class DecodeEngine:
    """Rows of a model that decode together. `admit` prompts, `step`, and `collect` what has finished.

    `max_length` is the longest prompt plus `params.max_new_tokens`. The model should be in evaluation mode
    (`evaluation_mode`); nothing is left in it. Gradients are off by `no_grad`: what a model computes once in
    `inference_mode` and keeps (rotary frequencies, for one) could not be trained through afterwards.
    """

    def __init__(
        self, model: PreTrainedModel, params: SamplingParams, eos_token_id: int, seed: int, slots: int, max_length: int
    ) -> None:
        self.model, self.params, self.eos_token_id, self.seed = model, params, eos_token_id, seed
        self.cache = RowCache(model.config.get_text_config().num_hidden_layers, slots, max_length)
        self.occupants: list[_Occupant] = []
        self.steps = 0
        device, max_new_tokens = model.device, params.max_new_tokens
        # The last token, its position and the number of tokens sampled so far, for each row.
        self._state = torch.zeros(3, slots, dtype=torch.long, device=device)
        self._tokens = torch.zeros(slots, max_new_tokens, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(slots, max_new_tokens, dtype=torch.float64, device=device)
        self._uniforms = torch.zeros(slots, max_new_tokens, dtype=torch.float64, device=device)
        self._key_positions = torch.arange(max_length, device=device)

    @torch.no_grad()
    def admit(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Give free slots to `prompts`: pairs of an index, which selects the random numbers, and the token ids."""
        first = len(self.occupants)
        rows = slice(first, first + len(prompts))
        lengths = [len(ids) for _, ids in prompts]
        self.occupants += [
            _Occupant(index, length, self.steps) for (index, _), length in zip(prompts, lengths, strict=True)
        ]
        state = [[ids[-1] for _, ids in prompts], [length - 1 for length in lengths], [0] * len(prompts)]
        self._state[:, rows] = torch.tensor(state, device=self._state.device)
        uniforms = np.stack([uniform_numbers(self.seed, index, self.params.max_new_tokens) for index, _ in prompts])
        self._uniforms[rows] = torch.from_numpy(uniforms).to(self._uniforms.device)
        per_pass = max(1, MAX_PREFILL_TOKENS // max(lengths))
        for start in range(0, len(prompts), per_pass):
            self._prefill(first + start, [ids[:-1] for _, ids in prompts[start : start + per_pass]])

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
        self._forward(
            torch.tensor(padded, device=positions.device),
            visible=positions <= positions[:, None],
            position_ids=positions.expand(len(prefixes), width),
        )

    @torch.no_grad()
    def step(self) -> Tensor:
        """Sample the next token of each row in use: [rows] int64, on the model's device."""
        rows = len(self.occupants)
        last, position, count = self._state[:, :rows]
        kv_length = self._longest()
        self.cache.begin_decode(position, kv_length)
        visible = self._key_positions[:kv_length] <= position[:, None]
        logits = self._forward(last[:, None], visible[:, None, None], position[:, None])
        at = count[:, None]
        tokens, logprobs = sample(logits, self._uniforms[:rows].gather(1, at)[:, 0], self.params)
        self._tokens[:rows].scatter_(1, at, tokens[:, None])
        self._logprobs[:rows].scatter_(1, at, logprobs[:, None].double())
        last.copy_(tokens)
        self._state[1:, :rows] += 1
        self.steps += 1
        return tokens

    def _forward(self, input_ids: Tensor, visible: Tensor, position_ids: Tensor) -> Tensor:
        """The logits [rows, vocabulary] of the last column. `visible` [..., queries, keys]: which keys are attended."""
        # Additive, since eager attention adds the mask to its scores; sdpa takes this form too.
        mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=visible.device)
        mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)
        return self.model(
            input_ids=input_ids,
            attention_mask=mask.expand(input_ids.shape[0], 1, -1, -1),
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def _longest(self) -> int:
        """The number of tokens read in the longest row, after the next step."""
        return self.steps + max(row.prompt_length - row.admitted for row in self.occupants)

    def collect(self) -> list[tuple[int, Completion]]:
        """Take out the rows that have finished: pairs of the prompt's index and its completion.

        Raises TrainingError when the model's logits were not finite.
        """
        rows = len(self.occupants)
        last, _, count = self._state[:, :rows]
        newest = self._logprobs[:rows].gather(1, count[:, None] - 1)[:, 0]
        done = (last == self.eos_token_id) | (count == self.params.max_new_tokens) | newest.isnan()
        finished = done.nonzero()[:, 0].tolist()  # the one point of a step where the CPU waits for the GPU
        completions = [(self.occupants[row].index, self._completion(row)) for row in finished]
        if finished:
            self._close_gaps(finished)
        return completions

    def _completion(self, row: int) -> Completion:
        length = self.steps - self.occupants[row].admitted
        ids, logprobs = self._tokens[row, :length].tolist(), self._logprobs[row, :length].tolist()
        if math.isnan(logprobs[-1]):
            raise TrainingError(
                "the model's output is not finite (NaN or infinity) while generating",
                "The weights are broken or overflow in this dtype: look at the stage that wrote the model.",
            )
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
                buffer.index_copy_(0, target, buffer.index_select(0, source))


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    eos_token_id: int,
    seed: int,
    slots: int = 64,
    on_finished: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Complete every prompt, in the order given. A seed gives the same tokens whatever the number of `slots`.

    Memory for keys and values is that of `slots` rows of the longest prompt plus `max_new_tokens`. `on_finished` is
    called with the number of completions that are finished so far. The model is used in evaluation mode, without
    gradients, and left as it was.

    Raises UsageError for an empty prompt, a prompt that leaves no room for its completion, or a model that the engine
    cannot run; TrainingError when the model's logits are not finite.
    """
    if not prompts:
        return []
    slots = min(slots, len(prompts))
    check_prompts(model, prompts, params)
    max_length = max(map(len, prompts)) + params.max_new_tokens
    # Prompts of similar length are prefilled together (less padding), and the long ones do not come last.
    waiting = sorted(enumerate(prompts), key=lambda item: len(item[1]))
    finished: dict[int, Completion] = {}
    with evaluation_mode(model):
        engine = DecodeEngine(model, params, eos_token_id, seed, slots, max_length)
        while waiting or engine.occupants:
            free = slots - len(engine.occupants)
            if waiting and free >= min(len(waiting), max(1, slots // 8)):
                engine.admit([waiting.pop() for _ in range(min(free, len(waiting)))])
            engine.step()
            for index, completion in engine.collect():
                finished[index] = completion
                if on_finished:
                    on_finished(len(finished))
    return [finished[index] for index in range(len(prompts))]


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put the modules of `model` into evaluation mode (no dropout), and afterwards each back into its own mode."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def context_length(model: PreTrainedModel) -> int | None:
    """How many tokens a sequence may have: the model's positions, or its attention window; None if nothing bounds it.

    The cache keeps whole sequences, so a model with a sliding window is right only up to that window.
    """
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
    if "sliding_attention" in _layer_types(config):
        limits.append(config.sliding_window)
    return min((limit for limit in limits if limit), default=None)


def _layer_types(config: PreTrainedConfig) -> set[str]:
    sliding = getattr(config, "sliding_window", None)
    return set(getattr(config, "layer_types", None) or ["sliding_attention" if sliding else "full_attention"])


def check_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
    """Raise UsageError if the engine cannot run `model`, or a prompt is empty or leaves no room for its completion."""
    config, name = model.config.get_text_config(), type(model).__name__
    takes_positions = "position_ids" in inspect.signature(model.get_decoder().forward).parameters
    if not takes_positions or _layer_types(config) - {"full_attention", "sliding_attention"}:
        raise UsageError(f"the decode engine cannot run {name}", "Use a decoder such as GPT-2, Llama or Qwen3.")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UsageError(
            f"{name} uses {config._attn_implementation} attention, which the decode engine cannot mask by row",
            'Load the model with attn_implementation="sdpa".',
        )
    if not all(prompts):
        raise UsageError("a prompt has no tokens", "Give each prompt at least one token.")
    longest, limit = max(map(len, prompts)), context_length(model)
    if limit and longest + params.max_new_tokens > limit:
        raise UsageError(
            f"the longest prompt ({longest} tokens) and max_new_tokens ({params.max_new_tokens}) need "
            f"{longest + params.max_new_tokens} positions, and {name} has {limit}",
            "Shorten the prompts, or lower max_new_tokens.",
        )
