"""Bugs that PPO implementations have had, each as a replacement of one of our functions.

Every mutant is a function of the true one: `k3_in_reward(k1)` is what stands in k1's place.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from chatpipe.data import sequences
from chatpipe.models import logprobs, unpadded
from chatpipe.ppo import maths, model, rollout
from chatpipe.reward import reward_model, rewards

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """`make(function)` takes the place of `function`; `killed_by` names a check that must catch it."""

    name: str
    function: Function
    make: Callable[[Function], Function]
    killed_by: str


# ---- reward ----


def k3_in_reward(_):
    return lambda logprobs, ref_logprobs: (ref_logprobs - logprobs).expm1() - (ref_logprobs - logprobs)


def kl_times(factor):
    return lambda true: lambda *args, **kwargs: factor * true(*args, **kwargs)


def score_on_every_token(true):
    def mutant(scores, ended, k1, lengths, *args, **kwargs):
        on_last = true(scores, ended, k1, lengths, *args, **kwargs)
        without = true(torch.zeros_like(scores), torch.ones_like(ended), k1, lengths, *args, **kwargs)
        last = sequences.last_index(lengths)
        return without + (on_last - without)[last].repeat_interleave(lengths)

    return mutant


def score_at_last_column(true):
    """Of a padded tensor: shorter completions lose it in the padding."""

    def mutant(scores, ended, k1, lengths, *args, **kwargs):
        rewards = true(scores, ended, k1, lengths, *args, **kwargs)
        without = true(torch.zeros_like(scores), torch.ones_like(ended), k1, lengths, *args, **kwargs)
        return torch.where((lengths == lengths.max()).repeat_interleave(lengths), rewards, without)

    return mutant


def score_one_step_later(_):
    """Than the EOS: in flat experience on the first token of the next completion."""
    return lambda lengths: lengths.cumsum(0) % lengths.sum()


def penalise_wrong_rows(true):
    return lambda scores, ended, *args, **kwargs: true(scores, ~ended, *args, **kwargs)


def whitened_rewards(shift):
    def make(true):
        def mutant(*args, **kwargs):
            rewards = true(*args, **kwargs)
            mean, deviation = rewards.mean(), rewards.std(correction=0)
            return (rewards - mean) / deviation + (0 if shift else mean)

        return mutant

    return make


# ---- advantages ----


def gae_with(**changed):
    def make(true):
        def mutant(rewards, values, lengths, gamma, lam):
            return true(rewards, values, lengths, **{"gamma": gamma, "lam": lam} | changed)

        return mutant

    return make


def next_row_follows(true):
    """Nothing ends an episode: its last token bootstraps from the first value of the next row."""
    return lambda rewards, values, lengths, *more: true(rewards, values, lengths.sum()[None], *more)


def whiten_over_padding(true):
    return lambda raw, *more: true(torch.cat([raw, raw.new_zeros(len(raw) // 3 + 1)]), *more)[: len(raw)]


def mean_added_back(true):
    return lambda raw, *more: true(raw, *more) + raw.mean()


def no_whitening(_):
    return lambda raw, *more: raw.clone()


def returns_of_whitened(true):
    def mutant(*args, **kwargs):
        made = true(*args, **kwargs)
        return replace(made, returns=made.advantages + made.values)

    return mutant


# ---- loss ----


def without_gradient_at(which):
    """Some completion tokens are masked from the loss: `which(lengths, ended)` gives their places."""

    def make(true):
        def mutant(logprobs, values, part, *args, **kwargs):
            sequences = part.sequences
            masked = torch.zeros(len(logprobs), dtype=torch.bool)
            masked[which(sequences.completion_lengths, sequences.ended)] = True
            return true(torch.where(masked, logprobs.detach(), logprobs), values, part, *args, **kwargs)

        return mutant

    return make


def mean_per_sequence(true):
    """Every completion weighs the same, so the tokens of short ones weigh more."""

    def mutant(logprobs, values, part, *args, **kwargs):
        lengths = part.sequences.completion_lengths
        weight = (lengths.double().mean() / lengths).repeat_interleave(lengths)
        return true(logprobs, values, replace(part, advantages=part.advantages * weight), *args, **kwargs)

    return mutant


def mean_of_means(true):
    """Every micro-batch weighs the same, however many tokens it has."""

    def mutant(logprobs, *args, **kwargs):
        total, statistics = true(logprobs, *args, **kwargs)
        return 30 * total / len(logprobs), statistics

    return mutant


def inverted_ratio(true):
    return lambda new, old, *args, **kwargs: true(2 * old - new, old, *args, **kwargs)


def min_for_max(true):
    """min(-A rho, -A clip(rho)) is what the negative advantage gives, negated."""

    def mutant(new, old, raw, *args, **kwargs):
        total, statistics = true(new, old, -raw, *args, **kwargs)
        return -total, statistics

    return mutant


def no_policy_clip(true):
    return lambda new, old, raw, cliprange: true(new, old, raw, 1e9)


def no_value_clip(true):
    return lambda values, old, returns, cliprange_value: true(values, old, returns, 1e9)


def value_clip_around_the_return(true):
    return lambda values, old, returns, cliprange_value: true(values, returns, returns, cliprange_value)


# ---- reading the models ----


def one_column_further(true):
    """V_t is read where token t already stands, so that the baseline has seen the action."""
    return lambda value_model, batch: true(value_model, batch._replace(columns=batch.columns + 1))


def temperature_1(true):
    return lambda head, hidden, tokens, temperature, *more: true(head, hidden, tokens, 1.0, *more)


def one_token_before_the_last(true):
    def mutant(reward_model, input_ids, mask):
        is_last = torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1
        return true(reward_model, input_ids, mask * ~is_last)

    return mutant


def multiplied_by_the_mask(_):
    """What is not wanted is multiplied by 0 instead of left out."""

    def mutant(body, tokens, rows, columns):
        hidden = unpadded._padded(body, tokens).flatten(0, 1)
        wanted = torch.zeros(len(rows), len(hidden), dtype=hidden.dtype)
        wanted[torch.arange(len(rows)), rows * tokens.input_ids.shape[1] + columns] = 1
        return wanted @ hidden

    return mutant


def left_in_reading_order(_):
    return lambda values, places: values


def padding_attended(true):
    """Padding stands on the left and positions count it (trlx #508)."""

    def mutant(sequences):
        batch = true(sequences)
        shift = batch.input_ids.shape[1] - sequences.lengths
        ids, mask = (
            torch.stack([row.roll(int(by)) for row, by in zip(cells, shift, strict=True)])
            for cells in (batch.input_ids, batch.attention_mask)
        )
        return batch._replace(input_ids=ids, attention_mask=mask, columns=batch.columns + shift[batch.rows])

    return mutant


def dropout_until_training(_):
    """`eval()` instead of a probability of 0: the update, which trains, has dropout again."""
    return lambda module: module.eval() and None


LAST, FIRST = (lambda lengths, ended: lengths.cumsum(0) - 1), (lambda lengths, ended: lengths.cumsum(0) - lengths)

MUTANTS = [
    Mutant("k3 in the reward", maths.k1, k3_in_reward, "T1 tabular"),
    Mutant("KL with flipped sign", maths.k1, kl_times(-1), "T1 tabular"),
    Mutant("no KL", maths.k1, kl_times(0), "T1 tabular"),
    Mutant("score at the last column", maths.shape_rewards, score_at_last_column, "T1 tabular"),
    Mutant("score one step after EOS", sequences.last_index, score_one_step_later, "T1 tabular"),
    Mutant("score on every token", maths.shape_rewards, score_on_every_token, "T1 tabular"),
    Mutant("missing-EOS penalty for those that ended", rewards.penalise_missing_eos, penalise_wrong_rows, "T1 tabular"),
    Mutant("rewards whitened, mean kept", maths.shape_rewards, whitened_rewards(shift=False), "T1 tabular"),
    Mutant("rewards whitened and shifted", maths.shape_rewards, whitened_rewards(shift=True), "T1 tabular"),
    Mutant("gamma .8", maths.gae, gae_with(gamma=0.8), "T1 tabular"),
    Mutant("lambda ignored", maths.gae, gae_with(lam=1.0), "T3 GAE"),
    Mutant("episodes run into each other", maths.gae, next_row_follows, "T3 GAE"),
    Mutant("whitening over padding", maths.whiten, whiten_over_padding, "T3 whitening"),
    Mutant("whitening adds the mean back", maths.whiten, mean_added_back, "T3 whitening"),
    Mutant("no whitening", maths.whiten, no_whitening, "T3 whitening"),
    Mutant("returns of whitened advantages", rollout.advantages, returns_of_whitened, "T3 experience"),
    Mutant("first token masked", maths.ppo_loss, without_gradient_at(FIRST), "T1 tabular"),
    Mutant(
        "EOS masked", maths.ppo_loss, without_gradient_at(lambda lengths, ended: LAST(lengths, 0)[ended]), "T1 tabular"
    ),
    Mutant("mean per sequence", maths.ppo_loss, mean_per_sequence, "T1 tabular"),
    Mutant("mean of the micro-batches' means", maths.ppo_loss, mean_of_means, "T6 splits"),
    Mutant("inverted ratio", maths.policy_loss, inverted_ratio, "T1 tabular"),
    Mutant("min for max in the policy clip", maths.policy_loss, min_for_max, "T4 clip tables"),
    Mutant("no policy clip", maths.policy_loss, no_policy_clip, "T4 clip tables"),
    Mutant("no value clip", maths.value_loss, no_value_clip, "T4 clip tables"),
    Mutant("value clipped around the return", maths.value_loss, value_clip_around_the_return, "T4 clip tables"),
    Mutant("value off by one", model.completion_values, one_column_further, "T1 trainer"),
    Mutant("sampled at .7, scored at 1", logprobs.token_logprobs, temperature_1, "T7 sampler"),
    Mutant("score of the token before the last", reward_model.batch_scores, one_token_before_the_last, "T1 trainer"),
    Mutant("padding multiplied by 0", unpadded.hidden_states_at, multiplied_by_the_mask, "T5 poison"),
    Mutant("results in the order of reading", rollout.put_back, left_in_reading_order, "T1 trainer"),
    Mutant("left padding without position ids", sequences.pad, padding_attended, "T6 loop"),
    Mutant("dropout in the update", model.disable_dropout, dropout_until_training, "T7 nothing moves"),
]
