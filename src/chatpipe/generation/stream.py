"""Text as it is written: one completion, token by token."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chatpipe.generation.decode_rows import DecodeRows, Prompt
from chatpipe.generation.engine import check_prompts
from chatpipe.generation.sampling import SamplingParams, random_streams
from chatpipe.generation.stops import StopFinder
from chatpipe.models.layers import evaluation_mode


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
        while rows.occupants and not finder.stopped:
            token = int(rows.step()[0])
            rows.collect()
            if token != eos_token_id:
                finder.add(token)
            safe = finder.safe if rows.occupants else len(finder.text)
            if safe > shown:
                yield finder.text[shown:safe]
                shown = safe
