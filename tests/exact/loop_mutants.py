"""Bugs of the loop itself: its iterations, epochs, minibatches, steps and coefficient. See `mutants.py`."""

import dataclasses

import torch
from mutants import Mutant

from chatpipe.data.sequences import pad
from chatpipe.ppo import experience as prompts
from chatpipe.ppo import rollout
from chatpipe.ppo.loop import OwnLoop
from chatpipe.ppo.maths import adapted_coefficient
from chatpipe.ppo.trainer import PPOTrainer

# ---- minibatches ----


def more_epochs(true):
    def mutant(experience, args, iteration):
        yield from true(experience, args, iteration)
        yield from list(true(experience, args, iteration))[-args.num_mini_batches :]

    return mutant


def one_order_for_all_epochs(true):
    def mutant(experience, args, iteration):
        first = list(true(experience, args, iteration))[: args.num_mini_batches]
        for _ in range(args.num_ppo_epochs):
            yield from first

    return mutant


def same_order_in_each_iteration(true):
    return lambda experience, args, iteration: true(experience, args, 0)


def last_minibatch_dropped(true):
    """As loaders do with `drop_last`: here the last of each epoch is the one before it."""

    def mutant(experience, args, iteration):
        made = list(true(experience, args, iteration))
        for number in range(len(made)):
            is_last = (number + 1) % args.num_mini_batches == 0
            yield made[number - 1] if is_last else made[number]

    return mutant


# ---- iterations ----


def same_prompts_in_each_iteration(true):
    def mutant(self):
        iteration, self.iteration = self.iteration, 0
        try:
            return true(self)
        finally:
            self.iteration = iteration

    return mutant


def counted_twice(true):
    def mutant(self):
        true(self)
        self.iteration += 1

    return mutant


def counted_before_the_rollout(true):
    """The prompts and random numbers of the next iteration."""

    def mutant(self):
        self.iteration += 1
        try:
            return true(self)
        finally:
            self.iteration -= 1

    return mutant


def same_random_numbers_in_each_rollout(true):
    return lambda use, *numbers: true(use, *(numbers[:1] if use == prompts.GENERATION else numbers))


def coefficient_adapted_before_its_use(true):
    def mutant(self, *args):
        made = true(self, *args)
        kl = ((made.logprobs - made.ref_logprobs).sum() / len(made.sequences)).item()
        target, horizon = self.args.adaptive_kl_target, self.args.adaptive_kl_horizon
        self.kl_coef = adapted_coefficient(self.kl_coef, kl, target, 16, horizon)
        return made

    return mutant


def coefficient_adapted_to_steps(true):
    """Once for each optimizer step of an iteration, not once."""

    def mutant(self):
        before = self.kl_coef
        true(self)
        self.kl_coef = before * (self.kl_coef / before) ** self.args.steps_per_iteration

    return mutant


# ---- steps ----


def every_other_step_skipped(true):
    def mutant(self, loss):
        if self.state.global_step % 2:
            self.model.zero_grad()
        true(self, loss)

    return mutant


def gradients_kept(true):
    """No zero_grad: each step goes along the sum of all gradients so far."""

    def mutant(self, loss):
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        gradients = [parameter.grad.clone() for parameter in parameters]
        true(self, loss)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    return mutant


def clipped_together(true):
    """As one gradient: the larger one takes the other down with it."""
    return OwnLoop.clip_gradients


def schedule_by_iterations(true):
    def mutant(self):
        step = self.lr_scheduler.step
        self.lr_scheduler.step = step if (self.state.global_step + 1) % self.args.steps_per_iteration == 0 else int
        try:
            true(self)
        finally:
            self.lr_scheduler.step = step

    return mutant


def old_policy_is_the_newest(true):
    """The ratio is 1 in all epochs, so nothing is clipped."""

    def mutant(self, minibatch):
        with torch.no_grad():
            newest = self.model(*pad(minibatch.sequences)).logprobs
        return true(self, dataclasses.replace(minibatch, logprobs=newest))

    return mutant


LOOP_MUTANTS = [
    Mutant("an epoch too many", rollout.minibatches, more_epochs, "T9 loop"),
    Mutant("one order for all epochs", rollout.minibatches, one_order_for_all_epochs, "T9 loop"),
    Mutant("one order for all iterations", rollout.minibatches, same_order_in_each_iteration, "T9 loop"),
    Mutant("last minibatch dropped", rollout.minibatches, last_minibatch_dropped, "T9 loop"),
    Mutant("the same prompts in each iteration", PPOTrainer.next_prompts, same_prompts_in_each_iteration, "T9 loop"),
    Mutant("iterations counted twice", PPOTrainer.end_iteration, counted_twice, "T9 loop"),
    Mutant("an iteration's prompts too early", PPOTrainer.next_prompts, counted_before_the_rollout, "T9 loop"),
    Mutant("the same seed for each rollout", prompts.seed_for, same_random_numbers_in_each_rollout, "T9 loop"),
    Mutant("KL coefficient adapted before its use", PPOTrainer.rollout, coefficient_adapted_before_its_use, "T9 loop"),
    Mutant("KL coefficient adapted to steps", PPOTrainer.end_iteration, coefficient_adapted_to_steps, "T9 loop"),
    Mutant("every other optimizer step skipped", OwnLoop.take_step, every_other_step_skipped, "T9 loop"),
    Mutant("gradients kept from step to step", OwnLoop.take_step, gradients_kept, "T9 loop"),
    Mutant("gradients clipped together", PPOTrainer.clip_gradients, clipped_together, "T9 loop"),
    Mutant("learning rate falls by iterations", OwnLoop.end_step, schedule_by_iterations, "T9 loop"),
    Mutant("old log-probs renewed in each step", PPOTrainer.backward, old_policy_is_the_newest, "T9 loop"),
]
