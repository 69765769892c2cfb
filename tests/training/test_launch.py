"""What the launcher's parent does with flags, profiles and signals; `python -c` takes the place of the ranks."""

import os
import signal
import sys
import threading
import time

import pytest

from chatpipe.errors import Interrupted, TrainingError, UsageError
from chatpipe.run import launch
from chatpipe.training import ranks


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(launch, "_may_have_gpu", lambda: False)


@pytest.fixture
def profile(tmp_path):
    """Writes an accelerate config file."""

    def profile(text: str) -> str:
        path = tmp_path / "profile.yaml"
        path.write_text(text)
        return str(path)

    return profile


def command(profile: str | None = None, *flags: str) -> list[str]:
    made = launch.accelerate_command(2, profile, flags, ["sft"])
    assert made[-3:] == ["--module", "chatpipe", "sft"]
    return made[3:-3]


def test_without_flags_accelerate_has_nothing_to_ask_or_to_guess():
    defaults = "--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
    assert " ".join(command()) == f"--multi_gpu --num_processes 2 {defaults}"


@pytest.mark.parametrize("flag", ["--use_fsdp", "--cpu", "--multi-gpu"])
def test_a_way_of_training_that_is_given_is_the_only_one(flag):
    assert "--multi_gpu" not in command(None, flag)
    assert command(None, flag)[-1] == flag


def test_a_flag_wins_over_our_default_however_it_is_written():
    for flags in (("--main_process_port", "29501"), ("--main-process-port=29501",)):
        assert "0" not in command(None, *flags)
        assert command(None, *flags)[-len(flags) :] == list(flags)


def test_a_profile_decides_what_it_names_and_nothing_else(profile):
    path = profile("distributed_type: MULTI_GPU\nmixed_precision: bf16\nmain_process_port: null\nnum_machines: 2\n")
    ours = "--num_processes 2 --dynamo_backend no --main_process_port 0"
    assert " ".join(command(path)) == f"--config_file {path} {ours}"


def test_what_is_not_supported_or_not_there_is_refused(profile):
    launch.check_launch(None, ["--mixed_precision", "bf16"])
    launch.check_launch(profile("distributed_type: MULTI_GPU\n"), [])
    for given, flags, part in (
        (None, ["--use_deepspeed"], "DeepSpeed is not supported"),
        (profile("distributed_type: DEEPSPEED\n"), [], "DeepSpeed is not supported"),
        (None, ["--use-fsdp"], "no GPU"),
    ):
        with pytest.raises(UsageError, match=part):
            launch.check_launch(given, flags)
    with pytest.raises(UsageError, match="no GPU"):
        launch.check_launch(profile("distributed_type: FSDP\n"), [])


def test_gpus_are_not_counted_where_there_can_be_none():
    assert launch.default_processes() == 1


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 1), ("max 100000", 3), ("6400000 100000", 3)])
def test_threads_are_never_more_than_a_container_s_quota(tmp_path, monkeypatch, quota, expected):
    """A container with --cpus=2 on a host of 64 cores: each rank would else start dozens of threads."""
    monkeypatch.setattr(launch, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert launch.allowed_threads() == 3  # no container
    (tmp_path / "cpu.max").write_text(quota)
    assert launch.allowed_threads() == expected


def test_a_process_that_was_launched_but_is_no_rank_launches_nothing(monkeypatch):
    monkeypatch.setenv(ranks.LAUNCHED, "2")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UsageError, match="2 processes were asked for, but the launcher started 1"):
        ranks.check_world(2)


def run(code: str, folder) -> None:
    launch.launch([sys.executable, "-c", code], 2, "sft", folder)


def test_a_stop_that_was_asked_for_in_an_earlier_run_is_forgotten(tmp_path):
    stop = tmp_path / ranks.STOP_FILE
    stop.touch()
    run(f"import os; assert not os.path.exists({str(stop)!r})", tmp_path)
    with pytest.raises(TrainingError, match="without an error message"):
        run("raise SystemExit(3)", tmp_path)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request):
    """A signal that nobody ignores, also where the tests run under nohup."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_a_stage_that_still_finishes_after_a_signal_is_reported_as_done(tmp_path, number):
    stop, ready = tmp_path / ranks.STOP_FILE, tmp_path / "ready"
    unheard = signal.getsignal(number)

    def ask() -> None:
        while not ready.exists() or signal.getsignal(number) == unheard:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    waits = f"import os, time\nopen({str(ready)!r}, 'w')\nwhile not os.path.exists({str(stop)!r}): time.sleep(.01)"
    with pytest.raises(Interrupted, match="sft is done; stopped before the next stage."):
        run(waits, tmp_path)
    asking.join()
    assert not stop.exists()


def test_a_signal_that_nohup_has_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run("import os, signal; os.kill(os.getppid(), signal.SIGHUP)", tmp_path)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert not (tmp_path / ranks.STOP_FILE).exists()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_rank_that_is_done_cannot_fail_any_more_and_loses_nothing(tmp_path):
    """What aborts while the interpreter takes itself apart stays out; what atexit's hooks still send goes."""
    code = (
        "import atexit, os\nfrom chatpipe.training.ranks import end_rank\n"
        "class AbortsAtTheEnd:\n    __del__ = lambda self: os.abort()\n"
        "kept = AbortsAtTheEnd()\natexit.register(print, 'sent', end='')\n"
    )
    run(f"{code}print('said', end=' ')\nend_rank(0)", tmp_path)
    assert (tmp_path / launch.LOG_FILE).read_text() == "said sent"
    with pytest.raises(TrainingError):
        run(f"{code}end_rank(3)", tmp_path)
    with pytest.raises(TrainingError):
        run(code, tmp_path)  # so it would abort
