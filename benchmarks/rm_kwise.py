"""Prompts per second of chatpipe's K-wise reward training against trl's RewardTrainer on the same rankings as pairs.

    python benchmarks/rm_kwise.py [--k 4 9] [--rounds 3] [--answers 2560] [--threads 2] [--plain]

A ranking of K answers is C(K,2) pairs to trl, which reads both answers of each: K (K-1) rows a prompt, where chatpipe
reads K. Both peers get the same model of 2.1 M parameters with the same score head, the same token ids, the same
arguments, and optimizer steps over the pairs of 8 prompts, in micro-batches of as many rows (for trl several a
step, since one of all its rows would be slower). Both learn for one epoch, float32, without gradient checkpointing,
with freed memory kept by glibc. trl's model is as transformers makes it, chatpipe's as its stage loads it (attention
that is quicker here); with --plain both are as transformers makes it. Each run is a process of its own, in turns; each
round has other rankings.

What is to be learned: every word has a value, and of two answers the one whose words are worth more on average is the
better, as far as an annotator with some noise can tell. Accuracy is over all pairs of prompts that were not trained on.

Shown are medians over the rounds with the lowest and the highest, by the clock after the first steps.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

LAYERS, HEADS, WIDTH, CONTEXT, VOCABULARY = 4, 4, 192, 128, 600
PROMPTS_A_STEP, WARM_UP, FOR_VALIDATION = 8, 3, 400
LEARNING_RATE = 1e-3
WORDS = [first + second for first in ("ba", "ke", "li", "mo", "nu", "ra") for second in ("ran", "lek", "mis", "dov")]
NOISE = 0.1
KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
PEERS = ("chatpipe", "trl")
Result = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[4, 9], help="answers to a prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=2560, help="to learn from, in all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="chatpipe's trainer on the model that trl gets")
    parser.add_argument("--one", choices=PEERS, help=argparse.SUPPRESS)  # the argument of a run's own process
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        steps = given.answers // (PROMPTS_A_STEP * given.k[0])
        print(json.dumps(train(given.one, given.k[0], steps, given.seed, given.plain)))
        return
    print("| K | chatpipe, prompts/s | trl, prompts/s | ratio | accuracy | trl's | difference in points |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    for k in given.k:
        print(row(k, compare(k, given)), flush=True)


def compare(k: int, given: argparse.Namespace) -> dict[str, list[Result]]:
    """What both peers did in each round, in turns."""
    found: dict[str, list[Result]] = {peer: [] for peer in PEERS}
    environment = {**os.environ, **KEEP_FREED_MEMORY, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(given.threads)}
    for number in range(given.rounds):
        for peer in sorted(PEERS, reverse=number % 2 == 1):
            words = [sys.executable, __file__, "--one", peer, "--k", str(k), "--answers", str(given.answers)]
            words += ["--seed", str(number), *["--plain"] * given.plain]
            done = subprocess.run(words, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(f"{peer} failed:\n{done.stderr[-2000:]}")
            found[peer].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def row(k: int, found: dict[str, list[Result]]) -> str:
    """A line of the table."""
    rounds = list(zip(found["chatpipe"], found["trl"], strict=True))
    speeds = [spread([one["prompts_per_second"] for one in found[peer]], 1) for peer in PEERS]
    ratios = [ours["prompts_per_second"] / theirs["prompts_per_second"] for ours, theirs in rounds]
    accuracies = [f"{statistics.mean(one['accuracy'] for one in found[peer]):.1%}" for peer in PEERS]
    differences = [100 * (ours["accuracy"] - theirs["accuracy"]) for ours, theirs in rounds]
    mean = f"{statistics.mean(differences):+.2f} ({min(differences):+.2f} to {max(differences):+.2f})"
    return f"| {k} | {' | '.join(speeds)} | **{spread(ratios, 2)}** | {' | '.join(accuracies)} | {mean} |"


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


# ---- what is learned ----


def rankings(count: int, k: int, seed: int) -> list[Any]:
    """Prompts of 4 to 12 words, each with k answers of 4 to 24 and their ranks by an annotator; no ties."""
    from chatpipe.data.rankings import Ranking

    values = {word: random.Random(word).gauss(0, 1) for word in WORDS}
    draw = random.Random(seed)
    found = []
    for number in range(count):
        prompt = f"{number} {' '.join(draw.choices(WORDS, k=draw.randint(4, 12)))}"
        answers = [answer(draw, values) for _ in range(k)]
        worth = [statistics.mean(values[word] for word in words) + draw.gauss(0, NOISE) for words in answers]
        order = sorted(worth, reverse=True)
        ranks = [order.index(value) + 1 for value in worth]
        found.append(Ranking([{"role": "user", "content": prompt}], [" ".join(words) for words in answers], ranks))
    return found


def answer(draw: random.Random, values: dict[str, float]) -> list[str]:
    """Words of an author who prefers good ones or bad ones, so that answers differ by more than chance."""
    taste = draw.gauss(0, 0.5)
    return draw.choices(WORDS, [math.exp(taste * values[word]) for word in WORDS], k=draw.randint(4, 24))


# ---- one peer, in its own process ----


def train(peer: str, k: int, steps: int, seed: int, plain: bool) -> Result:
    """Prompts per second after the first steps, and the accuracy on validation prompts after the last."""
    from transformers import PrinterCallback, TrainerCallback, set_seed

    from chatpipe.data.chat_template import add_chat_template
    from chatpipe.evaluation.pair_accuracy import pair_metrics, ranking_scores
    from chatpipe.models.new_model import build_model, model_config, train_tokenizer
    from chatpipe.models.pretrained import pick_kernels
    from chatpipe.recipe.architectures import Architecture
    from chatpipe.reward.reward_model import new_reward_model
    from chatpipe.reward.training_data import encode_rankings
    from chatpipe.training.machine import quiet_libraries

    class Clock(TrainerCallback):
        """When each step ended."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    quiet_libraries()
    both = rankings(PROMPTS_A_STEP * steps + FOR_VALIDATION, k, seed)
    learned, validation = both[FOR_VALIDATION:], both[:FOR_VALIDATION]
    tokenizer = train_tokenizer((text for ranking in learned for text in ranking.responses), VOCABULARY, CONTEXT)
    add_chat_template(tokenizer)
    encoded = encode_rankings(tokenizer, learned, CONTEXT).rankings
    assert len(encoded) == PROMPTS_A_STEP * steps
    set_seed(seed)
    shape = Architecture(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, n_positions=CONTEXT)
    body = build_model("gpt2", model_config(shape, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id))
    with tempfile.TemporaryDirectory() as folder:
        body.save_pretrained(folder)
        model = new_reward_model(folder, tokenizer.pad_token_id, seed)
        if peer == "chatpipe":
            trainer = chatpipe_trainer(model if plain else pick_kernels(model), encoded, seed, folder)
        else:
            trainer = trl_trainer(model, tokenizer, encoded, k, seed, folder)
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    assert len(clock.ends) == steps
    scores = ranking_scores(model, tokenizer, validation, CONTEXT)
    return {
        "prompts_per_second": PROMPTS_A_STEP * (steps - WARM_UP) / (clock.ends[-1] - clock.ends[WARM_UP - 1]),
        "accuracy": pair_metrics(validation, scores)["eval_accuracy"],
    }


def chatpipe_trainer(model: Any, encoded: list[Any], seed: int, folder: str) -> Any:
    """One micro-batch a step, as the stage has it by default."""
    from transformers import TrainingArguments

    from chatpipe.recipe.schema import Rm
    from chatpipe.reward.reward_trainer import RewardTrainer
    from chatpipe.training.arguments import training_arguments

    once = {"num_train_epochs": 1, "save_strategy": "no"}
    args = training_arguments(TrainingArguments, section(Rm), "rm", Path(folder), seed, 1, **once)
    return RewardTrainer(model, args, encoded)


def trl_trainer(model: Any, tokenizer: Any, encoded: list[Any], k: int, seed: int, folder: str) -> Any:
    """All pairs of as many prompts a step, in micro-batches of as many rows as chatpipe's."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from chatpipe.recipe.schema import Rm
    from chatpipe.training.arguments import training_arguments

    pairs = [
        {"chosen_ids": sequences[better], "rejected_ids": sequences[worse]}
        for sequences, ranks in ((ranking.sequences, ranking.judgements[0].ranks) for ranking in encoded)
        for better, worse in (sorted(pair, key=ranks.__getitem__) for pair in combinations(range(k), 2))
    ]
    micro = PROMPTS_A_STEP * k // 2
    args = training_arguments(
        RewardConfig,
        section(Rm),
        "rm",
        Path(folder),
        seed,
        1,
        num_train_epochs=1,
        save_strategy="no",
        max_length=CONTEXT,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=PROMPTS_A_STEP * k * (k - 1) // 2 // micro,
    )
    return RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)


def section(kind: Any) -> Any:
    return kind(learning_rate=LEARNING_RATE, warmup_steps=4, batch_size=PROMPTS_A_STEP, max_length=CONTEXT)


if __name__ == "__main__":
    main()
