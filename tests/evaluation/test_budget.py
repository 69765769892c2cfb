"""What an evaluation may cost, in exact numbers."""

import pytest

from chatpipe.evaluation import budget
from chatpipe.evaluation.budget import MIN_ROWS, Stopwatch, affordable_rows


def test_a_short_run_may_spend_ten_teraflops_on_its_evaluation():
    assert affordable_rows(0, 1e9) == 10_000
    assert affordable_rows(6e13, 1e9) == 10_000  # a sixth of 6e13
    assert affordable_rows(0, 1e9, share=1 / 2) == 5_000


def test_a_long_run_may_spend_a_sixth_of_the_flops_of_training():
    assert affordable_rows(6e15, 1e12) == 1000
    assert affordable_rows(6e15, 1e12, share=1 / 2) == 500


def test_a_verdict_has_rows_in_any_case():
    assert affordable_rows(0, 1e15) == MIN_ROWS == 32


def test_blocks_of_text():
    # Training takes 6e8 x 1e9 = 6e17 FLOPs. A block of 1,000 tokens takes 2e8 x 1,000 at each of 10 evaluations.
    assert budget.text_blocks(10**8, 10**9, block_size=1000, evaluations=10) == 50_000


def test_conversations_are_read_at_each_evaluation_and_twice_for_the_question_gain():
    # Half of 6e8 x 1e8 / 6 = 5e15; a conversation of 250 tokens takes 2e8 x 250 x (2 + 2) = 2e11.
    assert budget.chat_rows(10**8, 10**8, tokens_per_row=250, evaluations=2) == 25_000


def test_a_generated_token_counts_as_ten():
    # The other half; an answer of 100 tokens takes 2e8 x 10 x 100 = 2e11.
    assert budget.chat_prompts(10**8, 10**8, max_new_tokens=100) == 25_000


def test_prompts_of_ppo():
    """An episode of 50 + 50 tokens, four times trained on, against a prompt that two models answer in 100 tokens."""
    episode = 2 * (10 * 50 + 4 * 100) + 6 * 2 * 100 * 4
    prompt = 2 * (2 * (10 * 100 + 50 + 100) + (10 * 50 + 2 * 100))
    assert (episode, prompt) == (6600, 6000)
    found = budget.policy_prompts(10**9, 10_000, 4, 50, response_length=50, answer_tokens=100, models=2)
    assert found == int(10**9 * 10_000 * 6600 / 6 / (10**9 * 6000)) == 1833


@pytest.mark.parametrize(
    "prompts",
    [
        budget.chat_prompts(10**6, 10**6, max_new_tokens=48),
        budget.policy_prompts(10**6, 5_000, 4, 20, response_length=48, answer_tokens=48, models=3),
    ],
)
def test_a_run_of_pocket_s_size_is_not_bounded(prompts):
    assert prompts > 2000
    assert budget.chat_rows(10**6, 10**6, tokens_per_row=64, evaluations=5) > 2000
    assert budget.text_blocks(10**6, 10**7, block_size=128, evaluations=12) * 128 > 150_000


def test_a_stopwatch_adds_up_what_is_inside_it(monkeypatch):
    times = iter([1.0, 3.0, 10.0, 14.5])
    monkeypatch.setattr(budget.time, "monotonic", lambda: next(times))
    watch = Stopwatch()
    for _ in range(2):
        with watch:
            pass
    assert watch.seconds == 6.5
