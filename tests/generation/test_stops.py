"""A stop string ends the text before it, wherever the tokens fall."""

import pytest
import torch
from drawing import NEVER
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chatpipe.errors import TrainingError, UsageError
from chatpipe.generation import SamplingParams, generate, stream

WORDS = ["Hello", " wor", "ld", ".\n", "\nUs", "er", ":", " more", "😀"]
EOS = 0


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Single bytes first, then `WORDS`, none of which is split."""
    alphabet = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    bpe.decoder = decoders.ByteLevel()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")
    made.add_tokens(WORDS)
    return made


@pytest.fixture
def recite(tiny_model, tokenizer):
    """Makes a model that writes the given tokens (all different) after the token "?", and that token."""

    def make(words: list[str]) -> tuple:
        [start] = tokenizer("?")["input_ids"]
        ids = [start, *(token for word in words for token in tokenizer(word)["input_ids"]), EOS]
        size = len(tokenizer)
        model = tiny_model("gpt2", vocab_size=size, n_embd=size, n_layer=1, n_head=1, tie_word_embeddings=False)
        for layer in (model.transformer.h[0].attn, model.transformer.h[0].mlp):
            layer.c_proj.weight.data.zero_()  # so that it adds nothing
        model.transformer.wte.weight.data = torch.eye(size)
        model.transformer.wpe.weight.data.zero_()
        model.lm_head.weight.data.zero_()
        for token, successor in zip(ids, ids[1:], strict=False):
            model.lm_head.weight.data[successor, token] = 1
        return model, start

    return make


@pytest.mark.parametrize(
    "words, stops, text, tokens",
    [
        (["Hello", " wor", "ld"], ["zzz"], "Hello world", 3 + 1),  # and the eos
        (["Hello", ".\n", "\nUs", "er", ":", " more"], ["\n\nUser:"], "Hello.", 1),  # spans four tokens, begins in one
        (["Hello", " wor", "ld", ":"], [" wor"], "Hello", 1),  # just a token
        (["Hello", " wor", "ld"], ["Hell"], "", 0),  # at once
        (["Hello", " wor", "ld", "😀", ":"], ["😀"], "Hello world", 3),
        (["Hello", "é", "!"], ["é"], "Hello", 1),  # a character of two tokens
        (["Hello", " wor", "ld"], ["ld", " w"], "Hello", 1),  # the first in the text, not in the list
        (["Hello", "l", "o"], ["llo", "lolo"], "He", 0),
    ],
)
def test_a_completion_ends_before_the_first_stop_string(recite, tokenizer, words, stops, text, tokens):
    model, start = recite(words)
    params = SamplingParams(20, temperature=0, stop=stops)
    [done] = generate(model, [[start]], params, EOS, 0, tokenizer=tokenizer)
    assert done.text == text
    assert len(done.ids) == tokens
    assert done.ended
    assert text.startswith(tokenizer.decode(done.ids, skip_special_tokens=True))
    assert "".join(stream(model, tokenizer, [start], params, EOS, 0)) == text


def test_a_broken_model_is_an_error_with_stop_strings_too(recite, tokenizer):
    model, start = recite(["Hello"])
    model.transformer.ln_f.bias.data[0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        generate(model, [[start]], SamplingParams(20, stop=["lo"]), EOS, 0, tokenizer=tokenizer)


def test_without_a_stop_string_the_limit_is_no_end(recite, tokenizer):
    model, start = recite(["Hello", " wor", "ld"])
    params = SamplingParams(2, temperature=0, stop=["ld"])
    [done] = generate(model, [[start]], params, EOS, 0, tokenizer=tokenizer)
    assert (done.text, len(done.ids), done.ended) == ("Hello wor", 2, False)


def test_nothing_is_streamed_that_may_become_a_stop_string(recite, tokenizer):
    model, start = recite(["Hello", ".\n", "\nUs", "ld", ":", " more"])
    params = SamplingParams(20, temperature=0, stop=["\n\nUser:", ":"])
    assert list(stream(model, tokenizer, [start], params, EOS, 0)) == ["Hello", ".", "\n\nUsld"]
    params = SamplingParams(2, temperature=0, stop=["\n\nUser:"])
    assert "".join(stream(model, tokenizer, [start], params, EOS, 0)) == "Hello.\n"  # nothing is kept back at the end


def test_rows_stop_one_by_one(tiny_model, tokenizer, prompts):
    """The text and tokens are those of a run without stop strings, cut; the rows that go on are not disturbed."""
    model = tiny_model("gpt2", vocab_size=len(tokenizer)).double()
    whole = generate(model, prompts, SamplingParams(12), NEVER, seed=1)
    texts = [tokenizer.decode(completion.ids, skip_special_tokens=True) for completion in whole]
    stop = sorted("".join(texts))[len("".join(texts)) // 2]  # a character that comes now and then
    params = SamplingParams(12, stop=[stop])
    completions = generate(model, prompts, params, NEVER, seed=1, slots=5, tokenizer=tokenizer)
    assert {completion.ended for completion in completions} == {True, False}
    for completion, unstopped, text in zip(completions, whole, texts, strict=True):
        assert completion.ended == (stop in text)
        assert text.startswith(completion.text)
        assert stop not in completion.text
        assert completion.ids == unstopped.ids[: len(completion.ids)]


def test_stop_strings_need_a_tokenizer(tiny_model):
    with pytest.raises(UsageError, match="tokenizer"):
        generate(tiny_model("gpt2"), [[1]], SamplingParams(4, stop=["a"]), EOS, 0)
