"""chatpipe makes a chat model the way ChatGPT was made: pretrain, sft, rank, rm, ppo.

from chatpipe import PPOConfig, PPOTrainer
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatpipe.ppo.config import PPOConfig as PPOConfig
    from chatpipe.ppo.trainer import PPOTrainer as PPOTrainer

__version__ = "0.1.0"
__all__ = ["PPOConfig", "PPOTrainer", "__version__"]

_HOME = {"PPOConfig": "chatpipe.ppo.config", "PPOTrainer": "chatpipe.ppo.trainer"}


def __getattr__(name: str) -> Any:
    """Imports a trainer when it is first asked for (PEP 562): the command line must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
