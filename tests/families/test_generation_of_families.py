"""Random tiny models of all families write what transformers' `generate` writes, most of them in the decode engine."""

import threading

import pytest
import torch
from tiny_families import FAMILIES, VOCABULARY, tiny_model, word_tokenizer

from chatpipe.generation import SamplingParams, generate, stream
from chatpipe.generation.ways import Way, way_of

NEVER = -1
END = 9
BY_GENERATE = {
    "bamba", "bloom", "falcon_h1", "falcon_mamba", "gpt_neo", "granitemoehybrid", "jamba", "lfm2", "llama4_text",
    "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "openai-gpt", "qwen3_5_text", "qwen3_next", "rwkv",
    "zamba2",
}  # fmt: skip
PADDING_IS_READ, OTHER_ROWS_ARE_READ = {"minimax"}, {"rwkv"}


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in (5, 30, 17, 1, 5)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_what_generate_writes(family):
    model, new = tiny_model(family), 8
    expected = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
                                 eos_token_id=NEVER, pad_token_id=3)  # fmt: skip
        expected.append(written[0, len(prompt) :].tolist())
    completions = generate(model, prompts(), SamplingParams(new, temperature=0), NEVER, seed=0)
    assert [completion.ids for completion in completions] == expected


def test_the_engine_runs_most_families():
    ways = {family: way_of(tiny_model(family)) for family in FAMILIES}
    assert {family for family, way in ways.items() if way is not Way.ENGINE} == BY_GENERATE
    assert {family for family, way in ways.items() if way is Way.EQUAL_LENGTHS} == PADDING_IS_READ
    assert {family for family, way in ways.items() if way is Way.ALONE} == OTHER_ROWS_ARE_READ


@pytest.mark.parametrize("family", sorted(BY_GENERATE))
def test_a_seed_gives_a_prompt_the_same_tokens_whatever_other_prompts_there_are(family):
    """Of equal prompts the first gets the same as the first."""
    model, params = tiny_model(family), SamplingParams(6)
    together = generate(model, [*prompts(), [5]], params, END, seed=3)
    alone = [generate(model, [prompt], params, END, seed=3)[0] for prompt in prompts()]
    assert together[:-1] == alone
    assert generate(model, prompts(), params, END, seed=3, slots=2) == alone


@pytest.mark.parametrize("stop", [(), ("w20",)])
def test_a_model_that_the_engine_cannot_run_streams_what_it_generates(stop):
    model, tokenizer, params = tiny_model("mamba"), word_tokenizer(), SamplingParams(8, stop=stop)
    [completion] = generate(model, [[5, 6, 7]], params, END, seed=3, tokenizer=tokenizer)
    pieces = list(stream(model, tokenizer, [5, 6, 7], params, END, seed=3))
    assert len(pieces) > 1
    assert "".join(pieces) == (completion.text if stop else tokenizer.decode(completion.ids))
    pieces = stream(model, tokenizer, [5, 6, 7], SamplingParams(60), NEVER, seed=3)
    next(pieces)
    pieces.close()  # ends the thread
    assert not [thread for thread in threading.enumerate() if "run" in thread.name]
