"""The forward pass of PPO: the output head in parts, and how much padding the models read."""

import parts
import pytest
import tiny
import torch
from transformers import BertConfig, BertForSequenceClassification

from chatpipe.data.sequences import pad
from chatpipe.models import logprobs, unpadded
from chatpipe.ppo import model
from chatpipe.training.lora import lora_config


def read(ppo, batch):
    """Log-probs, entropies and the gradient of the policy."""
    ppo.model.zero_grad()
    log_pi, entropy = logprobs.logprobs_and_entropy(ppo.model.policy, batch, 0.7)
    (log_pi * torch.arange(len(log_pi))).sum().backward()
    return log_pi, entropy, torch.cat([parameter.grad.flatten() for parameter in ppo.model.policy.parameters()])


def test_the_output_head_in_parts_gives_what_it_gives_at_once(tmp_path, monkeypatch):
    ppo = tiny.trainer(tmp_path, model=tiny.policy().double(), reward_model=tiny.random_reward_model().double())
    batch = pad(tiny.make_experience(ppo).sequences)
    at_once = read(ppo, batch)
    seen = []
    ppo.model.policy.lm_head.register_forward_hook(lambda _, __, logits: seen.append(logits.numel()))
    monkeypatch.setitem(logprobs.MAX_LOGITS, "cpu", 5 * tiny.VOCABULARY)
    for one, other in zip(read(ppo, batch), at_once, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)
    parts = -(-len(batch.rows) // 5)
    assert parts > 2
    assert len(seen) == 2 * parts  # each again in the backward pass
    assert max(seen) <= logprobs.MULTIPLE * tiny.VOCABULARY


def test_the_share_of_padding_is_logged(tmp_path):
    ppo = tiny.trainer(tmp_path, batch_size=32, num_mini_batches=1, per_device_train_batch_size=32)
    made = tiny.recorded_experience(ppo)
    ppo.train()
    [line], tokens = tiny.logged_iterations(ppo), len(made[0].sequences.ids)
    filled_up = -(-tokens // logprobs.MULTIPLE) * logprobs.MULTIPLE
    assert filled_up > tokens
    assert line["perf/padding"] == pytest.approx(1 - tokens / filled_up)


def test_models_that_need_padding_are_read_with_little(tmp_path, monkeypatch):
    ppo = tiny.trainer(tmp_path, batch_size=32, num_mini_batches=1, per_device_train_batch_size=32)
    lengths, readers = torch.tensor([10, 20, 10, 20]), [ppo.model.policy, ppo.model.value_model]
    assert [rows.tolist() for rows in model.micro_batch_rows(readers, lengths, 4)] == [[1, 3, 0, 2]]
    encoder = BertForSequenceClassification(
        BertConfig(vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
    )
    assert [rows.tolist() for rows in model.micro_batch_rows([*readers, encoder], lengths, 4)] == [[1, 3], [0, 2]]
    ppo.model.gradient_checkpointing_enable()
    assert [rows.tolist() for rows in model.micro_batch_rows(readers, lengths, 4)] == [[1, 3, 0, 2]]
    for module in (model, unpadded):
        monkeypatch.setattr(module, "reads_unpadded", lambda body: False)
    assert [rows.tolist() for rows in model.micro_batch_rows(readers, lengths, 4)] == [[1, 3], [0, 2]]
    ppo.train()
    assert [line["perf/padding"] for line in tiny.logged_iterations(ppo)] == [pytest.approx(0, abs=0.05)]


@pytest.mark.parametrize("way", ["plain", "checkpointing", "lora", "bf16"])
def test_ppo_on_two_cores_learns_what_it_learns_on_one(tmp_path, two_cores, way):
    settings = {"checkpointing": {"gradient_checkpointing": True}, "bf16": {"bf16": True}}.get(way, {})
    wide = torch.float32 if way == "bf16" else torch.float64

    def weights_after_training(name):
        torch.manual_seed(0)  # the adapter's first weights are random
        models = {"model": tiny.policy().to(wide), "reward_model": tiny.random_reward_model().to(wide)}
        if way == "lora":
            models["peft_config"] = lora_config(r=2, alpha=4, target_modules=["c_attn"])
        trainer = parts.trainer(tmp_path / name, settings, **models)
        trainer.train()
        return trainer.model.state_dict()

    side = weights_after_training("side")
    torch.set_num_threads(1)
    one = weights_after_training("one")
    for name in one:
        assert torch.allclose(side[name], one[name], rtol=0, atol=1e-6 if way == "bf16" else 1e-9), name
