"""Text comes in pieces that are whole characters and add up to the completion."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams, generate, stream

EOS = 0
TEXT = "né€o😀!"  # no byte comes twice


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that most characters of TEXT are several tokens."""
    alphabet = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")


def reciting_model(tiny_model, ids: list[int]):
    """A GPT-2 without layers, in which each of `ids` (all different) leads to the next one."""
    model = tiny_model("gpt2", vocab_size=257, n_embd=257, n_layer=0, n_head=1, tie_word_embeddings=False)
    model.transformer.wte.weight.data = torch.eye(257)
    model.transformer.wpe.weight.data.zero_()
    model.lm_head.weight.data.zero_()
    for token, successor in zip(ids, ids[1:], strict=False):
        model.lm_head.weight.data[successor, token] = 1
    return model


def test_pieces_are_whole_characters(tiny_model, tokenizer):
    start, *ids = tokenizer("?" + TEXT)["input_ids"]
    model = reciting_model(tiny_model, [start, *ids, EOS])
    pieces = list(stream(model, tokenizer, [start], SamplingParams(40, temperature=0), EOS, seed=0))
    assert pieces == list(TEXT)


def test_a_character_cut_off_by_the_limit_is_not_shown(tiny_model, tokenizer):
    start, *ids = tokenizer("?a😀")["input_ids"]
    model = reciting_model(tiny_model, [start, *ids, EOS])
    pieces = stream(model, tokenizer, [start], SamplingParams(3, temperature=0), EOS, seed=0)
    assert list(pieces) == ["a"]


def test_neither_the_eos_nor_special_tokens_are_shown(tiny_model, tokenizer):
    start, a, b, c = tokenizer("?abc")["input_ids"]
    model = reciting_model(tiny_model, [start, a, tokenizer.eos_token_id, b, c])
    pieces = stream(model, tokenizer, [start], SamplingParams(9, temperature=0), eos_token_id=c, seed=0)
    assert list(pieces) == ["a", "b"]


def test_streams_the_tokens_that_generate_samples(tiny_model, tokenizer):
    model, params = tiny_model("gpt2", vocab_size=257), SamplingParams(30)
    [completion] = generate(model, [[5, 6]], params, EOS, seed=0)
    text = "".join(stream(model, tokenizer, [5, 6], params, EOS, seed=0))
    whole = tokenizer.decode(completion.ids, skip_special_tokens=True)
    assert len(text) > 5
    assert whole.startswith(text)
    assert not whole[len(text) :].strip("\ufffd")  # what is missing is an unfinished character


def test_a_prompt_without_room_is_refused(tiny_model, tokenizer):
    with pytest.raises(UsageError, match="max_new_tokens"):
        next(stream(tiny_model("gpt2", vocab_size=257), tokenizer, [5] * 60, SamplingParams(30), EOS, seed=4))


def test_a_stream_that_is_dropped_leaves_the_model_in_training_mode(tiny_model, tokenizer):
    model = tiny_model("gpt2", vocab_size=257).train()
    pieces = stream(model, tokenizer, [5], SamplingParams(30), EOS, seed=0)
    next(pieces)
    pieces.close()
    assert model.training
