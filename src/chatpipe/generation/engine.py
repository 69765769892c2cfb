"""Completing many prompts with any decoder model of transformers: the checks, the queue, and the choice of a backend.

`native` is the decode engine of `rows.py`: prompts wait in a queue and take the slots of finished rows. `continuous` is
transformers' own continuous batching (`continuous.py`).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.errors import UsageError
from chatpipe.generation.continuous import generate_continuous
from chatpipe.generation.decode_rows import Completion, DecodeRows, Prompt
from chatpipe.generation.sampling import BROKEN, SamplingParams, random_streams
from chatpipe.generation.stops import StopFinder
from chatpipe.models.context import layer_types, leaves_room, longest_sequence
from chatpipe.models.layers import evaluation_mode

Backend = Literal["native", "continuous"]


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    eos_token_id: int,
    seed: int,
    slots: int | None = None,
    on_finished: Callable[[int], None] | None = None,
    *,
    logprobs: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    backend: Backend = "native",
) -> list[Completion]:
    """Complete every prompt, in the order given.

    A seed gives a prompt the same tokens whatever the number of `slots` (default: `usual_slots`) and whatever other
    prompts there are.
    Memory for keys and values is that of `slots` rows of the longest prompt plus `max_new_tokens`. `on_finished` is
    called with the number of completions that are finished so far. `logprobs` asks for those of the tokens; stop
    strings need the `tokenizer`. The model is used in evaluation mode, without gradients, and left as it was. What
    differs with the backend `continuous` stands in `continuous.py`.

    Raises UsageError for an empty prompt, a prompt that leaves no room for its completion, or a model that the engine
    cannot run; TrainingError when the model's logits are not finite.
    """
    if backend not in get_args(Backend):
        raise UsageError(f"backend is {backend!r}", f"It must be one of {', '.join(get_args(Backend))}.")
    if params.stop and tokenizer is None:
        raise UsageError("stop strings without a tokenizer", "Give generate the tokenizer, which makes text of tokens.")
    if not prompts:
        return []
    slots = min(slots or usual_slots(model), len(prompts))
    check_prompts(model, prompts, params)
    with evaluation_mode(model):
        if backend == "continuous":
            done = generate_continuous(model, prompts, params, eos_token_id, seed, slots, on_finished, logprobs)
            return [_cut(completion, params, tokenizer) for completion in done] if params.stop else done
        max_length = max(map(len, prompts)) + params.max_new_tokens
        rows = DecodeRows(model, params, eos_token_id, seed, slots, max_length, logprobs)
        return _run(rows, prompts, tokenizer, on_finished)


def usual_slots(model: PreTrainedModel) -> int:
    """Rows that decode together: a GPU has room for more, and a step of them takes hardly longer."""
    return 64 if model.device.type == "cpu" else 256


def _run(
    rows: DecodeRows,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase | None,
    on_finished: Callable[[int], None] | None,
) -> list[Completion]:
    # Prompts of similar length are prefilled together (less padding), and the long ones do not come last.
    numbered = zip(prompts, range(len(prompts)), random_streams(prompts), strict=True)
    waiting = sorted((Prompt(*prompt) for prompt in numbered), key=lambda prompt: len(prompt.ids))
    finders = {i: StopFinder(tokenizer, rows.params.stop) for i in range(len(prompts))} if rows.params.stop else {}
    finished: dict[int, Completion] = {}
    while waiting or rows.occupants:
        free = rows.slots - len(rows.occupants)
        if waiting and free >= min(len(waiting), max(1, rows.slots // 8)):
            rows.admit([waiting.pop() for _ in range(min(free, len(waiting)))])
        tokens = rows.step()
        stopped = _read(tokens.tolist(), rows, finders) if finders else []
        for place, completion in rows.collect(stopped):
            finished[place] = finders[place].cut(completion) if finders else completion
            if on_finished:
                on_finished(len(finished))
    return [finished[place] for place in range(len(prompts))]


def _read(tokens: list[int], rows: DecodeRows, finders: dict[int, StopFinder]) -> list[int]:
    """Show each row's newest token to its finder; the places of the prompts whose stop string is complete."""
    newest = zip((occupant.place for occupant in rows.occupants), tokens, strict=True)
    no_text = (rows.eos_token_id, BROKEN)
    return [place for place, token in newest if token not in no_text and finders[place].add(token)]


def _cut(completion: Completion, params: SamplingParams, tokenizer: PreTrainedTokenizerBase | None) -> Completion:
    """A completion that was written past its stop strings, without what came after."""
    finder = StopFinder(tokenizer, params.stop)
    any(finder.add(token) for token in completion.ids)  # as far as the first stop string
    return finder.cut(completion)


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
