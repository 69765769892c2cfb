"""The decode engine on the pretended GPU. `test_pretended_gpu.py` runs this file in a process of its own."""

import gc

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from chatpipe.generation import SamplingParams, generate
from chatpipe.generation import graphs as step_graphs

NEVER = -1
SHAPES = {
    "gpt2": {"n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 4},
    "llama": {"max_position_embeddings": 128, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
}
SHAPES["llama"] |= {"num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES["qwen3"] = SHAPES["llama"] | {"head_dim": 4}
PROMPTS = [[2 + (7 * i + j) % 9 for j in range(1 + i % 5)] for i in range(20)]


def tiny_model(architecture: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=12, initializer_range=0.5, **SHAPES[architecture])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def written(model, params: SamplingParams, **options) -> list[list[int]]:
    return [completion.ids for completion in generate(model, PROMPTS, params, 1, seed=3, **options)]


@pytest.mark.parametrize(
    "architecture, attention, params",
    [
        ("gpt2", "sdpa", {}),
        ("llama", "eager", {"top_k": 6, "top_p": 0.9, "min_p": 0.05}),
        ("qwen3", "sdpa", {"temperature": 0.0}),
    ],
)
def test_recorded_steps_write_what_the_cpu_writes(gpu, architecture, attention, params):
    model, params = tiny_model(architecture, attention), SamplingParams(24, **params)
    on_cpu = written(model, params, slots=8)
    assert not gpu.flops["gpu"]
    assert written(model.to("cuda"), params, slots=8) == on_cpu
    assert gpu.replays > 15, "most steps are replays of a recorded one"


def live_after_a_call(gpu) -> int:
    """Bytes that a finished call of `generate` leaves on the GPU when no garbage is collected."""
    model = tiny_model("llama").to("cuda")
    gc.collect()
    gc.disable()
    try:
        held = gpu.live_bytes
        written(model, SamplingParams(24))
        return gpu.live_bytes - held
    finally:
        gc.enable()


def test_a_finished_call_leaves_no_memory(gpu):
    assert live_after_a_call(gpu) == 0


def test_a_strong_reference_to_the_step_is_caught(gpu, monkeypatch):
    """The bug that this had: the graphs held the rows, which held the graphs, and the cache lived on."""
    monkeypatch.setattr(step_graphs.weakref, "WeakMethod", lambda method: lambda: method)
    assert live_after_a_call(gpu) > 0


def test_a_step_waits_twice_at_most(gpu):
    model, steps = tiny_model("llama").to("cuda"), 24
    gpu.reset()
    generate(model, PROMPTS, SamplingParams(steps), NEVER, seed=3)
    assert gpu.waits.total() <= 2 * steps + len(PROMPTS) + 30, gpu.waits


def test_nothing_is_multiplied_on_the_cpu(gpu):
    model = tiny_model("qwen3").to("cuda")
    gpu.reset()
    written(model, SamplingParams(24))
    assert gpu.cpu_share() == 0, gpu.flops["cpu"]
