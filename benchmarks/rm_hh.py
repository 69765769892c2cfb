"""Accuracy of a reward model on hh-rlhf's harmless test pairs: five splits by prompt, from a body made on the spot.

    python benchmarks/rm_hh.py [--data ../shared/data] [--splits 5] [--steps 600] [--threads 2] [--workdir FOLDER]

`chatpipe pretrain small-real` makes the body, from texts that are not of hh-rlhf. Then, split by split, a fifth of
the prompts is put aside by the seed, `chatpipe rm small-real` learns from the others (a tenth of which is its own
validation split), and `chatpipe eval` measures the model on those put aside. Two rules are measured on
the same pairs: always choosing the longer answer, and a logistic regression on word counts and length, learned from all
other pairs.

Shown are each split and the mean over splits with its 95 % interval (Student's t; splits share most of their pairs, so
it is too narrow). With --workdir the body is kept and used again.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PAIRS = "hh_rlhf_harmless_test.jsonl"
TEXTS = "{source: %s/wiki_demo.txt, document: line}, {source: %s/c4_demo.jsonl}, {source: %s/tinyshakespeare.txt}"
TEST_SHARE = 0.2
COLUMNS = ("reward model", "longer wins", "words and length")
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5 % quantile for so many splits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--splits", type=int, default=5, choices=STUDENT_T)
    parser.add_argument("--steps", type=int, default=600, help="of pretraining")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workdir", type=Path)
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.workdir or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        body = pretrain(folder / "body", given.data.resolve(), given.steps)
        print(f"| split | pairs to learn from, to test on | {' | '.join(COLUMNS)} |\n|---|---|---|---|---|", flush=True)
        found = [split(seed, body, given.data / PAIRS, folder / f"split-{seed}") for seed in range(given.splits)]
    means = [with_interval([one[column] for one in found]) for column in range(len(COLUMNS))]
    print(f"| mean | | {' | '.join(means)} |")
    print(f"{(time.perf_counter() - begun) / 60:.1f} minutes")


def pretrain(out: Path, data: Path, steps: int) -> Path:
    """A model folder; an existing one that was made in the same way is kept."""
    sources = TEXTS % (data, data, data)
    result = chatpipe("pretrain", "small-real", f"pretrain.data=[{sources}]", f"pretrain.max_steps={steps}", out=out)
    measured = result["metrics"]
    print(
        f"body: {steps} steps, {measured['bits_per_byte']:.2f} bits per byte, {result['seconds']:.0f} s\n", flush=True
    )
    return out


def split(seed: int, body: Path, pairs: Path, folder: Path) -> tuple[float, float, float]:
    """The accuracies of one split, as `COLUMNS` has them; prints its line."""
    from chatpipe.evaluation.baselines import WordCounts
    from chatpipe.evaluation.pair_accuracy import pair_metrics

    learned, tested = parted(pairs, seed)
    folder.mkdir(exist_ok=True)
    for name, rankings in (("learned", learned), ("tested", tested)):
        lines = (json.dumps(ranking.to_row()) + "\n" for ranking in rankings)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    words = [f"seed={seed}", "rm.max_length=384", "--model", str(body), "--data", str(folder / "learned.jsonl")]
    chatpipe("rm", "small-real", *words, out=folder / "rm")
    model = chatpipe("eval", str(folder / "rm"), "--data", str(folder / "tested.jsonl"))["metrics"]
    others = pair_metrics(tested, WordCounts.learn(learned).scores(tested))
    length = others["length_baseline"]
    longer = length if others["length_rule"] == "longer" else 1 - length
    found = (model["eval_accuracy"], longer, others["eval_accuracy"])
    print(f"| {seed} | {len(learned)}, {len(tested)} | {' | '.join(f'{share:.1%}' for share in found)} |", flush=True)
    return found


def parted(pairs: Path, seed: int) -> tuple[list[Any], list[Any]]:
    """The usable pairs to learn from and to test on, without a common prompt."""
    from chatpipe.data.datasets import load_rankings
    from chatpipe.data.messages import prompt_key
    from chatpipe.recipe.schema import DataBlock

    loaded = load_rankings([DataBlock(source=str(pairs))], {}, "rm.data")
    rankings = [*loaded.train, *loaded.validation]
    prompts = sorted({prompt_key(ranking.prompt) for ranking in rankings})
    random.Random(seed).shuffle(prompts)
    aside = set(prompts[: round(TEST_SHARE * len(prompts))])
    sides: tuple[list[Any], list[Any]] = ([], [])
    for ranking in rankings:
        sides[prompt_key(ranking.prompt) in aside].append(ranking)
    return sides


def chatpipe(*words: str, out: Path | None = None) -> dict[str, Any]:
    """The JSON that a command prints."""
    command = [sys.executable, "-m", "chatpipe", *words, *([] if out is None else ["--out", str(out)]), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def with_interval(shares: list[float]) -> str:
    """Mean over splits, its 95 % interval, and the standard deviation of a split."""
    mean, deviation = statistics.mean(shares), statistics.stdev(shares)
    half = STUDENT_T[len(shares)] * deviation / len(shares) ** 0.5
    return f"**{mean:.1%}** ({mean - half:.1%} to {mean + half:.1%}), sd {100 * deviation:.1f}"


if __name__ == "__main__":
    main()
