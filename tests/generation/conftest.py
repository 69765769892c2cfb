from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

pytest.register_assert_rewrite("drawing")

VOCAB = 40
ROTARY = {
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # wide enough that the next token depends on the tokens before it
}


TINY_SHAPES = {
    "gpt2": {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "llama": ROTARY,
    "mistral": ROTARY,
    "qwen3": ROTARY | {"head_dim": 8},
}


def make_tiny_model(architecture: str, **overrides: object) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(architecture, **TINY_SHAPES[architecture] | overrides)
    return AutoModelForCausalLM.from_config(config, attn_implementation=overrides.get("attn_implementation")).eval()


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Makes a random model of an architecture with 64 positions and 40 tokens, unless overridden."""
    return make_tiny_model


@pytest.fixture(scope="session", params=["gpt2", "qwen3", "llama"])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, architecture: str) -> PreTrainedModel:
    """Each architecture with each kind of attention. Not to be changed."""
    return make_tiny_model(architecture, attn_implementation=request.param)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """21 prompts of 1 to 12 tokens, the first of one token."""
    generator = torch.Generator().manual_seed(2)
    lengths = [1, *torch.randint(1, 13, (20,), generator=generator).tolist()]
    return [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]
