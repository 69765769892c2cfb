"""What `chatpipe eval` takes from a model's folder and from the command line."""

import pytest

from chatpipe.evaluation.evaluate_model import settings_of


@pytest.mark.parametrize(
    "given", ["chat_template_kwargs={enable_thinking: true}", "chat_template_kwargs.enable_thinking=true"]
)
def test_what_is_given_wins_over_what_a_model_remembers(given):
    recipe = settings_of([given], {"chat_template_kwargs.enable_thinking": False, "sft.max_length": 96})
    assert recipe.chat_template_kwargs == {"enable_thinking": True}
    assert recipe.sft.max_length == 96
