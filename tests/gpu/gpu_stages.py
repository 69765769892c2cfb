"""All commands that compute, on the pretended GPU. `test_pretended_gpu.py` runs it in a process that has one."""

import gc
import importlib
import io
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest
from pretended_gpu.plugin import GPU
from transformers import Trainer

from chatpipe import stages

SMALL = (
    "pocketworld.people=16",
    "pocketworld.documents=600",
    "pocketworld.conversations=150",
    "pretrain.architecture={n_layer: 2, n_head: 2, n_embd: 64, n_positions: 96, dropout: 0}",
    "pretrain.tokenizer.vocab_size=600",
    "pretrain.block_size=64",
    "pretrain.batch_size=16",
    "pretrain.max_steps=12",
    "pretrain.warmup_steps=2",
    "sft.max_length=96",
    "sft.batch_size=16",
    "sft.num_train_epochs=1",
    "sft.warmup_steps=2",
    "sample.prompts=60",
    "sample.max_new_tokens=24",
    "rm.max_length=96",
    "rm.batch_size=8",
    "rm.num_train_epochs=1",
    "rm.warmup_steps=1",
    "ppo.total_episodes=32",
    "ppo.batch_size=16",
    "ppo.num_mini_batches=2",
    "ppo.num_ppo_epochs=1",
    "ppo.response_length=24",
    "evaluation.prompts=10",
    "evaluation.max_new_tokens=24",
    "checks.reward_at_chance=false",
)


LARGEST_CPU_SHARE = 0.01
"""Of the floating point operations of a stage or command."""


@pytest.fixture(scope="module")
def shares() -> dict[str, tuple[float, Any]]:
    """For each stage of the run: the share of its operations that ran on the CPU, and the lines that asked for most."""
    return {}


@pytest.fixture(scope="module")
def waits() -> dict[str, float]:
    """How often the CPU waited for the GPU in a micro-batch of a trainer, on average, without resume points."""
    return {}


@pytest.fixture(scope="module")
def bytes_in_evaluation() -> dict[str, int]:
    """The bytes on the GPU when the evaluation after a stage's training begins."""
    return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory, chatpipe, shares, waits, bytes_in_evaluation) -> Path:
    """The folder of a run of all stages, made once."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for found in pkgutil.iter_modules(stages.__path__):
            module = importlib.import_module(f"chatpipe.stages.{found.name}")
            if hasattr(module, "run"):
                patch.setattr(module, "run", counted(module.run, found.name, shares))
        watch_training(patch, waits)
        for stage, name in (("rm", "evaluate_ranker"), ("ppo", "evaluate_policy")):
            module = importlib.import_module(f"chatpipe.stages.{stage}")
            patch.setattr(module, name, memory_noted(getattr(module, name), stage, bytes_in_evaluation))
        done = chatpipe("run", "pocket", f"out={folder}", *SMALL)
    assert done.code == 0, done.err[-2000:]
    return folder


def counted(function, stage: str, shares: dict[str, tuple[float, Any]]):
    def run(*args, **kwargs):
        GPU.reset()
        outcome = function(*args, **kwargs)
        shares[stage] = GPU.cpu_share(), GPU.flops["cpu"].most_common(5)
        return outcome

    return run


def watch_training(patch: pytest.MonkeyPatch, waits: dict[str, float]) -> None:
    """Fill `waits` for every training that transformers' Trainer loops over."""
    train, training_step, micro_batches = Trainer.train, Trainer.training_step, []

    def watched(trainer, *args, **kwargs):
        before, micro_batches[:] = GPU.waits.copy(), []
        result = train(trainer, *args, **kwargs)
        counted = {line: count for line, count in (GPU.waits - before).items() if "state.py" not in line}
        waits[type(trainer).__name__] = sum(counted.values()) / max(len(micro_batches), 1)
        return result

    def noted(trainer, *args, **kwargs):
        micro_batches.append(1)
        return training_step(trainer, *args, **kwargs)

    patch.setattr(Trainer, "train", watched)
    patch.setattr(Trainer, "training_step", noted)


def memory_noted(function, stage: str, found: dict[str, int]):
    def evaluate(*args, **kwargs):
        found[stage] = GPU.live_bytes
        return function(*args, **kwargs)

    return evaluate


@pytest.mark.parametrize("stage", ["pretrain", "sft", "sample", "rm", "ppo"])
def test_a_stage_computes_on_the_gpu(run, shares, stage):
    share, lines = shares[stage]
    assert share < LARGEST_CPU_SHARE, lines


def test_a_micro_batch_waits_no_more_often(run, waits):
    """What remains: uploads, transformers' look at masks, and trl's metrics."""
    limits = {"PretrainTrainer": 7, "SftTrainer": 12, "RewardTrainer": 7}
    assert all(0 < waits[trainer] <= limit for trainer, limit in limits.items()), waits


@pytest.mark.parametrize("stage, bytes_per_parameter", [("rm", 2), ("ppo", 6)])
def test_the_optimizer_is_gone_when_the_evaluation_begins(run, bytes_in_evaluation, stage, bytes_per_parameter):
    """On the GPU are a model in bfloat16, and for ppo also the reference and the reward model."""
    parameters = (run / stage / "model.safetensors").stat().st_size / 4
    assert bytes_in_evaluation[stage] <= 1.1 * bytes_per_parameter * parameters


def test_sampling_leaves_no_memory_behind(run):
    """The process that sampled trains too, or launches those that do."""
    gc.collect()
    assert GPU.live_bytes == 0


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "{run}/ppo", "--prompts", "pocketworld", "--limit", 8, "-k", 2, "-o", "{tmp}/answers.jsonl")
        + ("--best-of", 2, "--reward", "{run}/rm"),
        ("rank", "{tmp}/answers.jsonl", "--rater", "{run}/rm"),
        ("eval", "{run}/pretrain", "--data", "pocketworld", "--limit", 20),
        ("eval", "{run}/sft", "--data", "pocketworld", "--limit", 20),
        ("eval", "{run}/rm", "--data", "{rankings}", "--limit", 20),
        ("chat", "{run}/sft", "--max-new-tokens", 8),
    ],
    ids=lambda words: " ".join(map(str, words[:2])),
)
def test_a_command_computes_on_the_gpu(run, gpu, chatpipe, tmp_path_factory, monkeypatch, words):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who are you?\n"))
    places = {"run": run, "tmp": run.parent, "rankings": run / "rank" / "rankings.jsonl"}
    done = chatpipe(*(str(word).format(**places) for word in words))
    assert done.code == 0, done.err[-2000:]
    assert gpu.flops["gpu"], "the command computes something"
    assert gpu.cpu_share() < LARGEST_CPU_SHARE, gpu.flops["cpu"].most_common(5)
