import pytest
import torch

from chatpipe.data.sequences import Sequences, flat_index, pad

# EOS is 1; the second prompt has one in its middle; the policy sampled 0, which is also the padding, in the third
PROMPTS = [[5, 6], [7, 1, 8, 9], [4]]
COMPLETIONS = [[2, 3, 1], [6], [0, 5, 0, 1]]


@pytest.fixture
def sequences():
    return Sequences.of(PROMPTS, COMPLETIONS, [True, False, True])


def test_select_takes_rows_in_the_order_asked_for(sequences):
    chosen = sequences.select(torch.tensor([2, 0]))
    assert chosen.ids.tolist() == [4, 0, 5, 0, 1, 5, 6, 2, 3, 1]
    assert chosen.completion_lengths.tolist() == [4, 3]
    assert chosen.ended.tolist() == [True, True]


def test_flat_index():
    assert flat_index(torch.tensor([2, 3, 1]), torch.tensor([1, 2, 1])).tolist() == [2, 3, 4, 5, 2, 3, 4]


def test_empty_prompts_and_completions_are_refused():
    for prompts, completions in (([[]], [[1]]), ([[1]], [[]])):
        with pytest.raises(ValueError, match="no tokens"):
            Sequences.of(prompts, completions, [True])


def test_every_completion_token_is_predicted_from_the_position_before_it(sequences):
    """EOS and a sampled padding id among them; nothing of a prompt, not even its EOS (trl #6805)."""
    batch = pad(sequences)
    predicted = batch.input_ids[batch.rows, batch.columns + 1]
    assert predicted.tolist() == [token for completion in COMPLETIONS for token in completion]
    assert batch.rows.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert batch.columns.tolist() == [1, 2, 3, 3, 0, 1, 2, 3]


def test_padding_is_on_the_right_and_masked(sequences):
    batch = pad(sequences)
    assert batch.attention_mask.tolist() == [[1] * 5, [1] * 5, [1] * 5]
    batch = pad(Sequences.of(PROMPTS, [[2, 3, 1, 1], [6], [0]], [True] * 3))
    assert batch.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [list(range(6))] * 3
    assert batch.input_ids[1, :5].tolist() == [7, 1, 8, 9, 6]
