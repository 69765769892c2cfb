"""How many rows one forward pass reads."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chatpipe.evaluation.text import rows_at_once


@pytest.mark.parametrize(
    "length, vocabulary, rows", [(64, 272, 32), (256, 8192, 2), (1024, 50_257, 1)], ids=["small", "medium", "one row"]
)
def test_logits_of_a_forward_pass_take_16_mb_on_a_cpu_or_are_of_one_row(length, vocabulary, rows):
    config = GPT2Config(vocab_size=vocabulary, n_positions=length, n_embd=2, n_layer=1, n_head=1)
    assert rows_at_once(GPT2LMHeadModel(config), length) == rows


def test_a_gpu_reads_more_rows_at_once():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50_257, n_positions=1024, n_embd=2, n_layer=1, n_head=1))

    class OnGpu:
        device, config = torch.device("cuda"), model.config

    assert rows_at_once(OnGpu(), 1024) == 5
    assert rows_at_once(OnGpu(), 8) == 512
