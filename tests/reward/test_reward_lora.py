"""LoRA for the reward model: adapters in the body and the whole head learn, and what is saved is a plain model."""

import pytest
import torch
from test_reward_trainer import arguments, planted_rankings
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from chatpipe.reward.reward_model import new_reward_model, outside_body, score_sequences
from chatpipe.reward.reward_trainer import RewardTrainer
from chatpipe.training.lora import Adapter, lora_config
from chatpipe.training.resume import newest_resume_point

pytest.importorskip("peft")

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODERS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=32, pad_token_id=0)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES, max_position_embeddings=40, pad_token_id=0)),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZES, max_position_embeddings=32, pad_token_id=0)),
}
HEADS = {
    "gpt2": {"score"},
    "llama": {"score"},
    "bert": {"classifier"},
    "roberta": {"classifier"},
    "modernbert": {"head", "classifier"},
}
"""What is trained whole."""


@pytest.fixture(scope="module")
def folders(bodies, tmp_path_factory):
    """Folders of tiny bodies, causal ones and encoders."""
    found = dict(bodies)
    for kind, make in ENCODERS.items():
        torch.manual_seed(0)
        found[kind] = str(tmp_path_factory.mktemp(kind))
        make().save_pretrained(found[kind])
    return found


def adapted(body, folder, **settings):
    """A trainer of adapters in every linear layer of the body."""
    model = new_reward_model(body, pad_token_id=0, seed=0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    others = outside_body(model)
    torch.manual_seed(0)
    adapter = Adapter(model, lora_config(4, 8, "all-linear", without=list(others)), others.values())
    settings = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, **settings}
    return RewardTrainer(model, arguments(folder, **settings), planted_rankings(32, seed=0), adapter), before


@pytest.mark.parametrize("kind", HEADS)
def test_the_body_is_frozen_and_the_head_learns_whole(kind, folders, tmp_path):
    trainer, before = adapted(folders[kind], tmp_path)
    trainer.train()
    plain = {
        name.replace("base_layer.", ""): weight
        for name, weight in trainer.model.model.state_dict().items()
        if "lora_" not in name
    }
    assert plain.keys() == before.keys()
    changed = {name for name, weight in plain.items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[0] for name in changed} == HEADS[kind]
    adapters = [weight for name, weight in trainer.model.model.named_parameters() if "lora_B" in name]
    assert len(adapters) >= 8
    assert all(weight.abs().max() > 0 for weight in adapters)


@pytest.mark.parametrize("kind", ["gpt2", "modernbert"])
def test_what_is_saved_is_a_plain_model_with_the_same_scores(kind, folders, tmp_path):
    trainer, before = adapted(folders[kind], tmp_path)
    trainer.train()
    sequences = [[5, 6, 7, 1], [9, 8, 1], [20, 21, 22, 23, 1]]
    adapted_scores = score_sequences(trainer.model.model, sequences)
    model = trainer.trained_model()
    assert model.state_dict().keys() == before.keys()
    model.save_pretrained(tmp_path / "rm")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    torch.testing.assert_close(score_sequences(again, sequences), adapted_scores, atol=1e-5, rtol=1e-5)
    untrained = score_sequences(new_reward_model(folders[kind], pad_token_id=0, seed=0), sequences)
    assert (adapted_scores - untrained).abs().max() > 1e-2


def test_a_resume_point_holds_what_is_trained_and_continues_to_the_bit(folders, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, _ = adapted(folders["gpt2"], tmp_path / "whole", **settings)
    whole.train()
    first, _ = adapted(folders["gpt2"], tmp_path / "broken", **settings)
    first.args.max_steps = 2
    first.train()
    point = newest_resume_point(tmp_path / "broken" / "checkpoints")
    assert not any("model.safetensors" in str(path) for path in point.iterdir())
    second, _ = adapted(folders["gpt2"], tmp_path / "broken", **settings)
    second.train(resume_from_checkpoint=str(point))
    for name, weight in whole.model.model.state_dict().items():
        assert torch.equal(weight, second.model.model.state_dict()[name]), name
