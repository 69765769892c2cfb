"""PPO against the exact optimum where every completion is known, and what a reward model's errors do to it.

    python benchmarks/gold_world.py --out DIR [--quick]

The world has completions of six letters, 46,656 in all, and a gold rater (tests/exact/enumerable.py). Two raters are
maximised: a linear reward model fitted to 200 noisy comparisons, and as a control the gold rater itself. For each: the
exact optimum of E[r] - beta KL for every beta, exact best-of-n, and PPOTrainer with several seeds, whose KL and scores
are exact too. Then five seeds of PPO on the gold rater, with the seconds they take.

Prints Markdown tables; writes gold-world.json and gold-world.svg into DIR. --quick: one beta, one seed.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parent.parent / "tests" / "exact"))

import enumerable  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402
from transformers.utils import logging  # noqa: E402

from gold_world_picture import picture  # noqa: E402

BETAS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
BEST_OF = tuple(2**k for k in range(11))
SEEDS = {"linear": (0, 1, 2), "gold": (0,)}
LEARNING_BETA, LEARNING_SEEDS = 0.3, (0, 1, 2, 3, 4)
COMPARISONS = 200

Row = dict[str, float]


# ---- the reward model ----


def linear_rater(world: enumerable.World, gold: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Scores [n] that count letters and pairs of letters: it cannot say that a third of a good letter is too many.

    Logistic regression with a small ridge on COMPARISONS pairs drawn from the reference, ordered by gold with
    Bradley-Terry noise.
    """
    letters = functional.one_hot(world.ids, enumerable.LETTERS).double()
    pairs = torch.einsum("nti,ntj->nij", letters[:, :-1], letters[:, 1:]).flatten(1)
    features = torch.cat([letters.sum(1), pairs], 1)
    one, other = torch.multinomial(ref_logprobs.exp(), 2 * COMPARISONS, replacement=True).view(2, -1)
    preferred = torch.bernoulli(torch.sigmoid(gold[one] - gold[other])) * 2 - 1
    difference = preferred[:, None] * (features[one] - features[other])
    weights = torch.zeros(features.shape[1], dtype=torch.float64)
    ridge = 1e-2 * torch.eye(len(weights), dtype=torch.float64)
    for _ in range(30):  # Newton's method
        wrong = torch.sigmoid(-difference @ weights)
        gradient = -difference.T @ wrong / COMPARISONS + ridge @ weights
        hessian = (difference * (wrong * (1 - wrong))[:, None]).T @ difference / COMPARISONS + ridge
        weights -= torch.linalg.solve(hessian, gradient)
    return enumerable.standardised(features @ weights, ref_logprobs)


def accuracy(rater: Tensor, gold: Tensor, ref_logprobs: Tensor) -> float:
    """How often the rater orders two completions of the reference as gold does, of those that differ."""
    one, other = torch.multinomial(ref_logprobs.exp(), 40_000, replacement=True).view(2, -1)
    differ = gold[one] != gold[other]
    return ((rater[one] > rater[other]) == (gold[one] > gold[other]))[differ].double().mean().item()


# ---- policies, measured exactly ----


class Bench:
    """One rater and the policies that maximise it."""

    def __init__(self, world: enumerable.World, rater: Tensor, gold: Tensor) -> None:
        self.world, self.rater, self.gold = world, rater, gold
        self.ref_model = enumerable.reference(world)
        self.ref_logprobs = world.logprobs(self.ref_model)

    def measured(self, logprobs: Tensor) -> Row:
        """Exact KL to the reference in nats, mean score and mean gold of a policy [n]."""
        return {
            "kl": enumerable.kl(logprobs, self.ref_logprobs),
            "score": enumerable.mean(logprobs, self.rater),
            "gold": enumerable.mean(logprobs, self.gold),
        }

    def best_of(self, n: int) -> Row:
        """The best of n completions by the rater, at random among equals."""
        _, group = self.rater.unique(return_inverse=True)
        mass = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add(0, group, self.ref_logprobs.exp())
        up_to = mass.cumsum(0).clamp(max=1)
        chosen = up_to**n - (up_to - mass).clamp(min=0) ** n
        return {"n": n} | self.measured(self.ref_logprobs + (chosen / mass).log()[group])

    def optimum(self, beta: float) -> Row:
        """The policy that PPO should reach."""
        logprobs, _ = enumerable.optimum(self.ref_logprobs, self.rater, beta)
        return {"beta": beta} | self.measured(logprobs)

    def ppo(self, beta: float, seed: int) -> Row:
        """The policy that PPO does reach; `share` of the gain in E[r] - beta KL that was to be had."""
        started, cpu_started = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            trainer = enumerable.train(self.world, self.ref_model, self.rater, beta, folder, seed=seed)
        spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
        row = self.measured(self.world.logprobs(trainer.model.policy))
        _, best = enumerable.optimum(self.ref_logprobs, self.rater, beta)
        before = enumerable.mean(self.ref_logprobs, self.rater)
        share = (row["score"] - beta * row["kl"] - before) / (best - before)
        print(f"beta {beta}, seed {seed}: {share:.1%} of the gain, {spent['seconds']:.0f} s", file=sys.stderr)
        return {"beta": beta, "seed": seed} | row | {"share": share} | spent


# ---- what is printed ----


def mean_row(rows: list[Row]) -> Row:
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def print_sweep(name: str, optima: list[Row], runs: list[Row]) -> None:
    print(f"\n{name}: optimum and PPO (mean over seeds), KL / score / gold\n")
    print("| beta | optimum | PPO | share of the gain, lowest | CPU seconds a run |\n|---|---|---|---|---|")
    for best in optima:
        mine = [run for run in runs if run["beta"] == best["beta"]]
        reached = mean_row(mine)
        print(
            f"| {best['beta']} | {three(best)} | {three(reached)} | {min(run['share'] for run in mine):.1%} "
            f"| {reached['cpu_seconds']:.0f} |"
        )


def print_best_of(name: str, rows: list[Row]) -> None:
    print(f"\n{name}: best of n, KL / score / gold\n\n| n | exact | log n - (n-1)/n |\n|---|---|---|")
    for row in rows:
        print(f"| {row['n']} | {three(row)} | {math.log(row['n']) - (row['n'] - 1) / row['n']:.2f} |")


def print_learning(runs: list[Row]) -> None:
    right = sum(run["share"] >= 0.97 for run in runs)
    shares = ", ".join(f"{run['share']:.1%}" for run in runs)
    seconds, cpu_seconds = (sum(run[name] for run in runs) for name in ("seconds", "cpu_seconds"))
    print(
        f"\nlearning: {right} of {len(runs)} seeds on the gold world within 3 % of the optimum's gain ({shares}), "
        f"{seconds:.0f} s in all, {cpu_seconds:.0f} s of CPU time"
    )


def three(row: Row) -> str:
    return " / ".join(f"{round(row[name], 2) + 0.0:.2f}" for name in ("kl", "score", "gold"))  # no -0.00


def verdicts(results: dict) -> list[str]:
    """What the sweep should show, and whether it does."""
    linear, gold = results["linear"], results["gold"]
    by_beta = [mean_row([run for run in linear["ppo"] if run["beta"] == best["beta"]]) for best in linear["optimum"]]
    scores, true = [row["score"] for row in by_beta], [row["gold"] for row in by_beta]
    control = [run["gold"] for run in gold["ppo"]]
    runs = linear["ppo"] + gold["ppo"]
    claims = {
        "every PPO run has at least 97 % of the gain": min(run["share"] for run in runs) >= 0.97,
        "none has more than all of it": max(run["share"] for run in runs) <= 1 + 1e-6,
        "the linear rater's score rises as beta falls": scores == sorted(scores),
        "gold rises and falls again": max(true) not in (true[0], true[-1]),
        "control: on gold itself, gold does not fall": control == sorted(control),
    }
    return [f"{'yes' if holds else 'NO'}: {claim}" for claim, holds in claims.items()]


def main() -> None:
    """Runs the sweep, prints the tables and writes the files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="one beta, one seed")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    logging.set_verbosity_error()
    args.out.mkdir(parents=True, exist_ok=True)
    betas = (LEARNING_BETA,) if args.quick else BETAS
    started = time.perf_counter()

    world = enumerable.World(longest=6, ends=False)
    ref_logprobs = world.logprobs(enumerable.reference(world))
    gold = world.gold(ref_logprobs)
    torch.manual_seed(0)
    raters = {"linear": linear_rater(world, gold, ref_logprobs), "gold": gold}
    results = {}
    for name, rater in raters.items():
        bench = Bench(world, rater, gold)
        seeds = SEEDS[name][:1] if args.quick else SEEDS[name]
        results[name] = {
            "accuracy": accuracy(rater, gold, ref_logprobs),
            "optimum": [bench.optimum(beta) for beta in betas],
            "frontier": [bench.optimum(10 ** (k / 10)) for k in range(10, -16, -1)],  # for the picture
            "best_of": [bench.best_of(n) for n in BEST_OF],
            "ppo": [bench.ppo(beta, seed) for beta in betas for seed in seeds],
        }
        print(f"\n## {name}: orders {results[name]['accuracy']:.1%} of pairs as gold does")
        print_sweep(name, results[name]["optimum"], results[name]["ppo"])
        print_best_of(name, results[name]["best_of"])
    results["learning"] = [bench.ppo(LEARNING_BETA, s) for s in LEARNING_SEEDS[: 1 if args.quick else None]]
    print_learning(results["learning"])
    if not args.quick:
        print("\n" + "\n".join(verdicts(results)))
    results["seconds"] = time.perf_counter() - started
    print(f"\n{results['seconds']:.0f} s, {time.process_time():.0f} s of CPU time")
    (args.out / "gold-world.json").write_text(json.dumps(results, indent=1))
    (args.out / "gold-world.svg").write_text(picture(results))


if __name__ == "__main__":
    main()
