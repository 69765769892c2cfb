"""What Trainer iterates over: minibatches of fresh experience.

Trainer asks for a minibatch only when it is about to train on it, so a rollout always sees the weights of its moment;
the loader must therefore not go through `accelerator.prepare`, which would read ahead.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from chatpipe.ppo.rollout import minibatches

if TYPE_CHECKING:
    from chatpipe.ppo.trainer import PPOTrainer


class ExperienceLoader:
    """Minibatches from the trainer's iteration to the last, each one optimizer step."""

    def __init__(self, trainer: "PPOTrainer") -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return self.trainer.args.max_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer, args = self.trainer, self.trainer.args
        while trainer.iteration < args.num_iterations:
            iteration = trainer.iteration
            experience = trainer.make_experience()
            if trainer.is_over_budget():
                return
            # Before the first minibatch: a resume point lies after the last one, before this loop is entered again.
            trainer.begin_update()
            for epoch in range(args.num_ppo_epochs):
                seeds = (args.seed, iteration, epoch, args.process_index)
                for minibatch in minibatches(experience, args.num_mini_batches, *seeds):
                    # `input_ids` is what Trainer counts as the tokens seen
                    if trainer.update_ended:
                        yield {"input_ids": torch.empty(0, dtype=torch.long), "experience": None}
                    else:
                        yield {"input_ids": minibatch.sequences.ids, "experience": minibatch}
