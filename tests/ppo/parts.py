"""A PPOTrainer of tiny models whose parts other than settings are given by name."""

import tiny

from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.trainer import PPOTrainer

SETTINGS = {
    "total_episodes": 32,
    "batch_size": 8,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "per_device_train_batch_size": 4,
    "response_length": 6,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}


def config(folder, **overrides) -> PPOConfig:
    return PPOConfig(**SETTINGS | {"output_dir": str(folder)} | overrides)


def trainer(folder, settings: dict | None = None, **parts) -> PPOTrainer:
    """`parts` are PPOTrainer's arguments; a reward model and prompts are there unless given (as None, too)."""
    default = {"reward_model": tiny.random_reward_model(), "train_prompts": tiny.PROMPTS, "model": tiny.policy()}
    given = {"args": config(folder, **settings or {}), "processing_class": tiny.tokenizer()}
    return PPOTrainer(**given | default | parts)


def weights(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before: dict) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
