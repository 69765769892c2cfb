"""Processes of their own, most for the price of a fork: their server has imported everything and done nothing else.

A fork ends by `os._exit`. Where the end of the interpreter is what is tested, `start_anew` pays for a start.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
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
    """What torchrun adds to the environment of a process of `world`."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(function: Callable[..., Any], *arguments: Any, **how: Any) -> None:
    """Runs `function(*arguments, **how)` in both ranks of a world on CPUs; fails where one fails or does not end."""
    port = free_port()
    environments = [environment_of_rank(rank, 2, port) | {"ACCELERATE_USE_CPU": "1"} for rank in range(2)]
    ranks = [start(partial(function, **how), *arguments, **environment) for environment in environments]
    try:
        for rank in ranks:
            rank.join(120)
        assert [rank.exitcode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            end(rank)


def start(function: Callable[..., Any], *arguments: Any, **environment: str) -> ForkServerProcess:
    """Starts `function(*arguments)` in a process with this process's environment and `environment`."""
    process = processes.Process(target=_run, args=(os.environ | environment, os.getcwd(), function, arguments))
    process.start()
    return process


def end(process: ForkServerProcess) -> None:
    """Kills the process where it has not ended: pytest would wait for it at its own end."""
    process.kill()
    process.join()


def _run(environment: dict[str, str], folder: str, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores Ctrl-C
    torch.set_num_threads(1)
    function(*arguments)


@dataclass
class Command:
    """A chatpipe command that runs in a fork."""

    process: ForkServerProcess
    out: Path
    err: Path

    @classmethod
    def start(cls, words: Sequence[object], folder: Path) -> "Command":
        """Its stdout and stderr are files in `folder`."""
        out, err = folder / "stdout.txt", folder / "stderr.txt"
        return cls(start(_chatpipe, [str(word) for word in words], out, err), out, err)

    def ended(self, timeout: float = 120) -> tuple[int, str, str]:
        """Waits; returns the exit code, negative after a signal, and what it wrote to stdout and stderr."""
        try:
            self.process.join(timeout)
            assert self.process.exitcode is not None, "it has not ended"
            return self.process.exitcode, self.out.read_text(), self.err.read_text()
        finally:
            end(self.process)


def _chatpipe(words: Sequence[str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["chatpipe", *words]
    main()


# ---- processes that nothing is shared with ----


def start_anew(words: Sequence[object], **environment: str) -> "subprocess.Popen[str]":
    """Starts a chatpipe command as a shell does."""
    command = [sys.executable, "-m", "chatpipe", *map(str, words)]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def all_ended(processes: "Sequence[subprocess.Popen[str]]", timeout: float = 120) -> list[tuple[int, str, str]]:
    """Waits; returns each one's exit code, negative after a signal, and what it wrote to stdout and stderr."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
        return [(process.returncode, out, err) for process, (out, err) in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.wait()
