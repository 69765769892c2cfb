"""Bugs that samplers and decode engines have had, each in the place of one of our functions or methods."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import pad

from chatpipe.generation import sampling
from chatpipe.generation.cache import RowCache
from chatpipe.generation.decode_rows import DecodeRows

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """`make(true)` takes the place of the function `true`; the check `killed_by` must catch it."""

    name: str
    true: Function
    make: Callable[[Function], Function]
    killed_by: str


# ---- temperature ----


def temperature_twice(true):
    return lambda logits, params: true(true(logits, params), params)


def no_temperature(true):
    return lambda logits, params: true(logits, replace(params, temperature=1.0))


def temperature_last(_):
    def mutant(logits, uniforms, params):
        weights = sampling._truncate(logits.float().softmax(-1), params) ** (1 / params.temperature)
        return sampling._invert_cdf(weights, uniforms)

    return mutant


def dtype_kept(_):
    return lambda logits, params: logits / params.temperature


# ---- truncation ----


def with_top_p(excluded):
    def make(true):
        def mutant(probs, params):
            probs = true(probs, replace(params, top_p=1.0, min_p=0.0))
            descending, order = probs.sort(dim=-1, descending=True)
            out = excluded(descending.cumsum(-1), descending, params.top_p)
            return true(probs.masked_fill(out.scatter(-1, order, out), 0), replace(params, top_k=0, top_p=1.0))

        return mutant

    return make


def one_more(sums, descending, top_p):
    excluded = sums - descending >= top_p
    return pad(excluded[:, :-1], (1, 0))


def with_min_p(floor):
    def make(true):
        def mutant(probs, params):
            probs = true(probs, replace(params, min_p=0.0))
            return probs.masked_fill(probs < params.min_p * floor(probs), 0)

        return mutant

    return make


def top_p_first(true):
    def mutant(probs, params):
        return true(true(probs, replace(params, top_k=0, min_p=0.0)), replace(params, top_p=1.0))

    return mutant


def exactly_k(true):
    def mutant(probs, params):
        if params.top_k:
            kept = torch.zeros_like(probs).scatter(-1, probs.topk(min(params.top_k, probs.shape[-1])).indices, 1)
            probs = probs * kept
        return true(probs, replace(params, top_k=0))

    return mutant


# ---- the draw ----


def summed_in_float32(_):
    def mutant(weights, uniforms):
        through = weights.float().cumsum(-1)
        return torch.searchsorted(through, uniforms[:, None].float() * through[:, -1:], right=True)[:, 0]

    return mutant


def reached_is_enough(_):
    def mutant(weights, uniforms):
        through = weights.double().cumsum(-1)
        return torch.searchsorted(through, uniforms[:, None] * through[:, -1:])[:, 0]

    return mutant


# ---- random numbers ----


def numbers_with(**changed):
    def make(true):
        return lambda seed, stream, count: true(**{"seed": seed, "stream": stream, "count": count} | changed)

    return make


def one_number_for_all_steps(true):
    return lambda seed, stream, count: true(seed, stream, 1).repeat(count)


def equal_prompts_share_a_stream(true):
    return lambda prompts: [true([prompt])[0] for prompt in prompts]


def streams_by_place(true):
    return lambda prompts: list(range(len(prompts)))


def numbers_one_step_late(true):
    def mutant(self, prompts):
        true(self, prompts)
        rows = slice(len(self.rows) - len(prompts), len(self.rows))
        self.state.uniforms[rows] = self.state.uniforms[rows].roll(1, dims=1)

    return mutant


# ---- rows ----


def made_with(change):
    def make(true):
        def mutant(self, model, params, eos, seed, slots, max_length, *more):
            true(self, model, *change(params, eos), seed, slots, max_length + 1, *more)

        return mutant

    return make


def longer_by(number):
    return made_with(lambda params, eos: (replace(params, max_new_tokens=params.max_new_tokens + number), eos))


def eos_is_cut_off(true):
    def mutant(self, *args):
        done = true(self, *args)
        return [(place, replace(one, ids=one.ids[: -1 if one.ended else None])) for place, one in done]

    return mutant


def numbers_stay_behind(true):
    def mutant(self, finished):
        before = self.state.uniforms.clone()
        true(self, finished)
        self.state.uniforms.copy_(before)

    return mutant


MUTANTS = [
    Mutant("temperature applied twice", sampling._tempered, temperature_twice, "loop"),
    Mutant("temperature ignored", sampling._tempered, no_temperature, "loop"),
    Mutant("temperature after top-k and top-p", sampling.sample, temperature_last, "shares"),
    Mutant("softmax in bfloat16", sampling._tempered, dtype_kept, "bfloat16"),
    Mutant(
        "top-p without the token that reaches it", sampling._truncate, with_top_p(lambda sums, p, t: sums > t), "shares"
    ),
    Mutant("top-p with one more", sampling._truncate, with_top_p(one_more), "shares"),
    Mutant("min-p of the whole mass", sampling._truncate, with_min_p(lambda probs: 1), "shares"),
    Mutant("min-p of the batch's likeliest", sampling._truncate, with_min_p(lambda probs: probs.max()), "loop"),
    Mutant("top-p before top-k", sampling._truncate, top_p_first, "shares"),
    Mutant("ties of the k-th dropped", sampling._truncate, exactly_k, "shares"),
    Mutant("sums in float32", sampling._invert_cdf, summed_in_float32, "large vocabulary"),
    Mutant("a token without weight drawn", sampling._invert_cdf, reached_is_enough, "no weight"),
    Mutant("one random number for all rows", sampling.uniform_numbers, numbers_with(stream=0), "loop"),
    Mutant("one random number for all steps", sampling.uniform_numbers, one_number_for_all_steps, "loop"),
    Mutant("seed ignored", sampling.uniform_numbers, numbers_with(seed=0), "loop"),
    Mutant("random numbers one step late", DecodeRows.admit, numbers_one_step_late, "loop"),
    Mutant("equal prompts share their numbers", sampling.random_streams, equal_prompts_share_a_stream, "loop"),
    Mutant("numbers by the place of the prompt", sampling.random_streams, streams_by_place, "loop"),
    Mutant("numbers not moved with their row", DecodeRows._close_gaps, numbers_stay_behind, "loop"),
    Mutant("keys and values not moved with their row", RowCache.move_rows, lambda true: lambda *_: None, "loop"),
    Mutant("eos does not end", DecodeRows.__init__, made_with(lambda params, eos: (params, [-7])), "loop"),
    Mutant("eos cut off", DecodeRows.collect, eos_is_cut_off, "loop"),
    Mutant("one token too many", DecodeRows.__init__, longer_by(1), "loop"),
    Mutant("one token too few", DecodeRows.__init__, longer_by(-1), "loop"),
]
