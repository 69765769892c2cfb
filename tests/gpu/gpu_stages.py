"""All commands that compute, on the pretended GPU. `test_pretended_gpu.py` runs this file in a process of its own."""

import importlib
import io
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest
from pretended_gpu.plugin import GPU

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
def run(tmp_path_factory, chatpipe, shares) -> Path:
    """The folder of a run of all stages, made once."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for found in pkgutil.iter_modules(stages.__path__):
            module = importlib.import_module(f"chatpipe.stages.{found.name}")
            if hasattr(module, "run"):
                patch.setattr(module, "run", counted(module.run, found.name, shares))
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


@pytest.mark.parametrize("stage", ["pretrain", "sft", "sample", "rm", "ppo"])
def test_a_stage_computes_on_the_gpu(run, shares, stage):
    share, lines = shares[stage]
    assert share < LARGEST_CPU_SHARE, lines


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
