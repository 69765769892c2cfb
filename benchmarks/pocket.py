"""The numbers of `chatpipe run pocket`: seconds, memory, and what each stage reached, on several seeds.

    python benchmarks/pocket.py [SEED ...]        default: 0 1 2

Each run is a process of its own in an empty folder. Prints a Markdown table for docs/benchmarks.md.
"""

import json
import os
import resource
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
    seeds = [int(word) for word in sys.argv[1:]] or [0, 1, 2]
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            print("| " + " | ".join(run(seed, Path(folder) / "run")) + " |", flush=True)


def run(seed: int, out: Path) -> list[str]:
    """One row of the table."""
    command = [sys.executable, "-m", "chatpipe", "run", "pocket", f"seed={seed}", f"out={out}", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    result = json.loads(done.stdout)
    pretrain, sft, rm, ppo = (stage["metrics"] for stage in result["stages"])
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
