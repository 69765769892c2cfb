import torch
from hypothesis import given
from hypothesis import strategies as st

from chatpipe.data.padding import length_sorted, pad_right


def padded_tokens(lengths, chunk):
    return int(lengths[chunk].max()) * len(chunk)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(1, 8))
def test_micro_batches_hold_each_row_once_within_their_tokens_and_their_padding(lengths, size):
    lengths = torch.tensor(lengths)
    chunks = length_sorted(lengths, size)
    assert sorted(torch.cat(chunks).tolist()) == list(range(len(lengths)))
    for chunk in chunks:
        cells = padded_tokens(lengths, chunk)
        assert cells <= size * lengths.max()
        assert cells - lengths[chunk].sum() <= 0.05 * cells
    assert lengths[torch.cat(chunks)].tolist() == sorted(lengths.tolist(), reverse=True)


def test_a_micro_batch_is_filled_up_to_its_tokens():
    lengths = torch.tensor([5, 10, 10, 5, 5, 5, 10, 5])
    assert [lengths[chunk].tolist() for chunk in length_sorted(lengths, 2)] == [[10, 10], [10], [5] * 4, [5]]
    assert [lengths[chunk].tolist() for chunk in length_sorted(lengths, 8)] == [[10] * 3, [5] * 5]


def test_padding_is_what_may_be_given_away_for_fewer_micro_batches():
    lengths = torch.tensor([10, 9, 8])
    for max_padding, expected in ((0.05, [[10, 9], [8]]), (0.049, [[10], [9], [8]]), (0.1, [[10, 9, 8]])):
        assert [lengths[chunk].tolist() for chunk in length_sorted(lengths, 3, max_padding)] == expected


def test_no_rows_are_no_micro_batches():
    assert length_sorted(torch.tensor([], dtype=torch.long), 4) == ()


def test_rows_are_padded_on_the_right():
    padded, mask = pad_right([[5, 7], torch.tensor([7, 6, 5])], 7)
    assert padded.tolist() == [[5, 7, 7], [7, 6, 5]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert padded.dtype == mask.dtype == torch.int64
