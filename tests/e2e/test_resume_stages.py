"""A stage that was killed or interrupted, run again with the same command, ends as the one that never stopped."""

import json
import os
import signal
import time

import pytest
from safetensors.torch import load_file

from forked import Command, all_ended, start_anew

SAVE_EVERY = {"pretrain": 30, "sft": 10, "rm": 2, "ppo": 4}
DEPENDS_ON_THE_CLOCK = ("tokens_per_second", "mfu", "eps", "time/rollout", "time/score", "time/update")
DEPENDS_ON_THE_CLOCK += ("train_seconds", "evaluation_seconds")


def kill_after_first_resume_point(command, out):
    """Runs the command line in a process of its own and kills it; returns how it ended and its output."""
    started = Command.start(command, out.parent)
    wait_for_resume_point(out, lambda: started.process.exitcode)
    os.kill(started.process.pid, signal.SIGKILL)
    return started.ended()


def wait_for_resume_point(out, exit_code):
    while not list(out.glob("checkpoints/step-*[0-9]")):
        assert exit_code() is None, "it ended before"
        time.sleep(0.005)


def logged(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in DEPENDS_ON_THE_CLOCK} for row in rows]


def assert_same_result(folder, other):
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, other))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert logged(folder) == logged(other)


@pytest.mark.parametrize("stage", SAVE_EVERY)
def test_a_killed_stage_continues_exactly(tiny_run, tmp_path, chatpipe, stage):
    out = tmp_path / stage
    command = (stage, tiny_run.recipe, f"{stage}.save_steps={SAVE_EVERY[stage]}", "--out", out, "--json")
    code, said, _ = kill_after_first_resume_point(command, out)
    assert code == -signal.SIGKILL
    assert said == ""
    assert not (out / "chatpipe.json").exists()
    points = {path.name for path in (out / "checkpoints").glob("step-*[0-9]")}

    again = chatpipe(*command)
    assert again.object["skipped"] is False
    assert f"{stage}: going on from step-" in again.err
    assert again.err.split("going on from ")[1].split()[0] in points
    assert_same_result(out, tiny_run.folder / stage)


def test_an_interrupted_stage_saves_first(tiny_run, tmp_path, chatpipe):
    stage, out = "ppo", tmp_path / "ppo"
    command = (stage, tiny_run.recipe, f"{stage}.save_steps={SAVE_EVERY[stage]}", "--out", out, "--json")
    started = start_anew(command)
    wait_for_resume_point(out, started.poll)
    started.send_signal(signal.SIGINT)
    ((code, said, errors),) = all_ended([started])
    assert code == 130
    assert said == ""
    *lines, first, last = errors.splitlines()
    assert all(line.startswith("ppo: step ") for line in lines), errors
    told = first, last
    step = int(told[0].split("at step ")[1].split()[0])
    assert told[0].startswith(f"error: {stage} was interrupted at step {step} of ")
    assert "the same command continues" in told[1]
    assert (out / "checkpoints" / f"step-{step}" / "manifest.json").exists()
    assert not (out / "stop-requested").exists()

    changed = chatpipe(*command, f"{stage}.learning_rate=0.5")
    assert changed.code == 2
    assert f"{stage}.learning_rate was " in changed.err
    again = chatpipe(*command)
    assert f"{stage}: going on from step-{step}\n" in again.err
    assert again.object["skipped"] is False
    assert_same_result(out, tiny_run.folder / stage)
