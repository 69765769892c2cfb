"""PTX: grad(total) = grad(PPO) + gamma * grad(LM), in one optimizer step."""

import parts
import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy

from chatpipe.errors import UsageError

TEXT = [{"input_ids": [(3 * i + 5 * j) % 12 for j in range(2 + i % 4)]} for i in range(11)]


def gradient(ppo, experience) -> tuple[torch.Tensor, float]:
    ppo.model.zero_grad()
    loss = tiny.backward(ppo, experience)
    return torch.cat([p.grad.flatten() for p in ppo.model.parameters()]), loss.item()


def trainer(folder, model, settings, **more):
    settings = {"per_device_train_batch_size": 3, "num_mini_batches": 1, "kl_coef": 0.3, "temperature": 0.7} | settings
    value_model = tiny.random_reward_model(seed=4).double()
    reward_model = tiny.random_reward_model().double()
    return parts.trainer(folder, settings, model=model, reward_model=reward_model, value_model=value_model, **more)


def test_gradients_add_up(tmp_path):
    """The text's loss is that of the model's own logits, at temperature 1 though PPO samples at 0.7."""
    policy = tiny.policy().double()
    mixed = trainer(tmp_path, policy, {"ptx_coef": 27.8, "ptx_batch_size": 7}, ptx_dataset=TEXT)
    plain = trainer(tmp_path, policy, {}, ref_model=mixed.ref_model)
    experience = tiny.make_experience(mixed)
    with torch.no_grad():  # away from the policy that sampled, so that all terms are at work
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn_like(parameter)

    read = []
    dataset = mixed.ptx_dataset
    mixed.ptx_dataset = type(
        "Spy", (), {"__len__": lambda _: len(dataset), "__getitem__": lambda _, i: read.append(i) or dataset[i]}
    )()
    total, total_loss = gradient(mixed, experience)
    of_ppo, ppo_loss = gradient(plain, experience)
    assert len(read) == len(set(read)) == 7

    mixed.model.zero_grad()
    nats, tokens = 0.0, 0
    for number in read:
        ids = torch.tensor([TEXT[number]["input_ids"]])
        nats = nats + cross_entropy(policy(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        tokens += ids.shape[1] - 1
    (nats / tokens).backward()
    of_text = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in mixed.model.parameters()]
    )
    assert of_text.abs().max() > 0.01
    assert torch.allclose(total, of_ppo + 27.8 * of_text, rtol=0, atol=1e-10)
    assert total_loss == pytest.approx(ppo_loss + 27.8 * (nats / tokens).item(), rel=1e-6)
    assert mixed.update.all_steps["ptx_loss"].item() / tokens == pytest.approx((nats / tokens).item(), rel=1e-10)


def test_text_is_not_forgotten_where_it_is_mixed_in(tmp_path):
    """Rows come once a pass, and the loss on them is lower for it."""
    losses = {}
    for coef in (0.0, 5.0):
        text = None if coef == 0 else TEXT
        ppo = parts.trainer(tmp_path, {"ptx_coef": coef, "total_episodes": 96, "learning_rate": 5e-3}, ptx_dataset=text)
        ppo.train()
        ids = torch.tensor([TEXT[3]["input_ids"]])
        losses[coef] = ppo.model.policy(input_ids=ids, labels=ids).loss.item()
        if coef:
            lines = tiny.logged_iterations(ppo)
            assert lines[-1]["loss/ptx"] < lines[0]["loss/ptx"]
    assert losses[5.0] < losses[0.0]


def test_text_and_its_coefficient_belong_together(tmp_path):
    with pytest.raises(UsageError, match="belong together"):
        parts.trainer(tmp_path, {"ptx_coef": 1.0})
    with pytest.raises(UsageError, match="belong together"):
        parts.trainer(tmp_path, ptx_dataset=TEXT)
    ppo = parts.trainer(tmp_path, {"ptx_coef": 1.0}, ptx_dataset=[{"input_ids": [3]}])
    with pytest.raises(UsageError, match="ptx_dataset, row 0"):
        ppo.train()
