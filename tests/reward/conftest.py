import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

VOCABULARY, CONTEXT = 64, 32
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
LLAMA_LIKE = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "intermediate_size": 32, **SIZES}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def causal_model(kind):
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE, **SPECIAL, attention_dropout=0.1))
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**LLAMA_LIKE, **SPECIAL, head_dim=8))
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2, **SPECIAL)
    )


@pytest.fixture(scope="session")
def bodies(tmp_path_factory):
    """Folders of tiny causal models by kind, as sft would leave them."""
    folders = {}
    for kind in ("gpt2", "llama", "qwen3"):
        folders[kind] = str(tmp_path_factory.mktemp(kind))
        causal_model(kind).save_pretrained(folders[kind])
    return folders
