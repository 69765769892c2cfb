"""K completions to each prompt, for somebody to rank."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.load import Conversation
from chatpipe.data.template import encode_prompt
from chatpipe.generation import Completion, SamplingParams, generate


def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    k: int,
    params: SamplingParams,
    seed: int,
    on_finished: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """For each prompt `k` completions; `on_finished` hears how many of all are done."""
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    repeated = [row for row in ids for _ in range(k)]
    completions = generate(model, repeated, params, tokenizer.eos_token_id, seed, on_finished=on_finished)
    return [completions[start : start + k] for start in range(0, len(completions), k)]
