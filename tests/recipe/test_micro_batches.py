import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import TrainingSection


@given(st.integers(1, 8), st.integers(1, 16), st.integers(1, 16))
def test_processes_times_micro_batch_times_accumulation_is_the_batch(processes, micro, accumulation):
    section = TrainingSection(batch_size=processes * micro * accumulation, per_device_train_batch_size=micro)
    assert section.micro_batches(processes, "sft") == {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
    }


def test_without_a_micro_batch_each_process_takes_its_share_at_once():
    assert TrainingSection(batch_size=32).micro_batches(4, "sft") == {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
    }


def test_a_micro_batch_larger_than_the_share_is_the_share():
    section = TrainingSection(batch_size=8, per_device_train_batch_size=64)
    assert section.micro_batches(2, "rm")["per_device_train_batch_size"] == 4


def test_a_batch_that_cannot_be_shared_is_refused_with_its_key():
    with pytest.raises(UsageError, match=r"ppo\.batch_size = 32 cannot be shared by 3 processes") as caught:
        TrainingSection(batch_size=32).micro_batches(3, "ppo")
    assert "multiple of 3" in caught.value.hint


def test_a_micro_batch_that_does_not_divide_the_share_is_refused_with_its_key():
    section = TrainingSection(batch_size=32, per_device_train_batch_size=5)
    with pytest.raises(UsageError, match=r"sft\.per_device_train_batch_size = 5 does not divide the 16 sequences"):
        section.micro_batches(2, "sft")
