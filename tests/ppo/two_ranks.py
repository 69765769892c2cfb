"""What one of two ranks does for test_ppo_two_ranks: takes one optimizer step on its share, then trains."""

from dataclasses import fields
from pathlib import Path

import parts
import tiny
import torch

from chatpipe.training.lora import lora_config
from chatpipe.training.ranks import end_rank

TEXT = [{"input_ids": [(3 * i + 5 * j) % 12 for j in range(2 + i % 4)]} for i in range(11)]

FLOATS = ("scores", "logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")


def make(folder: Path, peft_config=None, **overrides):
    settings = {
        "num_mini_batches": 1,
        "per_device_train_batch_size": 2,
        "total_episodes": 16,
        "response_length": 12,
        "per_device_eval_batch_size": 1,
        "ptx_coef": 0.7,
    }
    return parts.trainer(
        folder,
        settings | overrides,
        model=tiny.policy().double(),
        reward_model=tiny.random_reward_model().double(),
        reward_funcs=lambda prompts, completions: [0.1 * len(text) for text in completions],
        ptx_dataset=TEXT,
        eval_dataset=[{"input_ids": ids} for ids in ([3], [4, 5], [6])],
        peft_config=peft_config,
    )


def move(model):
    """A policy that is not the one that sampled, so that ratios are not 1."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)


def gradient(trainer, model, experience):
    trainer.model_wrapped = model
    loss = tiny.backward(trainer, experience)
    return loss, torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])


def take_part(folder: Path) -> None:
    """Leaves what it measured in `folder`."""
    torch.set_num_threads(2)  # with which one process alone reads its models side by side
    trainer = make(folder)
    rank = trainer.args.process_index
    experience = tiny.make_experience(trainer)
    move(trainer.model)
    loss, gradients = gradient(trainer, trainer.accelerator.prepare(trainer.model), experience)
    sequences = {field.name: getattr(experience.sequences, field.name) for field in fields(experience.sequences)}
    floats = {name: getattr(experience, name) for name in FLOATS}

    trained = make(folder, target_kl=1e-6, learning_rate=1e-2, num_ppo_epochs=4, value_model_learning_rate=1e-3)
    trained.train()
    weights = torch.cat([parameter.detach().flatten() for parameter in trained.model.parameters()])
    torch.manual_seed(7)  # the adapter's first weights are random
    adapted = make(folder, lora_config(r=4, alpha=8, target_modules=["c_attn"]), learning_rate=1e-2)
    adapted.train()
    torch.save(
        {
            "sequences": sequences,
            "floats": floats,
            "loss": loss,
            "gradient": gradients,
            "weights": weights,
            "lines": tiny.logged_iterations(trained),
            "evaluated": trained.evaluate(),
            "completed": trained.generate_completions(),
            "sampled": trained.generate_completions(sampling=True),
            "adapter": {name: weight.detach() for name, weight in adapted.adapter.weights().named_parameters()},
            "adapted_lines": tiny.logged_iterations(adapted),
        },
        folder / f"rank-{rank}.pt",
    )
    end_rank(0)
