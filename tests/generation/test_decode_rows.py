"""The engine's rows: what they hold, and the fixed shapes that a GPU needs."""

import pytest
from drawing import FINITE_EOS, GREEDY, NEVER, SAMPLED, ids_of
from hypothesis import given
from hypothesis import strategies as st

from chatpipe.generation import decode_rows as rows
from chatpipe.generation import engine, generate
from chatpipe.generation.decode_rows import DecodeRows, Prompt, bucket


def test_prefill_in_several_passes_changes_nothing(tiny_model, monkeypatch, prompts):
    model = tiny_model("gpt2")
    whole = ids_of(generate(model, prompts, GREEDY, NEVER, seed=0))
    monkeypatch.setattr(rows, "prefill_tokens", lambda model: 20)
    assert ids_of(generate(model, prompts, GREEDY, NEVER, seed=0)) == whole


def test_completions_to_one_prompt_read_it_once(tiny_model, architecture, prompts, monkeypatch):
    model, read = tiny_model(architecture).double(), []
    order = [*range(4, 21), 7, 9, 7, 7, *range(4)]
    places = [Prompt(prompts[place], number, number) for number, place in enumerate(order)]

    def completions(shared):
        if not shared:
            monkeypatch.setattr(DecodeRows, "_prefill_each_once", DecodeRows._prefill)
        decoding = DecodeRows(model, SAMPLED, {NEVER}, 0, slots=len(order), max_length=24)
        handle = model.get_decoder().register_forward_pre_hook(
            lambda _, args, given: read.append(len(given["input_ids"])), with_kwargs=True
        )
        decoding.admit(places)
        handle.remove()
        found = []
        while decoding.rows:
            decoding.step()
            found += decoding.collect()
        return sorted((place, completion.ids) for place, completion in found)

    shared, rows_read = completions(True), sum(read)
    assert rows_read == len({tuple(prompts[place][:-1]) for place in order})
    assert rows_read < len(order)
    assert completions(False) == shared


def test_the_cache_holds_as_many_rows_as_slots(tiny_model, prompts):
    decoding = DecodeRows(tiny_model("qwen3"), SAMPLED, [NEVER], seed=0, slots=4, max_length=24)
    for start in range(0, 12, 4):
        decoding.admit([Prompt(prompts[place], place, place) for place in range(start, start + 4)])
        while decoding.rows:
            decoding.step()
            decoding.collect()
        assert {layer.keys.shape for layer in decoding.cache.layers} == {(4, 2, 24, 8)}


@pytest.mark.parametrize("slots", [1, 3, 13, 64])
def test_steps_on_fixed_shapes_sample_the_same(tiny_model, architecture, prompts, slots, monkeypatch):
    """What a GPU's graphs run on, without the graphs: rows that are not in use are stepped too."""
    model = tiny_model(architecture).double()
    expected = ids_of(generate(model, prompts, SAMPLED, FINITE_EOS, seed=5))
    shapes = set()

    class Bucketed(DecodeRows):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, bucketed=True)
            step, self._decode = self._decode, lambda *shape: (shapes.add(shape), step(*shape))

    monkeypatch.setattr(engine, "DecodeRows", Bucketed)
    assert ids_of(generate(model, prompts, SAMPLED, FINITE_EOS, seed=5, slots=slots)) == expected
    assert {kv_length for _, kv_length in shapes} == {24}  # all fit into the smallest one, cut to the longest row
    assert {rows for rows, _ in shapes} <= {min(size, slots, 21) for size in (8, 10, 12, 14, 16, 20, 24)}


@given(size=st.integers(1, 5000), smallest=st.sampled_from([8, 64]), room=st.integers(0, 5000))
def test_a_bucket_is_a_little_larger(size, smallest, room):
    limit = size + room
    shape = bucket(size, smallest, limit)
    assert size <= shape <= limit
    assert shape <= max(smallest, 1.25 * size)
    assert bucket(shape, smallest, limit) == shape


def test_buckets_are_few():
    assert sorted({bucket(size, 8, 256) for size in range(1, 257)})[:9] == [8, 10, 12, 14, 16, 20, 24, 28, 32]
    assert len({bucket(size, 64, 8192) for size in range(1, 8193)}) == 29
