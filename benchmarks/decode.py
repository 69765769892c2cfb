"""Decoding speed: the engine against transformers' `generate`, in turns in one run.

    OMP_NUM_THREADS=1 python benchmarks/decode.py [--rounds 5] [--sizes pocket 20M]

The models have random weights but an eos of constant probability, so that lengths are geometric, as natural ones are
(their mean is a third of the limit). `generate` takes the same prompts in batches of as many rows as the engine has
slots. Each round runs every way once; the ratio of a round is that of its tokens per second. CPU time is the process's:
on a machine that others use too it is the one to look at, on one thread. Memory is the peak of a process of its own.
With a GPU there is a Qwen3 of 0.5 B parameters in bf16 too.

Prints a Markdown table for docs/benchmarks.md.
"""

import argparse
import math
import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM as AutoModel
from transformers import GPT2Config, PreTrainedConfig, PreTrainedModel, Qwen3Config, set_seed
from transformers.utils import logging

from chatpipe.generation import SamplingParams, generate

EOS = 0


class Load(NamedTuple):
    """A model and what it is to write; prompts have between a quarter of `longest_prompt` and all of it."""

    config: PreTrainedConfig
    longest_prompt: int
    max_new_tokens: int
    slots: int
    prompts: list[int]


def gpt2(vocab_size: int, n_layer: int, n_embd: int, n_head: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=128,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        tie_word_embeddings=False,
    )


CPU_LOADS = {
    "pocket": Load(gpt2(1280, 4, 128, 4), 32, 96, 64, [64, 128]),
    "20M": Load(gpt2(8192, 8, 384, 6), 32, 96, 64, [64, 128]),
}
GPU_LOADS = {
    "0.5B": Load(
        Qwen3Config(
            vocab_size=151_936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=2048,
            bos_token_id=EOS,
            eos_token_id=EOS,
            pad_token_id=EOS,
            tie_word_embeddings=False,
        ),
        512,
        512,
        256,
        [256, 512],
    )
}


def natural_model(load: Load) -> PreTrainedModel:
    """Random weights; the head has a bias that gives the eos about 2.8 times the share of 1 / max_new_tokens.

    The mean of such lengths, cut at the limit, is a third of it.
    """
    torch.manual_seed(0)
    model = AutoModel.from_config(load.config).eval()
    share = 2.8 / load.max_new_tokens
    head = torch.nn.Linear(model.lm_head.in_features, load.config.vocab_size)
    torch.nn.init.normal_(head.weight, std=0.02)
    torch.nn.init.zeros_(head.bias)
    head.bias.data[EOS] = math.log(share / (1 - share) * load.config.vocab_size)
    model.lm_head = head
    return model.to("cuda", torch.bfloat16) if torch.cuda.is_available() else model


def some_prompts(load: Load, count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(load.longest_prompt // 4, load.longest_prompt + 1, (count,), generator=generator)
    return [torch.randint(1, load.config.vocab_size, (n,), generator=generator).tolist() for n in lengths.tolist()]


def by_engine(model: PreTrainedModel, prompts: list[list[int]], load: Load, seed: int) -> int:
    params = SamplingParams(load.max_new_tokens)
    return sum(len(done.ids) for done in generate(model, prompts, params, EOS, seed, load.slots))


def by_generate(model: PreTrainedModel, prompts: list[list[int]], load: Load, seed: int) -> int:
    set_seed(seed)
    tokens = 0
    for start in range(0, len(prompts), load.slots):
        batch = prompts[start : start + load.slots]
        width = max(map(len, batch))
        ids = torch.tensor([[EOS] * (width - len(prompt)) + prompt for prompt in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch], device=model.device)
        written = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=load.max_new_tokens,
            do_sample=True,
            top_k=0,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )[:, width:]
        tokens += int(((written == EOS).cumsum(1) - (written == EOS).int() == 0).sum())  # up to the first eos
    return tokens


WAYS: dict[str, Callable[[PreTrainedModel, list[list[int]], Load, int], int]] = {
    "engine": by_engine,
    "generate": by_generate,
}


class Speed(NamedTuple):
    """Tokens, and the seconds that they took on the clock and of the CPU."""

    tokens: int
    seconds: float
    cpu_seconds: float


def measure(way: str, model: PreTrainedModel, prompts: list[list[int]], load: Load, seed: int) -> Speed:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start, cpu_start = time.perf_counter(), time.process_time()
    tokens = WAYS[way](model, prompts, load, seed)
    return Speed(tokens, time.perf_counter() - start, time.process_time() - cpu_start)


def peak_memory(way: str, load: Load, count: int) -> float:
    """Gigabytes that a process takes which does nothing else: of the GPU where there is one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_alone, (way, load, count))


def _run_alone(way: str, load: Load, count: int) -> float:
    _quiet()
    measure(way, natural_model(load), some_prompts(load, count), load, 0)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def compare(name: str, load: Load, count: int, ways: list[str], rounds: int) -> None:
    model, prompts = natural_model(load), some_prompts(load, count)
    for way in ways:
        measure(way, model, prompts, load, 0)  # warm
    speeds = [{way: measure(way, model, prompts, load, seed) for way in ways} for seed in range(1, rounds + 1)]
    for way in ways:
        mine = [speed[way] for speed in speeds]
        rates = [speed.tokens / speed.seconds for speed in mine]
        ratios, cpu_ratios = [], []
        for speed in speeds:
            ours, theirs = speed[way], speed["generate"]
            ratios.append(ours.tokens / ours.seconds / (theirs.tokens / theirs.seconds))
            cpu_ratios.append(ours.tokens / ours.cpu_seconds / (theirs.tokens / theirs.cpu_seconds))
        mean_length = statistics.mean(speed.tokens for speed in mine) / count
        cells = (name, count, way, f"{statistics.median(rates):.0f}", spread(ratios), spread(cpu_ratios))
        memory = peak_memory(way, load, count)
        print("| " + " | ".join(map(str, (*cells, f"{mean_length:.1f}", f"{memory:.2f}"))) + " |", flush=True)


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    loads = CPU_LOADS | (GPU_LOADS if torch.cuda.is_available() else {})
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=loads, default=list(loads))
    args = parser.parse_args()
    _quiet()
    print("| model | prompts | way | tokens/s | x generate | x generate, CPU time | mean length | peak GB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.sizes:
        for count in loads[name].prompts:
            compare(name, loads[name], count, list(WAYS), args.rounds)


if __name__ == "__main__":
    main()
