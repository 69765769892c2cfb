"""The memory and time that a stage's `--dry-run` predicts, against the run itself.

    python benchmarks/dry_run.py FILE [FILE ...] [--shapes small 20m ...] [--rounds 1] [--processor-time]
    python benchmarks/dry_run.py --model FOLDER --shapes sft rm ppo --chats FILE --pairs FILE [--processor-time]

For each shape the dry run, then the run on the files, each in a process of its own. FILEs are text for pretraining; the
model is fine-tuned on chats, made a reward model on pairs, and trained with PPO on the prompts of the chats, where a
function rewards short answers. Memory is the largest resident set (VmHWM) of the whole run, with tokenising and
evaluations; time is that of its training steps without resume points, and that of its evaluation. Goals for
pretraining: within 10 % and 15 %. On a machine with other work, use --processor-time: both sides then count the seconds
of the process in place of the clock's. On one idle thread the two are equal.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

SHAPES: dict[str, list[str]] = {
    # nanoGPT's CPU setting
    "small": [
        "pretrain.tokenizer={kind: character, vocab_size: 1000}",
        "pretrain.architecture={family: gpt2, n_layer: 4, n_head: 4, n_embd: 128, n_positions: 64}",
        "pretrain.block_size=64",
        "pretrain.batch_size=12",
        "pretrain.max_steps=300",
        "pretrain.eval_steps=100",
    ],
    "modern-10m": [
        "pretrain.tokenizer.vocab_size=4096",
        "pretrain.architecture={preset: modern-10m}",
        "pretrain.optimizer=muon",
        "pretrain.block_size=256",
        "pretrain.batch_size=8",
        "pretrain.max_steps=20",
        "pretrain.eval_steps=10",
    ],
    "20m": [
        "pretrain.tokenizer.vocab_size=8192",
        "pretrain.architecture={preset: gpt2-20m}",
        "pretrain.block_size=256",
        "pretrain.batch_size=8",
        "pretrain.max_steps=20",
        "pretrain.eval_steps=10",
    ],
}
STAGES: dict[str, list[str]] = {
    "sft": ["sft.batch_size=8", "sft.max_steps=4", "evaluation.prompts=16", "evaluation.max_new_tokens=64"],
    "rm": ["rm.batch_size=8"],
    "ppo": [
        "ppo.reward=[{function: rewards:short}]",
        "ppo.total_episodes=64",
        "ppo.batch_size=16",
        "ppo.num_mini_batches=2",
        "ppo.num_ppo_epochs=2",
        "ppo.response_length=32",
        "evaluation.prompts=16",
        "evaluation.max_new_tokens=32",
    ],
}
REWARD = "def short(prompts, completions):\n    return [-len(text) / 50 for text in completions]\n"
PEAK_OF_THE_PROCESS = """
import atexit, os, re, sys, time
if "PROCESSOR_TIME" in os.environ:
    time.perf_counter = time.monotonic = time.process_time
from chatpipe.cli.app import main
def print_peak():
    print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
atexit.register(print_peak)
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES, *STAGES], default=list(SHAPES))
    parser.add_argument("--model")
    parser.add_argument("--chats")
    parser.add_argument("--pairs")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true")
    given = parser.parse_args()
    if given.processor_time:
        os.environ["PROCESSOR_TIME"] = "1"
    print(
        "| shape | GiB predicted | reached | ratio | s predicted | taken | ratio | evaluation, s | taken | dry run, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for shape in given.shapes:
        for _ in range(given.rounds):
            print(row(shape, words_of(shape, given)), flush=True)


def words_of(shape: str, given: argparse.Namespace) -> list[str]:
    """The command of a shape."""
    if shape in SHAPES:
        return ["pretrain", f"pretrain.data={','.join(map(os.path.abspath, given.files))}", *SHAPES[shape]]
    data = given.pairs if shape == "rm" else given.chats
    return [shape, "--model", os.path.abspath(given.model), "--data", os.path.abspath(data), *STAGES[shape]]


def row(shape: str, words: list[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/rewards.py", "w", encoding="utf-8") as file:
            file.write(REWARD)
        words = [*words, "--out", f"{folder}/out", "--processes", "1", "--json"]
        start = time.perf_counter()
        dry, _ = chatpipe([*words, "--dry-run"], folder, "dry")
        dry_seconds = time.perf_counter() - start
        run, reached = chatpipe(words, folder, "run")
    [plan], metrics = dry["stages"], run["metrics"]
    predicted, reached_gib = plan["memory_gib"]["total"], reached / 2**30
    seconds = metrics["train_seconds"]
    if shape in SHAPES:
        seconds = metrics["train_tokens"] / metrics["tokens_per_second"]
    evaluations = plan.get("evaluation_seconds", float("nan")), metrics["evaluation_seconds"]
    cells = [
        predicted,
        reached_gib,
        predicted / reached_gib,
        plan["train_seconds"],
        seconds,
        plan["train_seconds"] / seconds,
        *evaluations,
    ]
    return f"| {shape} | {' | '.join(f'{cell:.2f}' for cell in cells)} | {dry_seconds:.0f} |"


def chatpipe(words: list[str], folder: str, log: str) -> tuple[Any, int]:
    """The JSON object that the command prints, run in `folder`, and its peak in bytes."""
    with open(f"{folder}/{log}", "w+", encoding="utf-8") as errors:
        command = [sys.executable, "-c", PEAK_OF_THE_PROCESS, *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder)
        errors.seek(0)
        lines = errors.read().splitlines()
    if done.returncode:
        sys.exit("\n".join(lines))
    return json.loads(done.stdout), int(lines[-1]) * 1024


if __name__ == "__main__":
    main()
