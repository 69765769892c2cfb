"""chatpipe on a GPU, without one: the files `gpu_*.py` run in a pytest of their own that has the pretended GPU.

The pretended GPU takes hold of a whole process, so these files cannot run in the process of the other tests. To see one
of them alone:

    PYTHONPATH=tests/gpu:tests/exact pytest -p pretended_gpu.plugin tests/gpu/gpu_engine.py
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pretended_gpu
import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    bool(pretended_gpu.missing()),
    reason=f"the pretended GPU needs private functions of torch 2.13: {', '.join(pretended_gpu.missing())}",
)


def test_on_the_pretended_gpu(tmp_path):
    """All files in one process: its start takes longer than most of them."""
    paths = [str(HERE), str(HERE.parent / "exact"), os.environ.get("PYTHONPATH", "")]
    files, results = sorted(HERE.glob("gpu_*.py")), tmp_path / "results.xml"
    options = ["-q", "-p", "no:cacheprovider", "-p", "pretended_gpu.plugin", f"--junitxml={results}"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    tests = ElementTree.parse(results).iter("testcase")
    passed = {test.attrib["classname"].split(".")[-1] for test in tests if not len(test)}  # else a child says why
    assert passed == {file.stem for file in files}
