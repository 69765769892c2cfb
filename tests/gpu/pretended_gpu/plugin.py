"""The pytest plugin that gives a whole pytest process the pretended GPU: `pytest -p pretended_gpu.plugin`.

pytest loads it before any conftest.py, and so before transformers is imported.
"""

import pretended_gpu

GPU = pretended_gpu.install("chatpipe")

import pytest  # noqa: E402


@pytest.fixture
def gpu():
    """The ledger of the pretended GPU, with all counts at 0."""
    GPU.reset()
    return GPU
