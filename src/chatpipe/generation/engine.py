"""Completes prompts with any causal model of transformers: many at once (`generate`) or one as text (`stream`).

Prompts wait in a queue and take the slots of finished rows. The rows and their steps are in `decode_rows.py`.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from chatpipe.errors import UsageError
from chatpipe.generation.cache import RowCache, quick_on_cpu
from chatpipe.generation.decode_rows import Completion, DecodeRows, Prompt
from chatpipe.generation.sampling import SamplingParams, random_streams
from chatpipe.generation.ways import Way, complete_by_generate, stream_by_generate, way_of
from chatpipe.models.properties import evaluation_mode, leaves_room, longest_sequence, unnamed_ids


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    eos_token_id: int | Collection[int],
    seed: int,
    slots: int | None = None,
    on_finished: Callable[[int], None] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Completion]:
    """Complete every prompt, in the order given.

    A seed gives a prompt the same tokens whatever the number of `slots` (default: `usual_slots`) and whatever other
    prompts there are. On a GPU there are fewer slots where its free memory holds no more. `on_finished` is called with
    the number of completions that are finished so far. Each of `eos_token_id` ends a completion. With the `tokenizer`
    ids that it has no token for are never drawn; stop strings need it. The model is used in evaluation mode, without
    gradients, and left as it was.

    A model that the decode engine cannot run is completed by its own `generate`, with the same sampler (`ways`).

    Raises UsageError for an empty prompt, a prompt that leaves no room for its completion, or a model that cannot be
    run; TrainingError when the model's logits are not finite.
    """
    if params.stop and tokenizer is None:
        raise UsageError("stop strings without a tokenizer", "Give generate the tokenizer, which makes text of tokens.")
    if not prompts:
        return []
    check_prompts(model, prompts, params)
    params, end_tokens = _drawn(params, tokenizer), _end_tokens(eos_token_id)
    waiting = [Prompt(*prompt) for prompt in zip(prompts, range(len(prompts)), random_streams(prompts), strict=True)]
    finders = {i: StopFinder(tokenizer, params.stop) for i in range(len(prompts))} if params.stop else {}

    def ends(place: int, token: int) -> bool:
        return bool(finders) and finders[place].add(token)

    complete = _complete if way_of(model) is Way.ENGINE else complete_by_generate
    finished: dict[int, Completion] = {}
    with evaluation_mode(model), quick_on_cpu(model):
        slots = slots or usual_slots(model)
        for place, completion in complete(model, waiting, params, end_tokens, seed, slots, ends):
            finished[place] = finders[place].cut(completion) if finders else completion
            if on_finished:
                on_finished(len(finished))
    return [finished[place] for place in range(len(prompts))]


def _drawn(params: SamplingParams, tokenizer: PreTrainedTokenizerBase | None) -> SamplingParams:
    """`params` without the ids for which the tokenizer has no token."""
    return params if tokenizer is None else replace(params, excluded=unnamed_ids(tokenizer))


def _end_tokens(eos_token_id: int | Collection[int]) -> frozenset[int]:
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)


def _complete(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    end_tokens: frozenset[int],
    seed: int,
    slots: int,
    ends: Callable[[int, int], bool],
) -> Iterator[tuple[int, Completion]]:
    """Complete `prompts` in the engine: pairs of a prompt's place and its completion, as they finish.

    `ends(place, token)` receives each new token but `end_tokens`, and says whether it ends the completion.
    """
    lengths = [len(prompt.ids) + params.max_new_tokens for prompt in prompts]
    for group in plan_groups(lengths, slots, affordable_positions(model)):
        rows = DecodeRows(model, params, end_tokens, seed, group.slots, group.max_length)
        yield from _run(rows, [prompts[place] for place in group.places], ends)


def _run(rows: DecodeRows, prompts: list[Prompt], ends: Callable[[int, int], bool]) -> Iterator[tuple[int, Completion]]:
    """Complete `prompts`, longest first: those of similar length are prefilled together, and no long one comes last."""
    waiting = prompts[::-1]
    while waiting or rows.rows:
        free = rows.slots - len(rows.rows)
        if waiting and free >= min(len(waiting), max(1, rows.slots // 8)):
            rows.admit([waiting.pop() for _ in range(min(free, len(waiting)))])
        places = [row.prompt.place for row in rows.rows]
        tokens = zip(places, rows.step(), strict=True)
        yield from rows.collect(
            {place for place, token in tokens if token not in rows.end_tokens and ends(place, token)}
        )


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    eos_token_id: int | Collection[int],
    seed: int,
) -> Iterator[str]:
    """Yield the text of the completion to `prompt_ids` in pieces, as the tokens come.

    A piece never ends inside a UTF-8 character (bytes wait for the rest of theirs), nor does it show what may become a
    stop string. Special tokens and those of `eos_token_id` give no text. The tokens are those that `generate` samples
    for a single prompt.

    Raises UsageError and TrainingError as `generate` does.
    """
    check_prompts(model, [prompt_ids], params)
    prompt = Prompt(prompt_ids, 0, random_streams([prompt_ids])[0])
    tokens_of = _stream if way_of(model) is Way.ENGINE else stream_by_generate
    finder, shown = StopFinder(tokenizer, params.stop), 0
    params, end_tokens = _drawn(params, tokenizer), _end_tokens(eos_token_id)
    with (
        evaluation_mode(model),
        quick_on_cpu(model),
        closing(tokens_of(model, prompt, params, end_tokens, seed)) as tokens,
    ):
        for token in tokens:
            if token not in end_tokens:
                finder.add(token)
            if (safe := finder.safe) > shown:
                yield finder.text[shown:safe]
                shown = safe
            if finder.stopped:
                return
    if len(finder.text) > shown:
        yield finder.text[shown:]


def _stream(
    model: PreTrainedModel, prompt: Prompt, params: SamplingParams, end_tokens: frozenset[int], seed: int
) -> Generator[int]:
    """The tokens of the completion to `prompt` in the engine, one by one."""
    rows = DecodeRows(model, params, end_tokens, seed, 1, len(prompt.ids) + params.max_new_tokens)
    rows.admit([prompt])
    while rows.rows:
        yield from rows.step()
        rows.collect()


def check_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
    """Raise UsageError if a prompt is empty or leaves no room for its completion."""
    if not all(prompts):
        raise UsageError("a prompt has no tokens", "Give each prompt at least one token.")
    longest, limit = max(map(len, prompts)), longest_sequence(model)
    if not leaves_room(longest, params.max_new_tokens, limit):
        raise UsageError(
            f"the longest prompt ({longest} tokens) and max_new_tokens ({params.max_new_tokens}) need "
            f"{longest + params.max_new_tokens} positions, and {type(model).__name__} has {limit}",
            "Shorten the prompts, or lower max_new_tokens.",
        )


# ---- stop strings ----


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


# ---- how many rows decode together: what there is memory for decides ----

CACHE_SHARE = 0.7
"""The share of a GPU's free memory that the cache may take; the rest is for the steps."""

MAX_WASTE = 3
"""A cache holds at most this many times the positions that its rows need."""


class Group(NamedTuple):
    """Prompts that share one cache, as places in the list of prompts, longest first; and the cache's size."""

    places: list[int]
    slots: int
    max_length: int


def usual_slots(model: PreTrainedModel) -> int:
    """Rows that decode together where memory allows it: a GPU has room for more, and a step takes hardly longer."""
    return 64 if model.device.type == "cpu" else 256


def plan_groups(lengths: Sequence[int], slots: int, positions: float) -> list[Group]:
    """Divide sequences of at most `lengths` tokens into groups that decode one after the other.

    All are one group if its cache, of at most `slots` rows of the longest length, stays within `positions` positions
    and within `MAX_WASTE` times what its rows need. Otherwise those longer than half the longest are a group, with as
    many slots as fit (one at least), and the others are divided in the same way.
    """
    waiting = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    groups = []
    while waiting:
        longest, rows = lengths[waiting[0]], min(slots, len(waiting))
        needed = sum(lengths[place] for place in waiting[:rows])
        if rows * longest <= min(positions, MAX_WASTE * needed):
            group = waiting
        else:
            group = [place for place in waiting if 2 * lengths[place] > longest]
        rows = max(1, int(min(slots, len(group), positions // longest)))
        groups.append(Group(group, rows, longest))
        waiting = waiting[len(group) :]
    return groups


@torch.no_grad()
def affordable_positions(model: PreTrainedModel) -> float:
    """How many positions of keys and values fit into `CACHE_SHARE` of the GPU's free memory; infinite on a CPU."""
    if model.device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info()
    reserved_but_free = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return CACHE_SHARE * (free + reserved_but_free) // bytes_per_position(model)


@torch.no_grad()
def bytes_per_position(model: PreTrainedModel) -> int:
    """Bytes of the keys and values of one token in all layers, measured on a cache of one position."""
    cache = RowCache(model.config.get_text_config(), 1, 1)
    cache.begin_prefill(0, 1)
    zero = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    mask = torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=model.device)
    model.get_decoder()(input_ids=zero, attention_mask=mask, position_ids=zero, past_key_values=cache, use_cache=True)
    return cache.nbytes
