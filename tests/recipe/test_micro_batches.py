import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import Lora, Ppo, Rm, Sft, TrainingSection


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


@given(st.integers(1, 8), st.integers(1, 60), st.integers(0, 80))
def test_what_fits_into_memory_divides_the_share_of_each_process(processes, share, fitting):
    parts = TrainingSection(batch_size=processes * share).micro_batches(processes, "sft", fitting)
    micro = parts["per_device_train_batch_size"]
    assert micro * parts["gradient_accumulation_steps"] == share
    assert 1 <= micro <= max(fitting, 1)
    assert all(share % larger for larger in range(micro + 1, min(fitting, share) + 1))


def test_a_micro_batch_that_is_given_is_taken_whatever_fits():
    section = TrainingSection(batch_size=32, per_device_train_batch_size=8)
    assert section.micro_batches(1, "sft", 2)["per_device_train_batch_size"] == 8


@pytest.mark.parametrize(("section", "full", "of_adapter"), [(Sft, 2e-5, 2e-4), (Rm, 1e-5, 1e-4), (Ppo, 3e-6, 1e-5)])
def test_an_adapter_has_a_learning_rate_of_its_own(section, full, of_adapter):
    assert section().peak_rate == full
    assert section(lora=Lora()).peak_rate == of_adapter
    assert section(lora=Lora(), learning_rate=0.5).peak_rate == 0.5


def test_ppo_samples_each_prompt_once_but_at_least_sixteen_rollouts():
    assert Ppo().episodes(10_000, 64) == 10_000
    assert Ppo().episodes(10, 64) == 16 * 256
    assert Ppo(total_episodes=7).episodes(10_000, 64) == 7


def test_a_warm_up_is_a_number_of_steps_or_a_share():
    assert (Sft(warmup_steps=30).warmup_steps, Sft(warmup_steps=0.1).warmup_steps) == (30, 0.1)
    with pytest.raises(ValidationError, match="neither a number of steps nor a share"):
        Sft(warmup_steps=2.5)


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
