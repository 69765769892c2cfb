"""The decode engine on the pretended GPU. `test_pretended_gpu.py` runs it in a process that has one."""

import gc

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from chatpipe.generation import SamplingParams, generate
from chatpipe.generation.cache import RowCacheLayer
from chatpipe.generation.decode_rows import DecodeRows
from chatpipe.generation.ways import Way, way_of

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


def model_on_gpu(architecture: str):
    """Tried before anything is counted, so that a call does only what it does from then on."""
    model = tiny_model(architecture).to("cuda")
    assert way_of(model) is Way.ENGINE
    return model


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
    model = model_on_gpu("llama")
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


def test_rows_that_refer_to_themselves_are_caught(gpu, monkeypatch):
    """The bug that this had: the graphs held the rows, which held the graphs, and the cache lived on."""
    make = DecodeRows.__init__

    def made_in_a_cycle(rows, *args, **options) -> None:
        make(rows, *args, **options)
        rows.itself = rows

    monkeypatch.setattr(DecodeRows, "__init__", made_in_a_cycle)
    assert live_after_a_call(gpu) > 0


def test_a_step_waits_once(gpu, monkeypatch):
    """However many rows finish. What is uploaded: the prompts when they are admitted, and which rows move."""
    model, steps, step = model_on_gpu("llama"), [], DecodeRows.step
    monkeypatch.setattr(DecodeRows, "step", lambda rows: steps.append(rows) or step(rows))
    gpu.reset()
    written(model, SamplingParams(24), slots=8)
    read_back = sum(count for line, count in gpu.waits.items() if line.endswith("copies to the CPU"))
    assert read_back == len(steps)
    assert gpu.waits.total() - read_back <= 4 * len(PROMPTS), gpu.waits


def cache_bytes(monkeypatch) -> list[int]:
    """The sizes of all caches that are made from now on, as each is when its layers are first used."""
    made, allocate = [], RowCacheLayer.lazy_initialization

    def allocated(layer, keys, values) -> None:
        allocate(layer, keys, values)
        if layer.max_length > 1:  # not the one that measures a position
            made.append(layer.keys.nbytes + layer.values.nbytes)

    monkeypatch.setattr(RowCacheLayer, "lazy_initialization", allocated)
    return made


BYTES_PER_POSITION = 2 * 2 * 2 * 4 * 4  # layers, keys and values, heads, width, float32


def test_one_long_prompt_does_not_decide_for_all(gpu, monkeypatch):
    model, made = model_on_gpu("llama"), cache_bytes(monkeypatch)
    generate(model, [[2]] * 255 + [[2] * 100], SamplingParams(2), NEVER, seed=3)
    assert sum(made) == BYTES_PER_POSITION * (1 * 102 + 255 * 3)


def test_the_cache_fits_into_the_memory_that_is_free(gpu, monkeypatch):
    """A little over 7 / 10 of what is free holds 8 rows of 20 + 16 positions."""
    model, made = model_on_gpu("llama"), cache_bytes(monkeypatch)
    prompts = [[2 + i % 9] * 20 for i in range(32)]
    whole = [completion.ids for completion in generate(model, prompts, SamplingParams(16), NEVER, seed=3)]
    assert sum(made) == BYTES_PER_POSITION * 32 * 36
    made.clear()
    gc.collect()
    free = int(BYTES_PER_POSITION * 8 * 36 / 0.7) + 200
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, free))
    assert [c.ids for c in generate(model, prompts, SamplingParams(16), NEVER, seed=3)] == whole
    assert sum(made) == BYTES_PER_POSITION * 8 * 36


def test_keys_and_values_have_the_dtype_of_autocast(gpu, monkeypatch):
    """RoPE gives keys in float32 under autocast; stored so, each step would convert all of them."""
    model, made = model_on_gpu("llama"), cache_bytes(monkeypatch)
    with torch.autocast("cuda", torch.bfloat16):
        generate(model, [[2, 3]] * 8, SamplingParams(6), NEVER, seed=3)
    assert sum(made) == BYTES_PER_POSITION // 2 * 8 * 8


def test_nothing_is_multiplied_on_the_cpu(gpu):
    model = model_on_gpu("qwen3")
    gpu.reset()
    written(model, SamplingParams(24))
    assert gpu.cpu_share() == 0, gpu.flops["cpu"]
