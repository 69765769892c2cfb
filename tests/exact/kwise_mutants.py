"""Known bugs of reward models on rankings, each as a replacement for one function or class of the real code."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from chatpipe.reward import reward_model, reward_trainer, training_data


@dataclass(frozen=True)
class Mutant:
    """`make` turns the true function or class into the wrong one; `killed_by` names the check that must catch it."""

    name: str
    function: Callable[..., Any]
    make: Callable[[Callable[..., Any]], Callable[..., Any]]
    killed_by: str


# ---- which pairs are compared, and how ----


def sign_flipped(true):
    return lambda scores: -true(scores)


def ties_are_wins(true):
    """Of two tied answers the one that stands first counts as the better."""

    def mutant(ranks):
        places = torch.arange(ranks.shape[1], device=ranks.device)
        return true(torch.where(ranks > 0, ranks * ranks.shape[1] + places, 0))

    return mutant


def ranks_reversed(true):
    return lambda ranks: true(torch.where(ranks > 0, ranks.max() + 1 - ranks, 0))


def neighbours_alone(true):
    """Only answers whose ranks follow each other are compared."""
    return lambda ranks: true(ranks) & (ranks[:, None, :] - ranks[:, :, None] == 1)


def best_against_the_rest(true):
    """As with a single chosen answer: the other pairs are lost."""
    return lambda ranks: true(ranks) & (ranks == 1)[:, :, None]


def filling_is_compared(_):
    """Where a prompt has fewer answers than another, its filling counts as answers."""
    return lambda ranks: ranks[:, :, None] < ranks[:, None, :]


# ---- the loss of a prompt ----


def loss_with(pair_loss=lambda ahead: -logsigmoid(ahead), count=lambda pairs: pairs.sum((1, 2)), margin_sign=-1):
    """The true loss but for one of its parts."""

    def make(_):
        def mutant(scores, ranks, margins=None):
            pairs = reward_trainer.comparable_pairs(ranks)
            ahead = reward_trainer.pair_margins(scores)
            if margins is not None:
                ahead = ahead + margin_sign * margins[:, None, None]
            return torch.where(pairs, pair_loss(ahead), 0.0).sum((1, 2)) / count(pairs).clamp(min=1)

        return mutant

    return make


def mean_over_the_batch(pairs):
    """Each pair weighs the same, so that a prompt with nine answers weighs as much as 36 with two."""
    counts = pairs.sum((1, 2))
    return (counts.sum() / (counts > 0).sum().clamp(min=1)).expand(len(counts))


def per_answer(pairs):
    """Divided by K instead of by the number of pairs."""
    return pairs.any(2).sum(1) + 1


# ---- batches, scores and the step ----


def weights_ignored(true):
    class Mutant(true):
        def __call__(self, rankings):
            batch = super().__call__(rankings)
            return {**batch, "weights": torch.ones_like(batch["weights"])}

    return Mutant


def first_annotator_alone(true):
    """What the others said of the same answers is lost."""

    class Mutant(true):
        def __call__(self, rankings):
            return super().__call__([training_data.EncodedRanking(r.sequences, r.judgements[:1]) for r in rankings])

    return Mutant


def padding_scored(true):
    """Each row is read at the last column, which holds padding in all but the longest."""
    return lambda model, input_ids, mask: true(model, input_ids, torch.ones_like(mask))


def token_before_the_last(true):
    def mutant(model, input_ids, mask):
        is_last = torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1
        return true(model, input_ids, mask * ~is_last)

    return mutant


def left_longest_first(true):
    """The scores stay in the order in which the model reads the rows."""

    def mutant(model, input_ids, mask):
        return true(model, input_ids, mask)[mask.sum(1).argsort(descending=True, stable=True)]

    return mutant


def head_in_bfloat16(true):
    return lambda head, hidden: true(head, hidden.bfloat16()).to(hidden.dtype)


def all_tied_count(true):
    """Judgements without a pair count in the mean."""

    class Mutant(true):
        def get_batch_samples(self, *args):
            batches, _ = super().get_batch_samples(*args)
            return batches, sum(batch["weights"].sum() for batch in batches)

    return Mutant


def mean_of_means(true):
    """Each micro-batch divides by its own weight."""

    class Mutant(true):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            has_pair = reward_trainer.comparable_pairs(inputs["ranks"]).any((1, 2))
            own = inputs["weights"][has_pair].sum() * self.args.gradient_accumulation_steps
            return super().compute_loss(model, inputs, return_outputs, own)

    return Mutant


MUTANTS = [
    Mutant("sign flipped", reward_trainer.pair_margins, sign_flipped, "loss"),
    Mutant("ties are wins", reward_trainer.comparable_pairs, ties_are_wins, "loss"),
    Mutant("ranks reversed", reward_trainer.comparable_pairs, ranks_reversed, "loss"),
    Mutant("neighbours alone", reward_trainer.comparable_pairs, neighbours_alone, "loss"),
    Mutant("the best against the rest", reward_trainer.comparable_pairs, best_against_the_rest, "loss"),
    Mutant("filling is compared", reward_trainer.comparable_pairs, filling_is_compared, "loss"),
    Mutant("sum over pairs", reward_trainer.ranking_loss, loss_with(count=lambda p: p.any((1, 2)).long()), "loss"),
    Mutant("mean over the batch's pairs", reward_trainer.ranking_loss, loss_with(count=mean_over_the_batch), "loss"),
    Mutant("mean over answers", reward_trainer.ranking_loss, loss_with(count=per_answer), "loss"),
    Mutant("sigmoid for its logarithm", reward_trainer.ranking_loss, loss_with(lambda a: -a.sigmoid()), "loss"),
    Mutant("hinge", reward_trainer.ranking_loss, loss_with(lambda a: (1 - a).clamp(min=0)), "loss"),
    Mutant("margin dropped", reward_trainer.ranking_loss, loss_with(margin_sign=0), "margins"),
    Mutant("margin added", reward_trainer.ranking_loss, loss_with(margin_sign=1), "margins"),
    Mutant("weights ignored", training_data.RankingCollator, weights_ignored, "step"),
    Mutant("first annotator alone", training_data.RankingCollator, first_annotator_alone, "step"),
    Mutant("padding scored", reward_model.batch_scores, padding_scored, "step"),
    Mutant("score of the token before the last", reward_model.batch_scores, token_before_the_last, "step"),
    Mutant("scores in the order of reading", reward_model.batch_scores, left_longest_first, "step"),
    Mutant("head in bfloat16", reward_model.head_scores, head_in_bfloat16, "step"),
    Mutant("rankings that are all ties count", reward_trainer.RewardTrainer, all_tied_count, "step"),
    Mutant("mean of the micro-batches' means", reward_trainer.RewardTrainer, mean_of_means, "step"),
]
