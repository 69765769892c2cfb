"""The memory and time that `chatpipe pretrain --dry-run` predicts, against the run itself.

    python benchmarks/dry_run.py FILE [FILE ...] [--shapes small 20m ...] [--rounds 1] [--processor-time]

For each shape the dry run, then the run on the files, each in a process of its own. Memory is the largest resident set
(VmHWM) of the whole run, with tokenising, evaluations and 3-grams; time is that of its training steps, without
evaluations and resume points. Goals: within 10 % and 15 %. On a machine with other work, use --processor-time: both
sides then count the seconds of the process in place of the clock's. On one idle thread the two are equal.
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
PEAK_OF_THE_PROCESS = """
import atexit, os, re, sys, time
if "PROCESSOR_TIME" in os.environ:
    time.perf_counter = time.process_time
from chatpipe.cli.app import main
def print_peak():
    print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
atexit.register(print_peak)
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true")
    given = parser.parse_args()
    if given.processor_time:
        os.environ["PROCESSOR_TIME"] = "1"
    print("| shape | GiB predicted | reached | ratio | s predicted | taken | ratio | dry run, s |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in given.shapes:
        for _ in range(given.rounds):
            print(row(shape, given.files), flush=True)


def row(shape: str, files: list[str]) -> str:
    words = ["pretrain", f"pretrain.data={','.join(map(os.path.abspath, files))}", "pretrain.bf16=auto", *SHAPES[shape]]
    with tempfile.TemporaryDirectory() as folder:
        words += ["--out", f"{folder}/out", "--processes", "1", "--json"]
        start = time.perf_counter()
        dry, _ = chatpipe([*words, "--dry-run"], f"{folder}/dry")
        dry_seconds = time.perf_counter() - start
        run, reached = chatpipe(words, f"{folder}/run")
    [plan] = dry["stages"]
    predicted, reached_gib = plan["memory_gib"]["total"], reached / 2**30
    seconds = run["metrics"]["train_tokens"] / run["metrics"]["tokens_per_second"]
    cells = [
        predicted,
        reached_gib,
        predicted / reached_gib,
        plan["train_seconds"],
        seconds,
        plan["train_seconds"] / seconds,
    ]
    return f"| {shape} | {' | '.join(f'{cell:.2f}' for cell in cells)} | {dry_seconds:.0f} |"


def chatpipe(words: list[str], log: str) -> tuple[Any, int]:
    """The JSON object that the command prints, and its peak in bytes."""
    with open(log, "w+", encoding="utf-8") as errors:
        done = subprocess.run(
            [sys.executable, "-c", PEAK_OF_THE_PROCESS, *words], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        errors.seek(0)
        lines = errors.read().splitlines()
    if done.returncode:
        sys.exit("\n".join(lines))
    return json.loads(done.stdout), int(lines[-1]) * 1024


if __name__ == "__main__":
    main()
