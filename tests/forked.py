"""Processes of their own for the price of a fork: their server has imported everything and done nothing else."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from chatpipe.cli.app import main

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "pytest",
        "chatpipe.cli.app",
        *(f"chatpipe.stages.{stage}" for stage in ("pretrain", "sft", "rank", "rm", "ppo")),
        "transformers.models.gpt2.modeling_gpt2",
    ]
)


def environment_of_rank(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun adds to the environment of a process of `world` on CPUs."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(function: Callable[..., Any], *arguments: Any, **how: Any) -> None:
    """Runs `function(*arguments, **how)` in both ranks of a world; fails where one fails."""
    port = free_port()
    ranks = [start(partial(function, **how), *arguments, **environment_of_rank(rank, 2, port)) for rank in range(2)]
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]


def start(function: Callable[..., Any], *arguments: Any, **environment: str) -> ForkServerProcess:
    """Starts `function(*arguments)` in a process with this process's environment and `environment`."""
    process = processes.Process(target=_run, args=(os.environ | environment, os.getcwd(), function, arguments))
    process.start()
    return process


def _run(environment: dict[str, str], folder: str, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores Ctrl-C
    torch.set_num_threads(1)
    function(*arguments)


@dataclass
class Command:
    """A chatpipe command that runs in a process of its own."""

    process: ForkServerProcess
    out: Path
    err: Path

    @classmethod
    def start(cls, words: Sequence[object], folder: Path, **environment: str) -> "Command":
        """Its stdout and stderr are files in `folder`."""
        out, err = (folder / f"{name}-{environment.get('RANK', 0)}.txt" for name in ("stdout", "stderr"))
        return cls(start(_chatpipe, [str(word) for word in words], out, err, **environment), out, err)

    def ended(self, timeout: float = 120) -> tuple[int, str, str]:
        """Waits; returns the exit code, negative after a signal, and what it wrote to stdout and stderr."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it has not ended"
        return self.process.exitcode, self.out.read_text(), self.err.read_text()


def _chatpipe(words: Sequence[str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["chatpipe", *words]
    main()
