import subprocess
import sys

import pytest

import chatpipe


def test_trainers_are_imported_from_the_package_when_asked_for_and_not_before():
    script = (
        "import sys, chatpipe; assert 'torch' not in sys.modules; assert 'PPOTrainer' in dir(chatpipe);"
        "from chatpipe import PPOConfig, PPOTrainer; assert 'torch' in sys.modules;"
        "from chatpipe.ppo.trainer import PPOTrainer as same; assert PPOTrainer is same"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'GRPOTrainer'"):
        chatpipe.GRPOTrainer  # noqa: B018
