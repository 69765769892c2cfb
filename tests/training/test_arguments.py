import math

import pytest
import torch
from pydantic import ValidationError
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import Pretrain, Sft
from chatpipe.training.arguments import Reading, training_arguments


def test_every_setting_of_the_section_reaches_the_trainer(tmp_path):
    section = Pretrain(
        learning_rate=3e-3,
        lr_scheduler_type="linear",
        warmup_steps=7,
        weight_decay=0.05,
        adam_beta1=0.8,
        adam_beta2=0.85,
        adam_epsilon=1e-7,
        max_grad_norm=0.5,
        batch_size=24,
        per_device_train_batch_size=4,
        bf16=True,
        logging_steps=3,
        save_steps=11,
    )
    args = training_arguments(TrainingArguments, section, "pretrain", tmp_path, 5, 2, max_steps=40)
    for key in ("learning_rate", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"):
        assert getattr(args, key) == getattr(section, key)
    for key in ("max_grad_norm", "bf16", "logging_steps", "save_steps"):
        assert getattr(args, key) == getattr(section, key)
    assert args.lr_scheduler_type == "linear"
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (4, 3)
    assert (args.seed, args.max_steps, args.output_dir) == (5, 40, str(tmp_path))


def test_nothing_is_hidden_reported_or_deleted_behind_the_user_s_back(tmp_path):
    args = training_arguments(TrainingArguments, Pretrain(), "pretrain", tmp_path, 0, 1)
    assert args.logging_nan_inf_filter is False
    assert args.save_total_limit is None
    assert args.report_to == []
    assert args.disable_tqdm is True


@pytest.mark.parametrize("asked", [False, True])
def test_gradient_checkpointing_is_that_of_the_recipe_in_trl_s_arguments_too(tmp_path, asked, recwarn):
    for cls, section in ((TrainingArguments, Pretrain), (SFTConfig, Sft)):
        args = training_arguments(cls, section(gradient_checkpointing=asked), "sft", tmp_path, 0, 1)
        assert args.gradient_checkpointing is asked
    assert not [warning for warning in recwarn if issubclass(warning.category, FutureWarning)]


def test_memory_decides_micro_batch_and_checkpointing_where_the_recipe_does_not(tmp_path, monkeypatch):
    """Rows of 64 tokens with 100,000 logits each: 77 MB, and 4 MB of activations, which checkpointing saves."""
    shape = {"n_layer": 8, "n_embd": 64, "n_head": 2, "n_positions": 64, "vocab_size": 100}
    model = GPT2LMHeadModel(GPT2Config(**shape))
    model.config.vocab_size = 100_000
    section = Sft(bf16=False, batch_size=32)
    rows = Reading((model,), 64)
    plain, recomputed = rows.row_bytes(False, False), rows.row_bytes(True, False)
    assert plain - recomputed == 64 * 64 * (8 * 120 - 8 * 4 - 120)
    assert rows.row_bytes(False, True) == 64 * (8 * 64 * 80 + 12 * 100_000)

    def decided(budget: float, reading: Reading = rows, **keys: object) -> tuple[bool, int]:
        monkeypatch.setattr("chatpipe.training.arguments.MICRO_BATCH_BYTES_ON_CPU", int(budget))
        asked = section.model_copy(update=keys)
        args = training_arguments(SFTConfig, asked, "sft", tmp_path, 0, 1, reading=reading)
        return args.gradient_checkpointing, args.per_device_train_batch_size

    assert decided(40 * plain) == (False, 32)
    assert decided(11 * plain) == (False, 8)
    assert decided(plain - 1) == (True, 1)
    assert decided(1) == (True, 1)
    assert decided(1, gradient_checkpointing=False) == (False, 1)
    assert decided(1, per_device_train_batch_size=16) == (True, 16)
    assert decided(40 * plain, gradient_checkpointing=True) == (True, 32)
    two = Reading((model, model), 64)  # their gradients and optimizer states take memory too
    assert decided(40 * plain, two) == (False, 8)
    assert decided(4 * plain - 1, two) == (True, 1)


def test_a_model_without_gradient_checkpointing_gets_smaller_micro_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("chatpipe.training.arguments.MICRO_BATCH_BYTES_ON_CPU", 1)
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_layer=2, n_embd=16, n_head=2, n_positions=64, vocab_size=100))
    reading = Reading((model,), 64)
    args = training_arguments(SFTConfig, Sft(batch_size=8), "sft", tmp_path, 0, 1, reading=reading)
    assert (args.gradient_checkpointing, args.per_device_train_batch_size) == (False, 1)
    with pytest.raises(UsageError, match="sft.gradient_checkpointing = true, but OpenAIGPTLMHeadModel has no"):
        training_arguments(SFTConfig, Sft(gradient_checkpointing=True), "sft", tmp_path, 0, 1, reading=reading)


def test_a_warm_up_may_be_a_share_of_the_steps(tmp_path):
    args = training_arguments(TrainingArguments, Sft(warmup_steps=0.1), "sft", tmp_path, 0, 1)
    assert args.get_warmup_steps(35) == 4


def test_what_only_a_stage_has_wins(tmp_path):
    args = training_arguments(
        SFTConfig, Sft(), "sft", tmp_path, 0, 1, num_train_epochs=2.5, max_length=77, save_steps=9
    )
    assert (args.num_train_epochs, args.max_length, args.save_steps) == (2.5, 77, 9)


def rates(tmp_path, **keys):
    """The learning rate of each of 20 steps."""
    section = Pretrain(learning_rate=0.5, max_steps=20, warmup_steps=4, **keys)
    args = training_arguments(TrainingArguments, section, "pretrain", tmp_path, 0, 1, max_steps=20)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    trainer = Trainer(torch.nn.Linear(1, 1), args, optimizers=(optimizer, None))
    scheduler = trainer.create_scheduler(20, optimizer)
    found = []
    for _ in range(20):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def warm(rest, start=0.0):
    """Rates over 4 steps of warm-up, then `rest(t)`, t from 0 to 1 over the 16 steps after it; of a peak of 0.5."""
    return [0.5 * (start + (1 - start) * step / 4 if step < 4 else rest((step - 4) / 16)) for step in range(20)]


def cosine_to(lowest):
    return lambda t: lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * t))


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({"lr_scheduler_type": "cosine"}, warm(cosine_to(0))),
        ({"lr_scheduler_type": "cosine", "min_lr_ratio": 0.1}, warm(cosine_to(0.1))),
        ({"lr_scheduler_type": "linear"}, warm(lambda t: 1 - t)),
        ({"lr_scheduler_type": "constant_with_warmup"}, warm(lambda t: 1)),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 8, "min_lr_ratio": 0.2},
            warm(lambda t: 1 if t < 0.5 else 0.2 + 0.8 * (1 - math.sqrt(2 * t - 1)), start=0.2),
        ),
    ],
)
def test_each_schedule_is_its_formula(tmp_path, keys, expected):
    assert rates(tmp_path, **keys) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "keys, told",
    [
        ({"lr_scheduler_type": "warmup_stable_decay"}, "decay_steps and lr_scheduler_type: warmup_stable_decay belong"),
        ({"decay_steps": 5}, "decay_steps and lr_scheduler_type: warmup_stable_decay belong"),
        ({"lr_scheduler_type": "linear", "min_lr_ratio": 0.1}, "linear has no min_lr_ratio"),
    ],
)
def test_schedules_that_do_not_fit_together_are_refused(keys, told):
    with pytest.raises(ValidationError, match=told):
        Pretrain(**keys)


@pytest.mark.parametrize("multiplies", [True, False])
def test_bf16_auto_means_where_it_is_multiplied(tmp_path, monkeypatch, multiplies):
    monkeypatch.setattr("chatpipe.training.arguments.multiplies_bf16", lambda device: multiplies)
    for asked, expected in (("auto", multiplies), (True, True), (False, False)):
        args = training_arguments(TrainingArguments, Pretrain(bf16=asked), "pretrain", tmp_path, 0, 1)
        assert args.bf16 is expected
