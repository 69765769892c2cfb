"""Which tokens end a completion, and which are never drawn, in the engine, by `model.generate` and streamed."""

import pytest
import torch
from drawing import NEVER, ids_of, transformers_greedy
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from chatpipe.generation import SamplingParams, generate, stream
from chatpipe.generation.ways import Way, way_of
from chatpipe.models.properties import end_token_ids, unnamed_ids

ROWS, TOKENS = 64, 40
BASE = {"vocab_size": ROWS, "bos_token_id": 0, "eos_token_id": 1}
PARAMS = SamplingParams(12, temperature=1.5)


def word_tokenizer(tokens: int = TOKENS, hole: int | None = None) -> PreTrainedTokenizerFast:
    words = {f"w{token}": token for token in range(tokens) if token != hole}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="w1", bos_token="w0", extra_special_tokens=["w7", "w9"]
    )


@pytest.fixture(scope="module", params=["gpt2", "bloom"])
def model(request):
    """Of the engine, and of `model.generate`."""
    torch.manual_seed(0)
    shapes = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}}
    shape = shapes.get(request.param, {"hidden_size": 32, "n_layer": 2, "n_head": 4})
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **BASE, **shape)).eval()
    for weights in made.parameters():
        if weights.ndim > 1:
            weights.data.mul_(8)
    assert (way_of(made) is Way.ENGINE) == (request.param == "gpt2")
    return made


PROMPTS = [[5, 6, 7], [8], *([token, 12] for token in range(20, 36))]


def test_ids_that_the_tokenizer_has_no_token_for_are_never_drawn(model):
    free = ids_of(generate(model, PROMPTS, PARAMS, NEVER, seed=1))
    assert max(map(max, free)) >= TOKENS
    tokenizer = word_tokenizer(hole=30)
    assert unnamed_ids(tokenizer) == (range(30, 31), range(TOKENS, 2**31))
    ids = ids_of(generate(model, PROMPTS, PARAMS, NEVER, seed=1, tokenizer=tokenizer))
    drawn = {token for completion in ids for token in completion}
    assert drawn <= {*range(TOKENS)} - {30}
    assert len(drawn) > 25
    pieces = "".join(stream(model, tokenizer, PROMPTS[0], PARAMS, NEVER, seed=1))
    assert pieces == tokenizer.decode(ids[0], skip_special_tokens=True)


def test_greedy_is_what_generate_writes_where_the_likeliest_have_tokens(model):
    params = SamplingParams(12, temperature=0)
    expected = [transformers_greedy(model, prompt) for prompt in PROMPTS]
    same = [max(ids) < TOKENS for ids in expected]
    found = ids_of(generate(model, PROMPTS, params, NEVER, seed=1, tokenizer=word_tokenizer()))
    assert any(same)
    for ids, other, is_same in zip(found, expected, same, strict=True):
        assert (ids == other) == is_same
        assert max(ids) < TOKENS


def test_each_end_token_ends_a_completion(model):
    tokenizer = word_tokenizer(ROWS)
    ends = [1, 7, 9, *range(40, 50)]
    completions = generate(model, PROMPTS * 4, PARAMS, ends, seed=2)
    assert len({done.ids[-1] for done in completions if done.ended}) > 4
    for done in completions:
        assert done.ended == (done.ids[-1] in ends)
        assert done.ended or len(done.ids) == 12
        assert not set(done.ids[:-1]) & set(ends)
    for prompt, done in zip(PROMPTS, completions, strict=False):
        said = "".join(stream(model, tokenizer, prompt, PARAMS, ends, seed=2))
        written = done.ids[:-1] if done.ended else done.ids
        assert said == tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize(
    "named, expected",
    [
        (None, [1]),
        (1, [1]),
        (9, [1, 9]),
        ([9, 1, 7], [1, 9, 7]),
        ([9, 12, 63, 5000], [1, 9]),  # 12 is a word, the others are nothing
    ],
)
def test_ends_are_those_of_the_tokenizer_and_of_the_generation_config(named, expected):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=1, **BASE))
    model.generation_config.eos_token_id = named
    assert end_token_ids(model, word_tokenizer()) == expected


def test_a_tokenizer_without_an_end_has_those_of_the_generation_config():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=1, **BASE))
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = [7]
    assert end_token_ids(model, tokenizer) == [7]
    model.generation_config.eos_token_id = None
    assert end_token_ids(model, tokenizer) == []
