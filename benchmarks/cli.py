"""How long the command line takes to answer: help, and a misspelt key.

    python benchmarks/cli.py

Each command runs ten times in a process of its own, after one that warms the disk cache; the median is given.
"""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = (
    ["--help"],
    ["ppo", "--help"],
    ["ppo", "pocket", "ppo.learning_ratee=1e-5"],
    ["run", "pocket", "pretrain.data=missing.txt"],
)
REPEATS = 10


def main() -> None:
    """Prints one row a command."""
    program = shutil.which("chatpipe", path=str(Path(sys.executable).parent)) or "chatpipe"
    print("| command | seconds (median) | lines | exit |")
    print("|---|---|---|---|")
    for words in COMMANDS:
        seconds = []
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
            seconds.append(time.perf_counter() - start)
        lines = len((done.stdout + done.stderr).splitlines())
        print(f"| `chatpipe {' '.join(words)}` | {statistics.median(seconds[1:]):.2f} | {lines} | {done.returncode} |")


if __name__ == "__main__":
    main()
