"""Rounds of `chatpipe run pocket`: what each one gains, and whether a run that is killed again and again ends the same.

    python benchmarks/rounds.py --out DIR [--rounds 3] [--seed 0]
    python benchmarks/rounds.py --out DIR --kills 20      a small run, killed (-9) so often, against one that is not

The first prints a row for each round: the reward model's accuracy, and how often the oracle prefers the policy to
that of the round before and to the fine-tuned model. The second compares the SHA-256 of every file that the stages of
the two runs made, and their rankings.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SMALL = (
    "pocketworld.people=16",
    "pocketworld.documents=2000",
    "pocketworld.conversations=400",
    "pretrain.max_steps=100",
    "pretrain.block_size=64",
    "pretrain.tokenizer.vocab_size=600",
    "pretrain.architecture={n_layer: 2, n_head: 2, n_embd: 64, n_positions: 96}",
    "sft.max_length=96",
    "sft.num_train_epochs=2",
    "sample.prompts=120",
    "sample.max_new_tokens=24",
    "rm.max_length=96",
    "ppo.total_episodes=128",
    "ppo.batch_size=16",
    "ppo.response_length=24",
    "evaluation.prompts=40",
    "evaluation.max_new_tokens=24",
    "checks.reward_at_chance=false",
    *(f"{stage}.save_steps=5" for stage in ("pretrain", "sft", "rm", "ppo")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, help="kill a small run so often instead")
    given = parser.parse_args()
    if given.kills:
        compare_killed(given.out, given.rounds, given.kills, given.seed)
    else:
        show_rounds(run(command(given.out, given.rounds, f"seed={given.seed}")))


def command(out: Path, rounds: int, *values: str) -> list[str]:
    return [sys.executable, "-m", "chatpipe", "run", "pocket", f"rounds={rounds}", f"out={out}", *values, "--json"]


def run(words: list[str]) -> dict[str, Any]:
    done = subprocess.run(words, stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True)
    return json.loads(done.stdout)


def show_rounds(result: dict[str, Any]) -> None:
    print(
        "| round | rm: pairs (interval) | over the policy before | over sft | oracle's score | right | KL | minutes |"
    )
    print("|---|---|---|---|---|---|---|---|")
    made = [stage for stage in result["stages"] if stage["stage"] in ("rm", "ppo")]
    for rm, ppo in zip(made[::2], made[1::2], strict=True):
        seen, rate = ppo["metrics"], "win_rate_over_first" if "round" in ppo else "win_rate"
        print(
            f"| {ppo.get('round', 1)} | {rm['metrics']['eval_accuracy']:.1%} ({rm['metrics']['accuracy_low']:.1%}-"
            f"{rm['metrics']['accuracy_high']:.1%}) | {seen['win_rate']:.1%} ({seen['win_rate_low']:.1%}-"
            f"{seen['win_rate_high']:.1%}) | {seen[rate]:.1%} ({seen[f'{rate}_low']:.1%}-{seen[f'{rate}_high']:.1%}) | "
            f"{seen['oracle_score']:.2f} | {seen['right']:.1%} | {seen['objective/kl']:.1f} | "
            f"{(rm['seconds'] + ppo['seconds']) / 60:.1f} |"
        )


def compare_killed(out: Path, rounds: int, kills: int, seed: int) -> None:
    start = time.monotonic()
    run(command(out / "whole", rounds, *SMALL))
    whole = time.monotonic() - start
    chance = random.Random(seed)
    words = command(out / "killed", rounds, *SMALL)
    done = 0
    while done < kills:
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                code = process.wait(timeout=chance.uniform(2, 2 + 2 * whole / kills))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
                continue
        assert code == 0, f"after {done} kills the same command ended with {code}"
        break
    run(words)
    ours, theirs = made_in(out / "killed"), made_in(out / "whole")
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    print(f"{done} kills in a run of {whole:.0f} s; {len(theirs)} files compared, {len(differing)} differ", *differing)
    sys.exit(bool(differing))


def made_in(folder: Path) -> dict[str, str]:
    """SHA-256 of what the stages made, and of the answers and rankings; these name models by the folder of the run."""
    files = [path for path in folder.rglob("*.safetensors") if "checkpoints" not in path.parts]
    files += [*folder.glob("sample*/completions.jsonl"), *folder.glob("rank*/rankings.jsonl")]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}
    return {name: hashlib.sha256(held.replace(bytes(folder), b"RUN")).hexdigest() for name, held in found.items()}


if __name__ == "__main__":
    main()
