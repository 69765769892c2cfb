"""Seconds of training until the validation loss on tinyshakespeare is 1.88 nats a character, against nanoGPT.

    python benchmarks/time_to_loss.py --data tinyshakespeare.txt --nanogpt CHECKOUT [--rounds 1]

chatpipe trains the recipe `shakespeare-quick`, nanoGPT (a checkout of https://github.com/karpathy/nanoGPT) the CPU
setting of its README; both train on the first nine tenths of the text and are evaluated on the
last. The time is that of the steps up to the first evaluation at or below 1.88, without evaluations and without the
start, in turns.
"""

import argparse
import json
import math
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = 1.88
TOKENS_PER_STEP = 12 * 64
NANOGPT_STEPS, NANOGPT_EVERY = 2000, 125


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tinyshakespeare as one text file")
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    print("| | steps | seconds | ms a step | validation loss there |\n|---|---|---|---|---|")
    ratios = []
    for _ in range(given.rounds):
        seconds = {}
        for name, train in (("chatpipe", train_chatpipe), ("nanoGPT", train_nanogpt)):
            evaluations, step_seconds = train(given)
            steps, loss = first_below(name, evaluations)
            seconds[name] = steps * step_seconds
            print(f"| {name} | {steps} | {seconds[name]:.1f} | {1000 * step_seconds:.1f} | {loss:.3f} |", flush=True)
        ratios.append(seconds["chatpipe"] / seconds["nanoGPT"])
    print(f"chatpipe takes {statistics.median(ratios):.2f} of nanoGPT's time ({min(ratios):.2f} to {max(ratios):.2f})")


def first_below(name: str, evaluations: list[tuple[int, float]]) -> tuple[int, float]:
    """The first (step, loss) at the target; where nanoGPT has none, its last: its time is then underestimated.

    Ends the program where chatpipe never gets there.
    """
    for step, loss in evaluations:
        if loss <= TARGET:
            return step, loss
    if name == "chatpipe":
        sys.exit(f"chatpipe never got to {TARGET}: {evaluations}")
    print(f"{name} never got to {TARGET}; its last evaluation is taken, and the ratio is an upper bound")
    return evaluations[-1]


def train_chatpipe(given: argparse.Namespace) -> tuple[list[tuple[int, float]], float]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "chatpipe", "pretrain", "shakespeare-quick", f"pretrain.data={given.data.resolve()}"]
        words += ["pretrain.eval_steps=20", "pretrain.logging_steps=20", "--out", f"{folder}/out"]
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        rows = [json.loads(line) for line in Path(folder, "out", "metrics.jsonl").read_text().splitlines()]
    speed = statistics.median(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)
    return [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row], TOKENS_PER_STEP / speed


def train_nanogpt(given: argparse.Namespace) -> tuple[list[tuple[int, float]], float]:
    import numpy as np

    text = given.data.read_text(encoding="utf-8")
    number = {character: at for at, character in enumerate(sorted(set(text)))}
    ids = np.array([number[character] for character in text], dtype=np.uint16)
    cut = math.floor(len(ids) * 0.9)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(number)}))
        ids[:cut].tofile(Path(folder, "train.bin"))
        ids[cut:].tofile(Path(folder, "val.bin"))
        settings = {
            "dataset": folder, "out_dir": folder, "device": "cpu", "dtype": "float32", "compile": False,
            "eval_interval": NANOGPT_EVERY, "eval_iters": 100, "log_interval": 1, "block_size": 64, "batch_size": 12,
            "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": NANOGPT_STEPS, "lr_decay_iters": NANOGPT_STEPS,
            "dropout": 0.0, "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "min_lr": 1e-4, "beta2": 0.99,
            "warmup_iters": 100,
        }  # fmt: skip
        words = [sys.executable, "train.py", *(f"--{key}={value}" for key, value in settings.items())]
        done = subprocess.run(words, cwd=given.nanogpt, capture_output=True, text=True, check=True)
    losses = re.findall(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)", done.stdout)
    times = [float(found) / 1000 for found in re.findall(r"time ([\d.]+)ms", done.stdout)]
    return [(int(step), float(loss)) for step, loss in losses], statistics.median(times)


if __name__ == "__main__":
    main()
