"""Generation: the decode engine that PPO, `sample` and `chat` share."""

from chatpipe.generation.decode_rows import Completion
from chatpipe.generation.engine import generate, stream
from chatpipe.generation.sampling import SamplingParams

__all__ = ["Completion", "SamplingParams", "generate", "stream"]
