"""Text as it is written: one completion, token by token."""

from collections.abc import Iterator, Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chatpipe.generation.engine import DecodeEngine, check_prompts, evaluation_mode
from chatpipe.generation.sampling import SamplingParams


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    eos_token_id: int,
    seed: int,
) -> Iterator[str]:
    """Yield the text of the completion to `prompt_ids` in pieces, as the tokens come.

    A piece never ends inside a UTF-8 character: bytes wait for the rest of theirs. Special tokens, the eos among them,
    give no text. The tokens are those that `generate` samples for a single prompt.

    Raises UsageError and TrainingError as `generate` does.
    """
    check_prompts(model, [prompt_ids], params)
    with evaluation_mode(model):
        engine = DecodeEngine(model, params, eos_token_id, seed, 1, len(prompt_ids) + params.max_new_tokens)
        engine.admit([(0, prompt_ids)])
        decoder = DecodeStream(skip_special_tokens=True)
        while engine.occupants:
            token = int(engine.step()[0])
            engine.collect()
            piece = None if token == eos_token_id else decoder.step(tokenizer.backend_tokenizer, token)
            if piece:
                yield piece
