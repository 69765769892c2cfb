"""transformers' continuous batching as a backend: the conformance suite, and what it refuses."""

import pytest
from conformance import NEVER, Conformance

from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams, generate

pytest.importorskip("transformers.generation.continuous_batching")


class TestContinuous(Conformance):
    backend = "continuous"

    @pytest.fixture(params=[("gpt2", "eager"), ("qwen3", "sdpa"), ("llama", "sdpa")])
    def model(self, request: pytest.FixtureRequest, tiny_model):
        """Half of the combinations: a call takes half a second here."""
        architecture, attention = request.param
        return tiny_model(architecture, attn_implementation=attention)


@pytest.mark.parametrize(
    "params, words",
    [
        ({"min_p": 0.1}, "min_p.*continuous"),
        ({"top_k": 5}, "log-probs with top_k"),
        ({"top_p": 0.5}, "log-probs with top_k or top_p"),
    ],
)
def test_what_it_cannot_do_is_refused(tiny_model, params, words):
    with pytest.raises(UsageError, match=words):
        generate(tiny_model("gpt2"), [[1]], SamplingParams(4, **params), NEVER, 0, logprobs=True, backend="continuous")
