"""Random tiny models of many families of causal models, made from configurations without a hub."""

from functools import cache

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from chatpipe.models.pretrained import causal_class

VOCABULARY = 97
EOS = 2
BASE = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 3}
WIDE = BASE | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = WIDE | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
GPT = BASE | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
SSM = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}  # fmt: skip
SECTIONS = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [2, 1, 1]}}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "embed_dim": 16, "num_heads": 2, "out_hidden_size": 32,
               "intermediate_size": 16}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}

FAMILIES = {
    "gpt2": GPT,
    "gpt_neo": BASE | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256,
                       "attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gptj": GPT | {"rotary_dim": 8},
    "gpt_neox": WIDE,
    "codegen": GPT | {"n_ctx": 256, "rotary_dim": 8},
    "gpt_bigcode": GPT,
    "openai-gpt": GPT,
    "opt": BASE | {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "max_position_embeddings": 256, "word_embed_proj_dim": 32},
    "bloom": BASE | {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": BASE | {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "falcon": BASE | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "biogpt": WIDE,
    "xglm": BASE | {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4,
             "max_position_embeddings": 256},
    "ctrl": GPT | {"dff": 48},
    "phi": WIDE,
    "phi3": GROUPED | {"sliding_window": 16},
    "persimmon": WIDE,
    "stablelm": GROUPED,
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 16},
    "ministral": HEADS | MIXED,
    "mixtral": GROUPED | {"num_local_experts": 4},
    "starcoder2": GROUPED,
    "qwen2": GROUPED,
    "qwen2_moe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                            "shared_expert_intermediate_size": 16},
    "qwen3": HEADS,
    "qwen3_moe": HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gemma": HEADS,
    "gemma2": HEADS | MIXED,
    "gemma3_text": HEADS | MIXED,
    "smollm3": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED | MIXED,
    "olmoe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2},
    "granite": GROUPED | {"logits_scaling": 8.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "cohere": GROUPED,
    "cohere2": HEADS | MIXED,
    "gpt_oss": HEADS | MIXED | {"num_local_experts": 4},
    "deepseek_v3": WIDE | LATENT | {"num_key_value_heads": 4},
    "glm": HEADS,
    "glm4": HEADS,
    "nemotron": GROUPED,
    "exaone4": HEADS | MIXED,
    "ernie4_5": HEADS,
    "seed_oss": HEADS,
    "hunyuan_v1_dense": HEADS,
    "helium": HEADS,
    "diffllama": GROUPED,
    "mamba": BASE | {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
    "mamba2": BASE | {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16,
                      "n_groups": 1, "chunk_size": 16},
    "falcon_mamba": BASE | {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
    "rwkv": BASE | {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 256},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": HEADS | LINEAR | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                                    "shared_expert_intermediate_size": 16},
    "qwen3_5_text": HEADS | LINEAR,
    "granitemoehybrid": GROUPED | SSM | {"layer_types": ["mamba", "attention"], "num_local_experts": 0,
                                         "shared_intermediate_size": 48, "mamba_expand": 2},
    "falcon_h1": GROUPED | SSM | {"mamba_d_ssm": 64},
    "bamba": GROUPED | SSM | {"attn_layer_indices": [1]},
    "jamba": GROUPED | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_dt_rank": 4,
                        "use_mamba_kernels": False},
    "zamba2": GROUPED | {"layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "mamba_ngroups": 1,
                         "n_mamba_heads": 4, "mamba_headdim": 16, "chunk_size": 16, "num_mem_blocks": 1,
                         "use_mamba_kernels": False},
    "olmo_hybrid": GROUPED | {"layer_types": ["linear_attention", "full_attention"]},
    "llama4_text": HEADS | {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 16,
                            "num_local_experts": 2, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2},
    "minimax": HEADS | {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2,
                        "block_size": 16},
    "nemotron_h": HEADS | {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 16,
                           "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16, "use_mamba_kernels": False},
    "qwen2_vl": {"text_config": GROUPED | SECTIONS, "vision_config": QWEN_VISION | {"hidden_size": 32}},
    "qwen2_5_vl": {"text_config": GROUPED | SECTIONS, "vision_config": QWEN_VISION},
    "qwen3_vl": {"text_config": HEADS | SECTIONS, "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0]}},
    "mistral3": {"text_config": GROUPED | {"model_type": "mistral"}, "vision_config": VISION},
    "smolvlm": {"text_config": GROUPED | {"model_type": "llama"}, "vision_config": VISION},
    "gemma3": {"text_config": HEADS | MIXED, "vision_config": VISION, "bos_token_id": 0, "eos_token_id": EOS},
}  # fmt: skip


@cache
def tiny_model(family: str) -> PreTrainedModel:
    """Not to be changed. The matrices are wide enough that the next token depends on the tokens before it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    model = causal_class(config).from_config(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1 and weights.std() < 0.06:
                weights.mul_(6)
    return model


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word for each token of the families."""
    words = {f"w{token}": token for token in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=f"w{EOS}", pad_token="w3")
