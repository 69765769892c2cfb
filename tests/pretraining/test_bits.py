import torch
from transformers import PreTrainedTokenizerFast

from chatpipe.models.tokenizer_training import character_tokenizer
from chatpipe.training.text_bits import TextBits, tokens_without_text


def test_every_special_token_but_the_unknown_one_stands_for_no_text():
    tokenizer = character_tokenizer(["ab"], 300, 64)
    assert tokenizer.convert_ids_to_tokens(5) == tokenizer.unk_token == "<|unknown|>"
    assert tokens_without_text(tokenizer) == (0, 1, 2, 3, 4)


def test_an_end_of_text_that_is_the_unknown_token_too_stands_for_none():
    backend, end = character_tokenizer(["ab"], 300, 64).backend_tokenizer, "<|endoftext|>"
    as_gpt2 = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end)
    assert tokens_without_text(as_gpt2) == (1,)


def test_predictions_of_tokens_without_text_are_found_where_they_are_made():
    bits = TextBits((0, 1), bytes_per_token=1.0)
    labels = torch.tensor([[1, 5, 0, 1], [5, 6, 7, 8], [5, -100, 6, 1]])
    assert bits.find(labels).tolist() == [[0, 1], [0, 2], [2, 2]]
