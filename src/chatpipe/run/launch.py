"""Several processes: a step starts itself again through `accelerate launch`, once, and the parent follows its progress.

Two traps are closed here. Without `--multi_gpu`, accelerate starts only one process on a CPU machine; and its launcher
turns every failure into exit 1 with a screenful, so a failing rank leaves its error in a file for the parent. (The file
of torch elastic's `@record` lies in a folder that the launcher chooses, holds a traceback, and knows no exit code.)
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from chatpipe.errors import ChatpipeError, ExitCode, Interrupted, TrainingError, UsageError
from chatpipe.recipe.schema import Recipe
from chatpipe.training.progress import follow
from chatpipe.training.ranks import LAUNCHED, POLL_SECONDS, STOP_FILE, is_rank

LOG_FILE = "launch.log"
ERROR_FILE = "launch-error.json"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")

# What keeps accelerate from asking back or guessing; it takes one way of spreading the work alone.
_DEFAULTS = {"--num_machines": "1", "--mixed_precision": "no", "--dynamo_backend": "no", "--main_process_port": "0"}
_WAYS = {"--multi_gpu", "--use_fsdp", "--cpu"}


def check_launch(profile: str | None, flags: Sequence[str]) -> None:
    """Raises `UsageError` where accelerate could not start, or would not do, what the profile and the flags ask for."""
    given = _read_profile(profile)
    way = str(given.get("distributed_type", "")).upper()
    if way == "DEEPSPEED" or any(name.startswith(("--use_deepspeed", "--deepspeed_")) for name in _names(flags)):
        raise UsageError(
            "DeepSpeed is not supported: its resume points are not complete.",
            "Larger models use FSDP: `-- --use_fsdp --fsdp_version 2`, or such a --launch profile.",
        )
    if (way == "FSDP" or "--use_fsdp" in _names(flags)) and not _sees_gpu():
        raise UsageError(
            "FSDP is asked for, but there is no GPU here: accelerate would silently train without it.",
            "Leave --use_fsdp or the --launch profile out.",
        )


def accelerate_command(
    processes: int, profile: str | None, flags: Sequence[str], arguments: Sequence[str]
) -> list[str]:
    """The command that starts `chatpipe ARGUMENTS` in `processes` processes.

    Raises `UsageError` where there is no such profile.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if profile is not None:
        command += ["--config_file", profile]
    elif not _WAYS & _names(flags):
        command.append("--multi_gpu")
    decided = _names(flags) | _decided_by(_read_profile(profile))
    defaults = [part for flag, value in _DEFAULTS.items() if flag not in decided for part in (flag, value)]
    return [*command, "--num_processes", str(processes), *defaults, *flags, "--module", "chatpipe", *arguments]


def launch(command: Sequence[str], processes: int, stage: str, folder: Path) -> None:
    """Runs `command` and follows the stage's metrics; raises the error of the rank that failed, if one did.

    Raises `Interrupted` where a stop was asked for, also when the stage ended before it could heed that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    error_file, stop_file = folder / ERROR_FILE, folder / STOP_FILE
    for left in (error_file, stop_file):
        left.unlink(missing_ok=True)
    environment = {**os.environ, LAUNCHED: str(processes), "CHATPIPE_ERROR_FILE": str(error_file)}
    if not _sees_gpu():
        environment["ACCELERATE_USE_CPU"] = "1"
        # Without this the launcher sets one thread a rank.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, allowed_threads() // processes)))
    with (folder / LOG_FILE).open("ab") as log:
        # A session of its own: Ctrl-C at the terminal must reach the parent alone, which then asks the ranks to save.
        # A pipe for stdin, which nothing is written to: the ranks see it close when this process is gone.
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    try:
        with follow(stage, folder) as show:
            interrupted = _wait(child, stop_file, show)
    finally:
        stop_file.unlink(missing_ok=True)
    if child.returncode != 0:
        raise _error_of_rank(error_file, folder, interrupted)
    if interrupted:
        raise Interrupted(f"{stage} is done; stopped before the next stage.", "The same command continues there.")


def report_error(problem: ChatpipeError) -> bool:
    """Leaves a process's error for the parent that launched it; False where there is no such parent, or no space.

    The first error counts: the other ranks fail because of it.
    """
    path = os.environ.get("CHATPIPE_ERROR_FILE")
    if path is None:
        return False
    if not Path(path).exists():
        error = {"message": problem.message, "hint": problem.hint, "exit_code": int(problem.exit_code)}
        try:
            Path(path).write_text(json.dumps(error), encoding="utf-8")
        except OSError:
            return False
    return True


def _wait(child: "subprocess.Popen[bytes]", stop_file: Path, show: Any) -> bool:
    """Waits for the ranks; Ctrl-C, SIGTERM or SIGHUP asks them to save and stop, a second one ends them."""
    asked = 0

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        asked += 1
        stop_file.touch()
        if asked > 1:
            os.killpg(child.pid, signal.SIGTERM)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    previous = {number: signal.signal(number, on_signal) for number in heard}
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
        report = json.loads(error_file.read_text(encoding="utf-8"))
        error_file.unlink()
        problem = ChatpipeError(report["message"], report["hint"])
        problem.exit_code = ExitCode(report["exit_code"])
        return problem
    if interrupted:
        return Interrupted("Stopped before a resume point could be saved.", "The same command continues.")
    return TrainingError("A process ended without an error message.", f"Its output is in {folder / LOG_FILE}.")


def _names(flags: Sequence[str]) -> set[str]:
    """The names of accelerate's flags, which may be written as `--main-process-port=0`, too."""
    return {"--" + flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}


def _read_profile(profile: str | None) -> dict[str, Any]:
    """The content of an accelerate config file (YAML, or JSON, which is YAML)."""
    if profile is None:
        return {}
    try:
        values = yaml.safe_load(Path(profile).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as problem:
        what = problem.strerror if isinstance(problem, OSError) else "it is not YAML"
        raise UsageError(
            f"launch = {profile} cannot be read: {what}.", "Give what `accelerate config --config_file FILE` wrote."
        ) from problem
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise UsageError(
            f"launch = {profile} is not an accelerate config file: it has no distributed_type.",
            "Give what `accelerate config --config_file FILE` wrote.",
        )
    return values


def _decided_by(profile: dict[str, Any]) -> set[str]:
    """The accelerate flags of a profile."""
    old_names = {"fp16": "mixed_precision", "dynamo_config": "dynamo_backend"}
    return {f"--{old_names.get(key, key)}" for key, value in profile.items() if value is not None}


def _sees_gpu() -> bool:
    if not _may_have_gpu():
        return False
    import torch

    return torch.cuda.is_available()


def _may_have_gpu() -> bool:
    """Whether a CUDA or ROCm device can be there at all: Linux shows one in /dev (WSL: dxg). Known without torch."""
    devices = ("nvidia*", "kfd", "dxg", "nvhost*", "nvgpu*")
    return sys.platform != "linux" or any(any(Path("/dev").glob(device)) for device in devices)


def allowed_threads() -> int:
    """How many threads can compute at once: the CPUs that this process may use, or the quota of its container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(cpus, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or one without a quota ("max")
        return cpus


def use_allowed_threads() -> None:
    """Keeps torch, which knows nothing of a container's quota, from starting more threads than `allowed_threads`."""
    import torch

    if torch.get_num_threads() > allowed_threads():
        torch.set_num_threads(allowed_threads())


def processes_of(recipe: Recipe) -> int:
    """How many processes a recipe runs in: its `processes`, else as many as visible GPUs, one on a CPU."""
    if is_rank():
        return int(os.environ["WORLD_SIZE"])
    return recipe.processes or default_processes()


def default_processes() -> int:
    """As many processes as visible GPUs, one on a CPU."""
    if not _may_have_gpu():
        return 1
    import torch

    return max(1, torch.cuda.device_count())
