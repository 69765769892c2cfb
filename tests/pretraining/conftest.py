from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_trainer import tiny_trainer

from chatpipe.training.pretrain_trainer import PretrainTrainer


@pytest.fixture
def make_trainer(tmp_path) -> Callable[..., PretrainTrainer]:
    """A trainer of a tiny new model: the same weights each time."""

    def make_trainer(folder: Path = tmp_path, **how: Any) -> PretrainTrainer:
        return tiny_trainer(folder, **how)

    return make_trainer
