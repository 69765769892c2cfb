"""PPO here against the PPOTrainer of TRL 1.12, the last release that has one, in turns on the same work.

    python benchmarks/ppo_vs_trl.py [--sizes pocket 20m] [--rounds 3] [--iterations 3] [--float32] [--compile]

Each run is a process of its own, and both have the same interpreter, torch and transformers: TRL 1.12 lies in a folder
that its runs alone have in front of their path (build/trl-1.12; it is installed at first use). Both load the same
checkpoints and prompts and do the same number of episodes, epochs, optimizer steps and rows per micro-batch, without
gradient checkpointing, in bfloat16 (autocast; TRL's default) where the machine has it. --compile gives both
torch_compile (TRL 1.12 runs no faster with it). Completions have natural lengths: the policy is made so that it ends
them after a third of the limit on average. glibc keeps freed memory in both.

Seconds are those between the ends of iterations, so neither start nor the first iteration count. Memory is the largest
resident size of the process, on a GPU the largest amount of memory that tensors had. The last line is the ratio.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    TrainerCallback,
    set_seed,
)

TRL = "trl==1.12.0"
TRL_FOLDER = Path(__file__).parent.parent / "build" / "trl-1.12"
KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
PAD, EOS = 0, 1
# What is measured, with the decimals that are shown.
COLUMNS = {
    "episodes/s": 2,
    "completion tokens/s": 0,
    "mean length": 1,
    "processor s an iteration": 2,
    "peak GB": 3,
}
Result = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A policy's shape and the work of one iteration. Reward model and value model have the same shape."""

    architecture: str
    vocabulary: int
    layers: int
    width: int
    heads: int
    episodes: int
    minibatches: int
    epochs: int
    prompt_lengths: tuple[int, int]
    response_length: int


SIZES = {
    "pocket": Size("gpt2", 1280, 4, 128, 4, 128, 2, 4, (8, 24), 48),
    "20m": Size("gpt2", 8192, 10, 384, 6, 64, 2, 4, (8, 24), 64),
    "0.5b": Size("qwen3", 151936, 24, 1024, 16, 256, 4, 1, (64, 512), 256),
}


def main() -> None:
    """Runs both in turns at each size, prints a table and, in the last line, the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: pocket 20m; with a GPU 0.5b")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations of a run; one more comes before")
    parser.add_argument("--folder", type=Path, default=Path("build/ppo_vs_trl"), help="where the models are put")
    parser.add_argument("--float32", action="store_true", help="in place of bfloat16")
    parser.add_argument("--compile", action="store_true", help="with torch_compile")
    parser.add_argument("--side", choices=RUN_SIDE, help=argparse.SUPPRESS)  # the argument of a run's own process
    asked = parser.parse_args()
    if asked.side:
        settings = {"bf16": not asked.float32, "torch_compile": asked.compile}
        run_here(asked.side, SIZES[asked.sizes[0]], asked.folder, asked.iterations, settings)
        return
    install_trl()
    more = ["--iterations", str(asked.iterations)]
    more += ["--float32"] if asked.float32 or not has_bfloat16() else []
    more += ["--compile"] if asked.compile else []
    ratios = [compare(size, asked.rounds, asked.folder / size, more) for size in asked.sizes or default_sizes()]
    print("ratio of episodes/s to TRL 1.12, median (lowest-highest): " + "; ".join(ratios))


def default_sizes() -> list[str]:
    return ["0.5b"] if torch.cuda.is_available() else ["pocket", "20m"]


def has_bfloat16() -> bool:
    """Whether the GPU, or the CPU, multiplies in bfloat16."""
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()


# ---- both sides in turns ----


def install_trl() -> None:
    """TRL alone: what it needs is what this environment has, so that both sides run on the same."""
    if not TRL_FOLDER.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(TRL_FOLDER), TRL]
        subprocess.run(command, check=True)


def compare(name: str, rounds: int, folder: Path, more: list[str]) -> str:
    """Prints a row for each run; returns the ratio of speeds with its spread over the rounds."""
    make_models(SIZES[name], folder)
    speeds, efforts, memories, paddings = [], [], [], []
    print(f"\n{name}, {' '.join(more)}: {SIZES[name]}\n")
    print("| run | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    for number in range(rounds):
        sides = list(RUN_SIDE) if number % 2 == 0 else list(reversed(RUN_SIDE))
        results = {side: run(side, name, folder, more) for side in sides}
        for side, result in results.items():
            cells = [f"{result[key]:.{digits}f}" for key, digits in COLUMNS.items()]
            print(f"| {side} {number + 1} | " + " | ".join(cells) + " |", flush=True)
        ours, theirs = results["chatpipe"], results["trl"]
        speeds.append(ours["episodes/s"] / theirs["episodes/s"])
        paddings.append(100 * ours["padding"])
        efforts.append(theirs["processor s an iteration"] / ours["processor s an iteration"])
        memories.append(ours["peak GB"] / theirs["peak GB"])
    print(f"\n{name}: TRL's processor time relative to ours, median (lowest-highest): {spread(efforts)}")
    print(f"{name}: peak memory relative to TRL's: {spread(memories)}")
    print(f"{name}: % of padding among the tokens that chatpipe's update reads: {spread(paddings)}", flush=True)
    return f"{name} {spread(speeds)}"


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def run(side: str, name: str, folder: Path, more: list[str]) -> Result:
    """One run in a process of its own."""
    env = {**os.environ, **KEEP_FREED_MEMORY, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if side == "trl":
        env["PYTHONPATH"] = os.pathsep.join([str(TRL_FOLDER), env.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--side", side, "--sizes", name, "--folder", str(folder), *more]
    with (folder / f"{side}.log").open("w") as log:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=log)
    if done.returncode:
        sys.exit(f"{side} failed: see {log.name}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- one side, in its own process ----


class Iterations(TrainerCallback):
    """When each iteration was over, in seconds and in processor seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.processor_seconds: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "objective/kl" in logs:
            self.ends.append(time.perf_counter())
            self.processor_seconds.append(time.process_time())


def run_here(side: str, size: Size, folder: Path, iterations: int, settings: dict[str, bool]) -> None:
    """Trains for `iterations` and one before them; prints what was measured as one line of JSON."""
    watch = Iterations()
    arguments = {**common_arguments(size, folder), "total_episodes": size.episodes * (iterations + 1), **settings}
    lengths, padding = RUN_SIDE[side](size, folder, arguments, watch)
    seconds = watch.ends[-1] - watch.ends[0]
    processor = watch.processor_seconds[-1] - watch.processor_seconds[0]
    episodes, length = size.episodes * iterations, statistics.mean(lengths[1:])
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    speed = episodes / seconds
    values = (speed, speed * length, length, processor / iterations, peak / 1e9)
    print("\n" + json.dumps({**dict(zip(COLUMNS, values, strict=True)), "padding": padding}))


def run_chatpipe(size: Size, folder: Path, arguments: dict[str, Any], watch: Iterations) -> tuple[list[float], float]:
    """Trains with this project's PPOTrainer; the mean length of the completions of each iteration, share of padding."""
    from chatpipe.ppo.config import PPOConfig
    from chatpipe.ppo.trainer import PPOTrainer

    rows = size.episodes // size.minibatches
    trainer = PPOTrainer(
        args=PPOConfig(**arguments, per_device_train_batch_size=rows, batch_size=rows),
        train_prompts=json.loads((folder / "prompts.json").read_text()),
        callbacks=[watch],
        **load(folder),
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "response/length" in line]
    return [line["response/length"] for line in lines], statistics.mean(line["perf/padding"] for line in lines)


def run_trl(size: Size, folder: Path, arguments: dict[str, Any], watch: Iterations) -> tuple[list[float], None]:
    """Trains with TRL's; returns the same but for the padding, which it does not tell.

    Its optimizer steps once in `gradient_accumulation_steps` micro-batches for any `num_mini_batches`, so a
    whole rollout is given as one batch: then each minibatch is one step and one micro-batch, as on the other side.
    """
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    prompts = Dataset.from_dict({"input_ids": json.loads((folder / "prompts.json").read_text())})
    lengths, truncate = [], ppo_trainer.truncate_response

    def truncate_and_count(*args: Any) -> Any:
        truncated = truncate(*args)
        lengths.append((truncated != PAD).sum(1))
        return truncated

    ppo_trainer.truncate_response = truncate_and_count
    trainer = PPOTrainer(
        args=PPOConfig(
            **arguments,
            per_device_train_batch_size=size.episodes,
            stop_token="eos",
            num_sample_generations=0,
        ),
        train_dataset=prompts,
        eval_dataset=prompts.select(range(1)),
        callbacks=[watch],
        **load(folder),
    )
    trainer.train()
    counts = torch.cat(lengths).float()
    return [chunk.mean().item() for chunk in counts.split(size.episodes)], None


RUN_SIDE = {"chatpipe": run_chatpipe, "trl": run_trl}


def common_arguments(size: Size, folder: Path) -> dict[str, Any]:
    """The arguments that both sides have in common. The learning rate is too small to change the lengths."""
    return {
        "output_dir": str(folder / "out"),
        "num_mini_batches": size.minibatches,
        "num_ppo_epochs": size.epochs,
        "response_length": size.response_length,
        "temperature": 1.0,
        "missing_eos_penalty": 1.0,
        "learning_rate": 1e-6,
        "gradient_accumulation_steps": 1,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
    }


# ---- models and prompts ----


def make_models(size: Size, folder: Path) -> None:
    """Policy, reward model and prompts, the same at every call."""
    set_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    low, high = size.prompt_lengths
    lengths = torch.randint(low, high + 1, (4 * size.episodes,), generator=generator).tolist()
    prompts = [torch.randint(2, size.vocabulary, (length,), generator=generator).tolist() for length in lengths]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    config = model_config(size)
    policy = AutoModelForCausalLM.from_config(config)
    let_completions_end(policy, prompts[:16], size.response_length)
    policy.save_pretrained(folder / "policy")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "reward")
    words = {"<pad>": PAD, "<eos>": EOS} | {str(number): number for number in range(2, size.vocabulary)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="2")),
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    ).save_pretrained(folder / "policy")


def model_config(size: Size) -> PreTrainedConfig:
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": EOS, "num_labels": 1}
    positions = size.prompt_lengths[1] + size.response_length
    shape = {"vocab_size": size.vocabulary, "hidden_size": size.width, "num_hidden_layers": size.layers}
    shape |= {"num_attention_heads": size.heads, "max_position_embeddings": positions}
    if size.architecture == "gpt2":
        return GPT2Config(**shape, **special, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    heads = {"num_key_value_heads": size.heads // 2, "head_dim": 2 * size.width // size.heads}
    return Qwen3Config(**shape, **heads, **special, intermediate_size=3 * size.width, tie_word_embeddings=True)


@torch.no_grad()
def let_completions_end(policy: PreTrainedModel, prompts: list[list[int]], limit: int) -> None:
    """Make EOS come with the same probability everywhere, such that completions of at most `limit` tokens have a mean
    length of a third of that.

    All embeddings get a common direction, which then is in every hidden state, and EOS's gets more of it. Input and
    output embeddings are one matrix, so this raises the logit of EOS alone. PAD's gets less, so it is never sampled.
    """
    embeddings = policy.get_input_embeddings().weight
    direction = torch.tensor([1.0, -1.0]).repeat(embeddings.shape[1] // 2)
    embeddings += 2 * policy.config.initializer_range * direction
    hidden = torch.cat([policy.base_model(torch.tensor([prompt])).last_hidden_state[0] for prompt in prompts])
    logits = policy.get_output_embeddings()(hidden)
    others = logits.logsumexp(-1).mean()
    odds = math.log(end_probability(limit) / (1 - end_probability(limit)))
    share = (odds + others - logits[:, EOS].mean()) / (hidden @ direction).mean()
    embeddings[EOS] += share * direction
    embeddings[PAD] -= share * direction


def end_probability(limit: int) -> float:
    """p such that lengths of at most `limit`, where each token is the last with probability p, have mean limit / 3."""
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        p = (low + high) / 2
        mean = (1 - (1 - p) ** limit) / p
        low, high = (p, high) if mean > limit / 3 else (low, p)
    return p


def load(folder: Path) -> dict[str, Any]:
    """The models of one side and their tokenizer, under the names that both trainers have for them."""
    reward_models = [AutoModelForSequenceClassification.from_pretrained(folder / "reward") for _ in range(2)]
    return {
        "processing_class": PreTrainedTokenizerFast.from_pretrained(folder / "policy"),
        "model": AutoModelForCausalLM.from_pretrained(folder / "policy"),
        "ref_model": AutoModelForCausalLM.from_pretrained(folder / "policy"),
        "reward_model": reward_models[0],
        "value_model": reward_models[1],
    }


if __name__ == "__main__":
    main()
