"""Completes prompts with any decoder model of transformers: many at once (`generate`) or one as text (`stream`).

Prompts wait in a queue and take the slots of finished rows. The rows and their steps are in `decode_rows.py`.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from chatpipe.errors import UsageError
from chatpipe.generation.cache import affordable_positions, plan_groups, usual_slots
from chatpipe.generation.decode_rows import Completion, DecodeRows, Prompt
from chatpipe.generation.sampling import SamplingParams, random_streams
from chatpipe.models.properties import evaluation_mode, layer_types, leaves_room, longest_sequence


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    eos_token_id: int,
    seed: int,
    slots: int | None = None,
    on_finished: Callable[[int], None] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Completion]:
    """Complete every prompt, in the order given.

    A seed gives a prompt the same tokens whatever the number of `slots` (default: `usual_slots`) and whatever other
    prompts there are. On a GPU there are fewer slots where its free memory holds no more. `on_finished` is called with
    the number of completions that are finished so far. Stop strings need the `tokenizer`. The model is used in
    evaluation mode, without gradients, and left as it was.

    Raises UsageError for an empty prompt, a prompt that leaves no room for its completion, or a model that the engine
    cannot run; TrainingError when the model's logits are not finite.
    """
    if params.stop and tokenizer is None:
        raise UsageError("stop strings without a tokenizer", "Give generate the tokenizer, which makes text of tokens.")
    if not prompts:
        return []
    check_prompts(model, prompts, params)
    queue = [Prompt(*prompt) for prompt in zip(prompts, range(len(prompts)), random_streams(prompts), strict=True)]
    lengths = [len(prompt) + params.max_new_tokens for prompt in prompts]
    finders = {i: StopFinder(tokenizer, params.stop) for i in range(len(prompts))} if params.stop else {}
    finished: dict[int, Completion] = {}
    with evaluation_mode(model):
        for group in plan_groups(lengths, slots or usual_slots(model), affordable_positions(model)):
            rows = DecodeRows(model, params, eos_token_id, seed, group.slots, group.max_length)
            for place, completion in _run(rows, [queue[place] for place in group.places], finders):
                finished[place] = completion
                if on_finished:
                    on_finished(len(finished))
    return [finished[place] for place in range(len(prompts))]


def _run(rows: DecodeRows, prompts: list[Prompt], finders: "dict[int, StopFinder]") -> Iterator[tuple[int, Completion]]:
    """Complete `prompts`, longest first: those of similar length are prefilled together, and no long one comes last."""
    waiting = prompts[::-1]
    while waiting or rows.rows:
        free = rows.slots - len(rows.rows)
        if waiting and free >= min(len(waiting), max(1, rows.slots // 8)):
            rows.admit([waiting.pop() for _ in range(min(free, len(waiting)))])
        tokens = rows.step()
        stopped = set()
        if finders:
            for row, token in zip(rows.rows, tokens, strict=True):
                if token != rows.eos_token_id and finders[row.prompt.place].add(token):
                    stopped.add(row.prompt.place)
        for place, completion in rows.collect(stopped):
            yield place, finders[place].cut(completion) if finders else completion


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    eos_token_id: int,
    seed: int,
) -> Iterator[str]:
    """Yield the text of the completion to `prompt_ids` in pieces, as the tokens come.

    A piece never ends inside a UTF-8 character (bytes wait for the rest of theirs), nor does it show what may become a
    stop string. Special tokens, the eos among them, give no text. The tokens are those that `generate` samples for a
    single prompt.

    Raises UsageError and TrainingError as `generate` does.
    """
    check_prompts(model, [prompt_ids], params)
    with evaluation_mode(model):
        rows = DecodeRows(model, params, eos_token_id, seed, 1, len(prompt_ids) + params.max_new_tokens)
        rows.admit([Prompt(prompt_ids, 0, random_streams([prompt_ids])[0])])
        finder, shown = StopFinder(tokenizer, params.stop), 0
        while rows.rows and not finder.stopped:
            [token] = rows.step()
            rows.collect()
            if token != eos_token_id:
                finder.add(token)
            safe = finder.safe if rows.rows else len(finder.text)
            if safe > shown:
                yield finder.text[shown:safe]
                shown = safe


def check_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
    """Raise UsageError if the engine cannot run `model`, or a prompt is empty or leaves no room for its completion."""
    config, name = model.config.get_text_config(), type(model).__name__
    takes_positions = "position_ids" in inspect.signature(model.get_decoder().forward).parameters
    if not takes_positions or layer_types(config) - {"full_attention", "sliding_attention"}:
        raise UsageError(f"the decode engine cannot run {name}", "Use a decoder such as GPT-2, Llama or Qwen3.")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UsageError(
            f"{name} uses {config._attn_implementation} attention, which the decode engine cannot mask by row",
            'Load the model with attn_implementation="sdpa".',
        )
    if not all(prompts):
        raise UsageError("a prompt has no tokens", "Give each prompt at least one token.")
    longest, limit = max(map(len, prompts)), longest_sequence(model, decodes=True)
    if not leaves_room(longest, params.max_new_tokens, limit):
        raise UsageError(
            f"the longest prompt ({longest} tokens) and max_new_tokens ({params.max_new_tokens}) need "
            f"{longest + params.max_new_tokens} positions, and {name} has {limit}",
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
