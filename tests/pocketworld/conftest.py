import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def run_with_hash_seed():
    """Runs a program in a Python of its own, whose `hash()` of strings goes by the given seed."""

    def run(program, seed):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    return run
