"""The numbers of `chatpipe run pocket`: seconds, memory, and what each stage reached, on several seeds.

    python benchmarks/pocket.py [SEED ...] [--against CHECKOUT]        default: 0 1 2

Each run is a process of its own in an empty folder. With --against each seed is run by another checkout of chatpipe as
well, in turns: its row comes first. Prints a Markdown table for docs/benchmarks.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COLUMNS = (
    "seed",
    "minutes",
    "peak GB",
    "bits per byte (untrained, 3-gram)",
    "sft: right (chance), stops",
    "rm: accuracy (interval; length; annotators)",
    "ppo: win rate (interval), KL, right",
    "verdicts",
)


def main() -> None:
    """Runs every seed in turn and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--against", type=Path, help="another checkout of chatpipe, run in turns")
    args = parser.parse_args()
    checkouts = [Path(__file__).parents[1]]
    if args.against is not None:
        checkouts.insert(0, args.against.resolve())
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for seed in args.seeds:
        for checkout in checkouts:
            with tempfile.TemporaryDirectory() as folder:
                print("| " + " | ".join(run(checkout, seed, Path(folder) / "run")) + " |", flush=True)


def run(checkout: Path, seed: int, out: Path) -> list[str]:
    """One row of the table: `run pocket` by the sources of a checkout."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, "-m", "chatpipe", "run", "pocket", f"seed={seed}", f"out={out}", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=out.parent)
    with process.stdout as printed:
        text = printed.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"`{' '.join(command)}` failed")
    peak = usage.ru_maxrss / 1e6
    result = json.loads(text)
    metrics = {stage["stage"]: stage["metrics"] for stage in result["stages"]}
    pretrain, sft, rm, ppo = (metrics[name] for name in ("pretrain", "sft", "rm", "ppo"))
    verdicts = ", ".join(stage["verdict"]["status"] for stage in result["stages"])
    return [
        str(seed),
        f"{result['seconds'] / 60:.1f}",
        f"{peak:.2f}",
        f"{pretrain['bits_per_byte']:.2f} ({pretrain['untrained_bits_per_byte']:.2f}, "
        f"{pretrain['trigram_bits_per_byte']:.2f})",
        f"{sft['right']:.1%} ({sft['chance']:.1%}), {sft['eos_share']:.1%}",
        f"{rm['eval_accuracy']:.1%} ({rm['accuracy_low']:.1%}-{rm['accuracy_high']:.1%}; "
        f"{rm['length_baseline']:.1%}; {rm['annotator_agreement']:.1%})",
        f"{ppo['win_rate']:.1%} ({ppo['win_rate_low']:.1%}-{ppo['win_rate_high']:.1%}), "
        f"{ppo['objective/kl']:.1f}, {ppo['right']:.1%}",
        verdicts,
    ]


if __name__ == "__main__":
    main()
