import torch
from hypothesis import given
from hypothesis import strategies as st

from chatpipe.data.sequences import equal_tokens, length_sorted, pad_right, similar_runs


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


def test_a_twentieth_of_a_micro_batch_may_be_padding():
    lengths = torch.tensor([18, 20, 19, 17])
    assert [lengths[chunk].tolist() for chunk in length_sorted(lengths, 4)] == [[20, 19, 18], [17]]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(1, 8))
def test_micro_batches_of_equal_tokens_hold_each_row_once(lengths, size):
    lengths = torch.tensor(lengths)
    longest = int(lengths.max())
    chunks = equal_tokens(lengths, size * longest)
    assert lengths[torch.cat(chunks)].tolist() == sorted(lengths.tolist(), reverse=True)
    assert sorted(torch.cat(chunks).tolist()) == list(range(len(lengths)))
    for chunk in chunks:
        assert 1 <= lengths[chunk].sum() <= (size + 1) * longest


def test_equal_tokens():
    lengths = torch.tensor([4, 2, 8, 2, 4, 4])
    assert [lengths[chunk].tolist() for chunk in equal_tokens(lengths, 12)] == [[8, 4], [4, 4, 2, 2]]


def test_no_rows_are_no_micro_batches():
    assert length_sorted(torch.tensor([], dtype=torch.long), 4) == ()


def test_rows_are_padded_on_the_right():
    padded, mask = pad_right([[5, 7], torch.tensor([7, 6, 5])], 7)
    assert padded.tolist() == [[5, 7, 7], [7, 6, 5]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert padded.dtype == mask.dtype == torch.int64


@given(st.lists(st.integers(1, 50), max_size=30), st.sampled_from([0.0, 0.05, 0.25]))
def test_similar_runs_hold_all_rows_in_order_within_their_padding(lengths, max_padding):
    sizes = similar_runs(lengths, max_padding)
    assert sum(sizes) == len(lengths)
    assert all(sizes)
    for run in torch.tensor(lengths, dtype=torch.long).split(sizes) if sizes else ():
        padded = len(run) * int(run.max())
        assert padded - int(run.sum()) <= max_padding * padded
