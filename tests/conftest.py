"""What all tests share: no network, one thread, the command line in process, and one small run of all four stages."""

import contextlib
import gc
import hashlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

# Before torch is imported, so that it holds here and in every process that a test starts. With more threads than idle
# cores a model of this size is twenty times slower.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from chatpipe.cli.app import main

torch.set_num_threads(1)

# What is imported is no garbage: the collector waits until all of it is there (`pytest_collection_finish`).
gc.disable()

# A shell without job control has what it starts in the background ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A world and models as small as they can be and still learn something. All that the tests rely on is here, so that
# other numbers in the packaged recipe change nothing.
SMALL = (
    "seed=0",
    "pocketworld.seed=0",
    "pocketworld.people=16",
    "pocketworld.documents=2000",
    "pocketworld.conversations=400",
    "pretrain.architecture={n_layer: 2, n_head: 2, n_embd: 64, n_positions: 96, dropout: 0}",
    "pretrain.tokenizer.vocab_size=600",
    "pretrain.block_size=64",
    "pretrain.batch_size=16",
    "pretrain.max_steps=150",
    "pretrain.learning_rate=3e-3",
    "pretrain.warmup_steps=10",
    "pretrain.logging_steps=10",
    "sft.max_length=96",
    "sft.batch_size=16",
    "sft.num_train_epochs=3",
    "sft.learning_rate=1.5e-3",
    "sft.warmup_steps=5",
    "sft.pretrain_mix=0.2",
    "sft.logging_steps=10",
    "sample.prompts=120",
    "sample.k=4",
    "sample.max_new_tokens=24",
    "rank.temperature=0.3",
    "rm.max_length=96",
    "rm.batch_size=8",
    "rm.num_train_epochs=2",
    "rm.learning_rate=5e-4",
    "rm.warmup_steps=2",
    "rm.logging_steps=1",
    "ppo.total_episodes=128",
    "ppo.batch_size=16",
    "ppo.num_mini_batches=2",
    "ppo.num_ppo_epochs=2",
    "ppo.learning_rate=1e-4",
    "ppo.warmup_steps=0",
    "ppo.response_length=24",
    "ppo.kl_coef=0.2",
    "evaluation.prompts=40",
    "evaluation.max_new_tokens=24",
    "checks.reward_at_chance=false",  # on so few validation pairs the interval reaches chance now and then
    *(f"{stage}.bf16=false" for stage in ("pretrain", "sft", "rm", "ppo")),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker is alone with it at the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("e2e", "gpu"))


def pytest_collection_finish() -> None:
    """Lets the garbage collector begin, but never search what was imported: a million objects, a sixth of all time."""
    gc.enable()
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def object(self) -> Any:
        """The one JSON object that `--json` leaves on stdout; fails if there is anything else."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def chatpipe_here(*words: object) -> Ended:
    """Runs the command line in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = ["chatpipe", *map(str, words)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """An empty folder to run commands in, outside of any launcher."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "CHATPIPE_DEBUG", "CHATPIPE_ERROR_FILE", "CHATPIPE_LAUNCHED"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def listing(work) -> Callable[[], dict[str, str]]:
    """Lists every file and folder in the working folder, the files with a hash of their content."""

    def listing() -> dict[str, str]:
        return {
            str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            for path in sorted(work.rglob("*"))
        }

    return listing


@pytest.fixture(scope="session")
def chatpipe() -> Callable[..., Ended]:
    return chatpipe_here


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Values for a recipe that make everything small; those after them win."""
    return SMALL


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what `chatpipe run --json` printed of it."""

    folder: Path
    recipe: Path
    said: Ended

    def stage(self, name: str) -> dict[str, Any]:
        return next(stage for stage in self.said.object["stages"] if stage["stage"] == name)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Run:
    """All four stages of the built-in world, made once; tests must not change it."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    said = chatpipe_here("run", "pocket", f"out={folder}", *SMALL, "--json")
    assert said.code == 0, said.err
    return Run(folder, folder / "recipe.yaml", said)


@pytest.fixture
def two_cores():
    """As many threads as side by side needs; the suite has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
