"""Two processes share what one evaluates alone, and all of them know the same numbers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("evaluated_by_a_rank.py")


def run_ranks(folder, world):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        env |= {name: str(value) for name, value in own.items()} if world > 1 else {}
        started.append(subprocess.Popen([sys.executable, str(SCRIPT), str(folder)], env=env))
    assert [process.wait(timeout=300) for process in started] == [0] * world
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_one_and_two_processes_find_the_same(tmp_path):
    (tmp_path / "two").mkdir()
    [alone] = run_ranks(tmp_path, 1)
    for of_rank in run_ranks(tmp_path / "two", 2):
        assert of_rank["chat"].pop("ids") == alone["chat"]["ids"]
        for name, metrics in of_rank.items():
            expected = {key: value for key, value in alone[name].items() if key != "ids"}
            assert metrics.pop("length_rule", None) == expected.pop("length_rule", None)
            assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-6), name
