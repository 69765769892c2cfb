"""Models on the pretended GPU: loaded onto it, frozen ones in bfloat16. Run by `test_pretended_gpu.py`."""

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from chatpipe.models.pretrained import load_causal_model, load_reward_model, training_device
from chatpipe.models.unpadded import reads_unpadded

CONFIG = GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=1, n_positions=16, num_labels=1)


@pytest.mark.parametrize("frozen, dtype", [(True, torch.bfloat16), (False, torch.float32)])
@pytest.mark.parametrize(
    "load, kind", [(load_causal_model, GPT2LMHeadModel), (load_reward_model, GPT2ForSequenceClassification)]
)
def test_a_model_is_loaded_onto_the_gpu_and_in_half_where_it_is_frozen(tmp_path, load, kind, frozen, dtype):
    with torch.device("cpu"):
        kind(CONFIG).save_pretrained(tmp_path)
    model = load(tmp_path, frozen)
    assert training_device().type == "cuda"
    assert {weight.device.type for weight in model.parameters()} == {"cuda"}
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert {weight.requires_grad for weight in model.parameters()} == {not frozen}
    assert model.config._attn_implementation == "sdpa"
    assert not reads_unpadded(model.base_model)
