"""The processes that run a stage together: which of them this one is, how it joins the rest, and what they share.

`run.launch` starts them; torchrun or SLURM may, too. Importing this loads no torch.
"""

import _thread
import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from chatpipe.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from torch import nn

Row = TypeVar("Row")
Result = TypeVar("Result")

LAUNCHED = "CHATPIPE_LAUNCHED"
STOP_FILE = "stop-requested"
POLL_SECONDS = 0.3
LONGEST_WAIT = timedelta(days=7)
"""Tokenising a large corpus, or evaluating a large model, takes hours; the default group gives up after minutes."""


def is_rank() -> bool:
    """Whether this process was started by a launcher and runs as one rank of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def was_launched() -> bool:
    """Whether a `chatpipe` launched this process, perhaps not as a rank: it must not launch again."""
    return LAUNCHED in os.environ


def has_parent() -> bool:
    """Whether a `chatpipe` started this rank: it has checked everything, and reports the result."""
    return is_rank() and was_launched()


def is_main() -> bool:
    """Whether this process is the first of its world, or alone."""
    return os.environ.get("RANK", "0") == "0"


def check_world(processes: int | None) -> None:
    """Raises `UsageError` in a launched process where the world has another size than requested."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    asked = int(os.environ.get(LAUNCHED, processes or world))
    if world != asked:
        raise UsageError(
            f"{asked} processes were asked for, but the launcher started {world}.",
            "Check the accelerate flags and the --launch profile.",
        )


def join_world(processes: int) -> None:
    """Joins the process group; raises `TrainingError` when it is not as large as the world that was launched.

    Under some settings accelerate's launcher starts N processes that each train alone.
    """
    import torch
    from accelerate import PartialState

    found = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT).num_processes
    if found != processes:
        raise TrainingError(
            f"{processes} processes were launched, but they train as {found}.",
            "Check the accelerate flags and the --launch profile.",
        )


def in_world() -> bool:
    """Whether this process has joined the process group of others. Known without importing torch."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def wait_for_all() -> None:
    """Returns when all ranks are here; at once where there are no others."""
    if in_world():
        from torch import distributed

        distributed.barrier()


def over_ranks(
    rows: Sequence[Row],
    evaluate: Callable[[Sequence[Row]], Sequence[Result]],
    *,
    same_rank: Callable[[Row], Hashable] | None = None,
    model: "nn.Module | None" = None,
) -> list[Result]:
    """The results of `evaluate` for all rows, in their order, on every process; each process evaluates a share.

    Every process calls it with the same rows. Process r evaluates rows r, r + world, ...; rows for which `same_rank`
    gives the same value are evaluated by one process, in their order. `evaluate` returns one result for each row it is
    given, possibly none, and may not use collectives. The passes of a sharded `model` (FSDP) are collectives: then
    every process evaluates all rows.
    """
    if not in_world() or (model is not None and _is_sharded(model)):
        return list(evaluate(rows))
    from torch import distributed

    rank, world = distributed.get_rank(), distributed.get_world_size()
    groups: dict[Hashable, int] = {}
    keys = [number if same_rank is None else same_rank(row) for number, row in enumerate(rows)]
    owners = [groups.setdefault(key, len(groups)) % world for key in keys]
    own = evaluate([row for row, owner in zip(rows, owners, strict=True) if owner == rank])
    shares: list[Sequence[Result]] = [[] for _ in range(world)]
    distributed.all_gather_object(shares, list(own))
    results = [iter(share) for share in shares]
    return [next(results[owner]) for owner in owners]


def _is_sharded(model: "nn.Module") -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


# ---- sharing what the main process asks for ----
#
#     score = shared(score)    # in the main process, which calls it as often as it likes, then `end_sharing()`
#     help_scoring(score)      # in all others, until then
#
# `score` gives one result for each item, and is the same function, with the same model, in all processes.

Score = Callable[[Sequence[Row]], list[Result]]


def shared(score: Score[Row, Result]) -> Score[Row, Result]:
    """`score` with its items shared out over all processes; `score` itself where there is one."""
    if not in_world():
        return score

    def score_together(items: Sequence[Row]) -> list[Result]:
        _send(list(items))
        return over_ranks(items, score)

    return score_together


def end_sharing() -> None:
    """Ends `help_scoring` in the other processes."""
    if in_world():
        _send(None)


def help_scoring(score: Score[Any, Any]) -> None:
    """Scores this process's share of what the main process asks, until that calls `end_sharing`."""
    while (items := _send(None)) is not None:
        over_ranks(items, score)


def _send(items: list[Any] | None) -> list[Any] | None:
    """Sends the main process's `items` to all; the others receive them, whatever they pass."""
    from torch import distributed

    sent = [items]
    distributed.broadcast_object_list(sent)
    return sent[0]


# ---- stopping and ending ----


@contextmanager
def heeding_parent(folder: Path) -> Iterator[None]:
    """Within it, a stop that the parent of launched ranks asks for is a KeyboardInterrupt: for work before training.

    The terminal's own Ctrl-C reaches the parent alone.
    """
    if not has_parent():
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            if (folder / STOP_FILE).exists():
                _thread.interrupt_main()
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()


@contextmanager
def main_process_first(folder: Path) -> Iterator[None]:
    """The main process runs the block while the others wait; then they run it and find its work done."""
    if is_main():
        with heeding_parent(folder):
            yield
        wait_for_all()
    else:
        wait_for_all()
        yield


def stop_with_parent() -> None:
    """Has this rank stop as after SIGTERM when the parent that launched it is gone, even killed.

    Ranks that trained on would write into the same folder as those of the next command.
    """

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def end_rank(code: int) -> NoReturn:
    """Ends a process that joined others: threads end, atexit's hooks run, what was printed is written, and it is gone.

    When the interpreter takes itself apart, Gloo's threads outlive it and abort every other process or every thirtieth
    ("terminate called without an active exception", pytorch issue 190489), also after `destroy_process_group`. A rank
    that has done its work would then count as failed, and its launcher would kill those that still evaluate and save.
    """
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads that are no daemons
    atexit._run_exitfuncs()  # trackers send what they still hold
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader may be gone, or it is closed
            stream.flush()
    os._exit(code)
