"""Several processes: a stage starts itself again through `accelerate launch`, once, and follows how it goes.

Two traps are closed here. Without `--multi_gpu`, accelerate starts only one process on a CPU machine; and its launcher
turns every failure into exit 1 with a screenful, so a failing rank leaves its error in a file for the parent.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatpipe.errors import ChatpipeError, ExitCode, TrainingError, UsageError
from chatpipe.training.progress import follow

LAUNCHED = "CHATPIPE_LAUNCHED"
LOG_FILE = "launch.log"
ERROR_FILE = "launch-error.json"
POLL_SECONDS = 0.3


def accelerate_command(
    processes: int, profile: str | None, flags: Sequence[str], arguments: Sequence[str]
) -> list[str]:
    """The command that starts `chatpipe ARGUMENTS` in `processes` processes."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if profile is not None:
        command += ["--config_file", profile]
    command += ["--multi_gpu", "--num_processes", str(processes), *_unless_given(flags), *flags]
    return [*command, "--module", "chatpipe", *arguments]


def is_rank() -> bool:
    """Whether this process was started by a launcher and runs as one rank of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def has_parent() -> bool:
    """Whether a `chatpipe` started this rank: it has checked everything, and says what comes of it."""
    return is_rank() and LAUNCHED in os.environ


def speaks() -> bool:
    """Whether this process says what comes of it: not a rank whose parent does so, nor any rank but the first."""
    return not has_parent() and os.environ.get("RANK", "0") == "0"


def check_world(processes: int | None) -> None:
    """Raises `UsageError` in a launched rank when the world is not the one that was asked for."""
    world = int(os.environ["WORLD_SIZE"])
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

    found = PartialState(cpu=not torch.cuda.is_available()).num_processes
    if found != processes:
        raise TrainingError(
            f"{processes} processes were launched, but they train as {found}.",
            "Check the accelerate flags and the --launch profile.",
        )


def stop_with_parent() -> None:
    """Has this rank stop as after SIGTERM when the parent that launched it is gone, even killed.

    Ranks that trained on would write into the same folder as those of the next command.
    """

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def launch(command: Sequence[str], processes: int, stage: str, folder: Path) -> None:
    """Runs `command` and follows the stage's metrics; raises the error of the rank that failed, if one did."""
    folder.mkdir(parents=True, exist_ok=True)
    error_file = folder / ERROR_FILE
    error_file.unlink(missing_ok=True)
    environment = {**os.environ, LAUNCHED: str(processes), "CHATPIPE_ERROR_FILE": str(error_file)}
    if not _sees_gpu():
        environment["ACCELERATE_USE_CPU"] = "1"
        # The launcher sets one thread a rank where nothing is said; two ranks on two cores want just that.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    with (folder / LOG_FILE).open("ab") as log:
        # A session of its own: Ctrl-C at the terminal must reach the parent alone, which then asks the ranks to save.
        # A pipe for stdin, which nothing is written to: the ranks see it close when this process is gone.
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    with follow(stage, folder) as show:
        interrupted = _wait(child, folder, show)
    if child.returncode != 0 or interrupted:
        raise _error_of_rank(error_file, folder, interrupted)


def report_error(problem: ChatpipeError) -> bool:
    """Leaves a rank's error for the parent that launched it; False where there is no such parent.

    The first error counts: the other ranks fail because of it.
    """
    path = os.environ.get("CHATPIPE_ERROR_FILE")
    if path is None:
        return False
    if not Path(path).exists():
        error = {"message": problem.message, "hint": problem.hint, "exit_code": int(problem.exit_code)}
        Path(path).write_text(json.dumps(error), encoding="utf-8")
    return True


def _wait(child: "subprocess.Popen[bytes]", folder: Path, show: Any) -> bool:
    """Waits for the ranks; Ctrl-C or SIGTERM asks them to save and stop, a second one ends them."""
    from chatpipe.training.interrupt import STOP_FILE

    asked = 0

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        asked += 1
        (folder / STOP_FILE).touch()
        if asked > 1:
            os.killpg(child.pid, signal.SIGTERM)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while child.poll() is None:
            show()
            time.sleep(POLL_SECONDS)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return asked > 0


def _error_of_rank(error_file: Path, folder: Path, interrupted: bool) -> ChatpipeError:
    if error_file.exists():
        told = json.loads(error_file.read_text(encoding="utf-8"))
        error_file.unlink()
        problem = ChatpipeError(told["message"], told["hint"])
        problem.exit_code = ExitCode(told["exit_code"])
        return problem
    if interrupted:
        problem = ChatpipeError("Stopped before a resume point could be saved.", "The same command goes on.")
        problem.exit_code = ExitCode.INTERRUPTED
        return problem
    return TrainingError("A process ended without saying why.", f"Its output is in {folder / LOG_FILE}.")


def _unless_given(flags: Sequence[str]) -> list[str]:
    """Flags that keep accelerate from asking back or guessing, where the user has not given them."""
    ours = {"--num_machines": "1", "--mixed_precision": "no", "--dynamo_backend": "no", "--main_process_port": "0"}
    return [part for flag, value in ours.items() if flag not in flags for part in (flag, value)]


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def default_processes() -> int:
    """As many processes as visible GPUs, one on a CPU."""
    import torch

    return max(1, torch.cuda.device_count())
