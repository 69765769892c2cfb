import math

import numpy as np
import pytest
import tiny
import torch
from chats import names
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from chatpipe.checks import model_checks as models
from chatpipe.checks import reward_checks as rewards
from chatpipe.errors import UsageError
from chatpipe.models.manifest import Manifest, write_manifest
from chatpipe.models.pretrained import load_reward_model

KEY = "ppo.reward_model"
ROWS = [[3, 4, tiny.EOS], [5, 6, 7, 8, 9, 10, tiny.EOS]]


@pytest.fixture
def saved(tmp_path):
    """The folder of a reward model with a pad token of its own."""
    tiny.random_reward_model().save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def encoder(kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=tiny.VOCABULARY, num_labels=1, pad_token_id=tiny.PAD, initializer_range=0.2, **sizes)
    return kind(config)


class Deaf(BertForSequenceClassification):
    """A model whose code forgets the attention mask."""

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)


def test_embeddings_too_few(tokenizer):
    model = tiny.policy()
    assert models.embeddings_too_few(tiny.tokenizer(), {"ppo.model": model}) is None
    assert names(models.embeddings_too_few(tokenizer, {"ppo.model": model}), len(tokenizer), "ppo.model", "12")


@pytest.mark.parametrize("foreign", [-1, 12])
def test_token_ids_out_of_range(foreign):
    assert models.token_ids_out_of_range([np.array([0, 11]), [3]], tiny.policy(), "pretrain.data") is None
    assert names(
        models.token_ids_out_of_range([[3], [0, foreign]], tiny.policy(), "pretrain.data"),
        foreign,
        "pretrain.data",
        "12",
    )


def test_batch_changes_score():
    good = {KEY: tiny.random_reward_model(), "ppo.reward.1": encoder(BertForSequenceClassification)}
    assert rewards.batch_changes_score(good, ROWS, tiny.PAD) is None
    found = rewards.batch_changes_score({**good, "ppo.reward.2": encoder(Deaf)}, ROWS, tiny.PAD)
    assert found.what.startswith("ppo.reward.2: scores of 2 rows differ by ")
    assert found.what.endswith(" between a padded batch and one by one.")
    assert "use another model, or float32" in found.remedy


def test_dropout_of_a_model_in_training_mode_is_none_of_its_scores():
    model = tiny.random_reward_model().train()
    assert rewards.batch_changes_score({KEY: model}, ROWS, tiny.PAD) is None
    assert model.training


def test_score_not_on_eos_where_rows_do_not_end_with_it():
    scorers = {KEY: tiny.random_reward_model(), "ppo.reward.1": encoder(BertForSequenceClassification)}
    assert rewards.score_not_on_eos(scorers, ROWS, tiny.PAD, tiny.EOS) is None
    assert names(rewards.score_not_on_eos(scorers, [*ROWS, [3, tiny.EOS, 4]], tiny.PAD, tiny.EOS), "1", "eos_token")


@pytest.mark.parametrize("pad", [None, tiny.EOS])
def test_a_reward_model_needs_no_pad_token_of_its_own(saved, pad):
    model = load_reward_model(saved)
    model.config.pad_token_id = pad
    assert rewards.score_not_on_eos({KEY: model}, ROWS, tiny.EOS, tiny.EOS) is None
    assert rewards.batch_changes_score({KEY: model}, ROWS, tiny.EOS) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_finding(dtype):
    """In bfloat16, in which a GPU has reward models that are not trained, scores differ by a hundredth."""
    models = {KEY: tiny.random_reward_model().to(dtype)}
    assert rewards.batch_changes_score(models, ROWS * 3, tiny.PAD) is None
    assert rewards.score_not_on_eos(models, ROWS * 3, tiny.PAD, tiny.EOS) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pad", [tiny.EOS, 11], ids=["reads the token before EOS", "reads a pad"])
def test_score_not_on_eos_where_transformers_reads_another_position(pad, dtype, saved):
    model = load_reward_model(saved).to(dtype)
    model.config.pad_token_id = pad
    found = rewards.score_not_on_eos({KEY: model}, ROWS, tiny.PAD, tiny.EOS)
    assert found.what.startswith(f"{KEY}: transformers reads the score of {saved} ")
    assert "pad_token_id in its config.json to 0" in found.remedy


def test_new_score_head(saved):
    assert rewards.new_score_head({KEY: load_reward_model(saved)}) is None
    weights = load_file(saved / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    headless = {KEY: load_reward_model(saved, new_head=True)}
    assert names(rewards.new_score_head(headless), KEY, saved, "score.weight", "chatpipe rm")


def measured(folder, stage, **metrics):
    write_manifest(folder, Manifest(stage, {}, {}, {}, seed=0, processes=1, metrics=metrics))
    return {KEY: load_reward_model(folder)}


def test_reward_at_chance(saved):
    assert rewards.reward_at_chance({KEY: load_reward_model(saved)}) is None  # nothing is known of it
    pairs = {"eval_accuracy": 0.54, "eval_pairs": 40}
    assert rewards.reward_at_chance(measured(saved, "rm", accuracy_low=0.51, **pairs)) is None
    assert names(
        rewards.reward_at_chance(measured(saved, "rm", accuracy_low=0.41, **pairs)),
        KEY,
        saved,
        "54",
        "40",
        "41",
        "rm.data",
        "sample.prompts",
    )
    not_finite = {"eval_accuracy": math.nan, "eval_pairs": 40, "accuracy_low": math.nan}  # null in chatpipe.json
    assert names(rewards.reward_at_chance(measured(saved, "rm", **not_finite)), KEY, saved, "rm.learning_rate")


@pytest.mark.parametrize("offset", [math.nan, None])
def test_an_offset_that_is_no_finite_number_is_refused(saved, offset):
    model = load_reward_model(saved)
    model.config.chatpipe_reward_offset = offset
    model.save_pretrained(saved)
    with pytest.raises(UsageError, match="chatpipe_reward_offset.* is (nan|None)"):
        load_reward_model(saved)
