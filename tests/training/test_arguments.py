import pytest
from transformers import TrainingArguments
from trl import SFTConfig

from chatpipe.recipe.schema import Pretrain, Sft
from chatpipe.training.arguments import training_arguments


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
def test_gradient_checkpointing_is_as_the_recipe_says_in_trl_s_arguments_too(tmp_path, asked, recwarn):
    for cls, section in ((TrainingArguments, Pretrain), (SFTConfig, Sft)):
        args = training_arguments(cls, section(gradient_checkpointing=asked), "sft", tmp_path, 0, 1)
        assert args.gradient_checkpointing is asked
    assert not [warning for warning in recwarn if issubclass(warning.category, FutureWarning)]


def test_what_only_a_stage_has_wins(tmp_path):
    args = training_arguments(
        SFTConfig, Sft(), "sft", tmp_path, 0, 1, num_train_epochs=2.5, max_length=77, save_steps=9
    )
    assert (args.num_train_epochs, args.max_length, args.save_steps) == (2.5, 77, 9)
