"""Decoding speed: the engine against transformers' `generate`, in turns in one run.

    OMP_NUM_THREADS=1 python benchmarks/decode.py [--rounds 5] [--sizes pocket 20M]
    OMP_NUM_THREADS=2 python benchmarks/decode.py --model models/smol [--rounds 3]

The models have random weights but an eos of constant probability, so that lengths are geometric, as natural ones are
(their mean is a third of the limit). `generate` takes the same prompts in batches of as many rows as the engine has
slots. Each round runs every way once; the ratio of a round is that of its tokens per second. CPU time is the process's:
on a machine that others use too it is the one to look at, on one thread. Memory is the peak of a process of its own.
With a GPU there is a Qwen3 of 0.5 B parameters in bf16 too.

With `--model` it is a chat model in bfloat16 and in float32: it answers 32 questions together until its own eos, and
one of them greedily, as in chat.

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
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM as AutoModel
from transformers import AutoTokenizer, GPT2Config, PreTrainedConfig, PreTrainedModel, Qwen3Config, set_seed
from transformers.utils import logging

from chatpipe.generation import SamplingParams, generate

EOS = 0


class Load(NamedTuple):
    """A model and what it is to write.

    Prompts are `QUESTIONS` for a chat model, given as its folder, and else random ones of between a quarter of
    `longest_prompt` and all of it.
    """

    config: PreTrainedConfig | str
    longest_prompt: int
    max_new_tokens: int
    slots: int
    prompts: list[int]
    dtype: torch.dtype = torch.float32
    eos: int = EOS
    temperature: float = 1.0


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


QUESTIONS = [
    "Write a short poem about the first snow of the year.",
    "What is the capital of France?",
    "Name three animals that live in the sea.",
    "How do I boil an egg?",
    "Explain to a child why the sky is blue.",
    "What is 12 times 7?",
    "Translate into Spanish: good morning, my friend.",
    "Give me a recipe for pancakes.",
    "Which planet is the largest?",
    "Write an e-mail to my landlord about a broken heater.",
    "What does a compiler do?",
    "List five verbs that mean to walk.",
    "Who wrote Hamlet?",
    "Summarise in one sentence: the ship was late because the captain had waited for the mail.",
    "Tell me a joke about cats.",
    "How many days has a leap year?",
    "Why do leaves turn red in autumn?",
    "Plan a weekend in Rome.",
    "What is the opposite of generous?",
    "Write a Python function that reverses a list.",
    "How does a bicycle stay upright?",
    "Give two reasons to learn a second language.",
    "Is a tomato a fruit?",
    "Describe the smell of rain.",
    "What should I pack for a day in the mountains?",
    "Correct the grammar: she go to school every days.",
    "What is the boiling point of water?",
    "Write a headline for a story about a lost dog that came home.",
    "Explain the difference between weather and climate.",
    "Say yes or no: is seven a prime number?",
    "Begin a story with a key that opens no door.",
    "How can I fall asleep faster?",
]


def chat_loads(folder: str) -> dict[str, Load]:
    """In each dtype all questions at once, sampled, and the first one greedily; answers of 256 tokens, as in chat."""
    eos = AutoTokenizer.from_pretrained(folder).eos_token_id
    return {
        f"{Path(folder).name}, {dtype}, {kind}": Load(folder, 0, 256, 64, [count], getattr(torch, dtype), eos, heat)
        for dtype in ("bfloat16", "float32")
        for kind, count, heat in (("sampled", len(QUESTIONS), 1.0), ("greedy", 1, 0.0))
    }


def model_of(load: Load) -> PreTrainedModel:
    if isinstance(load.config, str):
        return AutoModel.from_pretrained(load.config, dtype=load.dtype).eval()
    return natural_model(load.config, load.max_new_tokens)


def natural_model(config: PreTrainedConfig, max_new_tokens: int) -> PreTrainedModel:
    """Random weights; the head has a bias that gives the eos about 2.8 times the share of 1 / max_new_tokens.

    The mean of such lengths, cut at the limit, is a third of it.
    """
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    share = 2.8 / max_new_tokens
    head = torch.nn.Linear(model.lm_head.in_features, config.vocab_size)
    torch.nn.init.normal_(head.weight, std=0.02)
    torch.nn.init.zeros_(head.bias)
    head.bias.data[EOS] = math.log(share / (1 - share) * config.vocab_size)
    model.lm_head = head
    return model.to("cuda", torch.bfloat16) if torch.cuda.is_available() else model


def some_prompts(load: Load, count: int) -> list[list[int]]:
    if isinstance(load.config, str):
        tokenizer = AutoTokenizer.from_pretrained(load.config)
        asked = [[{"role": "user", "content": question}] for question in QUESTIONS[:count]]
        return tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(load.longest_prompt // 4, load.longest_prompt + 1, (count,), generator=generator)
    return [torch.randint(1, load.config.vocab_size, (n,), generator=generator).tolist() for n in lengths.tolist()]


def by_engine(model: PreTrainedModel, prompts: list[list[int]], load: Load, seed: int) -> int:
    params = SamplingParams(load.max_new_tokens, load.temperature)
    return sum(len(done.ids) for done in generate(model, prompts, params, load.eos, seed, load.slots))


def by_generate(model: PreTrainedModel, prompts: list[list[int]], load: Load, seed: int) -> int:
    set_seed(seed)
    tokens = 0
    for start in range(0, len(prompts), load.slots):
        batch = prompts[start : start + load.slots]
        width = max(map(len, batch))
        ids = torch.tensor([[load.eos] * (width - len(prompt)) + prompt for prompt in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch], device=model.device)
        written = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=load.max_new_tokens,
            do_sample=load.temperature > 0,
            top_k=0,
            eos_token_id=load.eos,
            pad_token_id=load.eos,
        )[:, width:]
        tokens += int(((written == load.eos).cumsum(1) - (written == load.eos).int() == 0).sum())  # up to the first eos
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
    measure(way, model_of(load), some_prompts(load, count), load, 0)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def compare(name: str, load: Load, count: int, ways: list[str], rounds: int) -> None:
    model, prompts = model_of(load), some_prompts(load, count)
    for way in ways:
        measure(way, model, prompts, load._replace(max_new_tokens=load.max_new_tokens // 4), 0)  # warm
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
        memory = (
            "" if isinstance(load.config, str) else f"{peak_memory(way, load, count):.2f}"
        )  # a model's takes minutes
        print("| " + " | ".join(map(str, (*cells, f"{mean_length:.1f}", memory))) + " |", flush=True)


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    loads = CPU_LOADS | (GPU_LOADS if torch.cuda.is_available() else {})
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=loads, default=list(loads))
    parser.add_argument("--model", metavar="FOLDER", help="the folder of a chat model, which is measured alone")
    args = parser.parse_args()
    _quiet()
    if args.model:
        loads = chat_loads(args.model)
        args.sizes = list(loads)
    print("| model | prompts | way | tokens/s | x generate | x generate, CPU time | mean length | peak GB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.sizes:
        for count in loads[name].prompts:
            compare(name, loads[name], count, list(WAYS), args.rounds)


if __name__ == "__main__":
    main()
