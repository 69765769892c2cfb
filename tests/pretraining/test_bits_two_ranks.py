"""Bits per byte of a run that goes on on another number of processes: what was predicted before counts once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from bits_of_a_rank import train
from tiny_trainer import Crash

from chatpipe.training.resume import RESUME_POINTS


def told(folder: Path) -> list[float]:
    (state,) = folder.rglob("step-8/trainer_state.json")
    return [row["bits_per_byte"] for row in json.loads(state.read_text())["log_history"] if "bits_per_byte" in row]


def test_what_was_predicted_before_the_break_counts_once_on_two_processes(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(Crash):
        train(tmp_path / "shared", crash_at=3)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, Path(__file__).with_name("bits_of_a_rank.py"), tmp_path / "shared"]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    assert told(tmp_path / "shared") == pytest.approx(told(tmp_path / "whole"), rel=1e-5)
    alone, *shared = (
        json.loads((tmp_path / folder / RESUME_POINTS / "step-6" / f"rank-{rank}.json").read_text())["extra"]["bits"]
        for folder, rank in (("whole", 0), ("shared", 0), ("shared", 1))
    )
    assert alone[0] == 2 * 4 * 15
    assert shared == [pytest.approx(alone, rel=1e-5), [0, 0, 0]]
