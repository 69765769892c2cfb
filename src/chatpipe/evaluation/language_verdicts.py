"""The verdicts of pretrain and sft: whether a language model predicts text, answers, heeds the question and stops."""

import math
from collections.abc import Mapping
from typing import Any

from chatpipe.evaluation.verdict import FAILING_EOS_SHARE, MIN_EOS_SHARE, Reason, Verdict, reason, verdict_of

MIN_PRETRAIN_GAIN = 0.40
"""The share by which bits per byte must fall below the untrained model's. Token frequencies alone, learned in the first
steps, give 20 to 25 % (on tinyshakespeare and the pocketworld, 1,024 tokens)."""
DIVERGED = 1.01
"""A loss above this multiple of the first one has diverged: larger steps would make it worse."""
MIN_MASKED_GAIN = 0.10
"""The share by which an encoder's loss must fall below guessing by frequency, where it stays for the first steps."""
MAX_LEFT_OUT_SHARE = 0.1
"""Where more conversations are too long, training no longer sees the data that was given."""
MIN_RIGHT = 0.90
"""The share of questions, answered in the pretraining text, to answer correctly: ppo does not mend wrong facts."""

MORE_STEPS = "raise pretrain.max_steps or pretrain.learning_rate"
SMALLER_STEPS = "lower pretrain.learning_rate"


def pretrain_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether the base model predicts its text better than counting does.

    Reads `eval_loss`, `bits_per_byte`, `trigram_bits_per_byte`, and `untrained_bits_per_byte` of a new model or
    `bits_per_byte_before` of one that started from another.
    """
    bits, trigram = metrics["bits_per_byte"], metrics["trigram_bits_per_byte"]
    if not metrics["eval_loss"] < float("inf"):
        return _not_finite(metrics["eval_loss"])
    went_on = "bits_per_byte_before" in metrics
    began = metrics["bits_per_byte_before" if went_on else "untrained_bits_per_byte"]
    diverged = bits > DIVERGED * began
    beats_counting = reason(
        bits < trigram,
        f"{bits:.2f} bits per byte; counting 3-grams of bytes gives {trigram:.2f}, which must be beaten",
        SMALLER_STEPS if diverged else f"{MORE_STEPS}, or read more text (pretrain.data)",
    )
    if went_on:
        gained = reason(
            bits < began,
            f"{bits:.2f} bits per byte; the model it started from had {began:.2f}",
            SMALLER_STEPS,
            otherwise="warn",
        )
    else:
        gain = 1 - bits / began
        gained = reason(
            gain >= MIN_PRETRAIN_GAIN,
            f"{abs(gain):.0%} {'below' if gain >= 0 else 'above'} the untrained model's {began:.2f} bits per byte; "
            f"{MIN_PRETRAIN_GAIN:.0%} {'are' if gain >= 0 else 'below it are'} expected",
            SMALLER_STEPS if diverged else MORE_STEPS,
            otherwise="warn",
        )
    return verdict_of([beats_counting, gained])


def masked_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether an encoder guesses hidden tokens from the tokens around them.

    Reads `eval_loss`, `unigram_loss`, and `untrained_eval_loss` of a new model or `eval_loss_before` of one that
    started from another.
    """
    loss, unigram = metrics["eval_loss"], metrics["unigram_loss"]
    went_on = "eval_loss_before" in metrics
    began = metrics["eval_loss_before" if went_on else "untrained_eval_loss"]
    if math.isnan(loss) and math.isnan(began):
        remedy = "raise pretrain.mlm_probability, or give more text (pretrain.data)"
        return verdict_of(
            [("fail", f"The validation loss is nan: none of the validation tokens was hidden. Try: {remedy}.")]
        )
    if not loss < float("inf"):
        return _not_finite(loss)
    longer = f"{MORE_STEPS}; masked models learn nothing but frequencies for the first thousand steps or so"
    reads = reason(
        loss < (1 - MIN_MASKED_GAIN) * unigram,
        f"{loss:.2f} nats per hidden token; guessing by frequency takes {unigram:.2f}, and {MIN_MASKED_GAIN:.0%} less "
        "are expected",
        SMALLER_STEPS if loss > DIVERGED * began else longer,
        otherwise="warn" if loss < unigram else "fail",
    )
    if not went_on:
        return verdict_of([reads])
    gained = reason(
        loss < began,
        f"{loss:.2f} nats per hidden token; the model it started from had {began:.2f}",
        SMALLER_STEPS,
        otherwise="warn",
    )
    return verdict_of([reads, gained])


def sft_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether the model has learned the conversations, answers the question, and stops.

    Reads `eos_share`, where it is known `answers_within_limit`, the share of the data's answers that could stop,
    `eval_loss`, `eval_loss_before` (the parent's); with an oracle (`oracle_score` is there)
    `right`, `right_low` and `chance`; without one `question_gain` and `question_gain_low` (nats per token). With
    `left_out_conversations` also `train_conversations`.
    """
    loss, before = metrics["eval_loss"], metrics["eval_loss_before"]
    reasons = [
        _stops(metrics),
        reason(
            loss < before,
            f"Validation loss {loss:.2f} nats per token; before fine-tuning it was {before:.2f}",
            "lower sft.learning_rate or sft.num_train_epochs; a loss that rises is over-fitting",
            otherwise="warn",
        ),
    ]
    left_out = metrics.get("left_out_conversations", 0)
    if left_out:
        in_all = left_out + metrics["train_conversations"]
        reasons.append(
            reason(
                left_out <= MAX_LEFT_OUT_SHARE * in_all,
                f"{left_out / in_all:.0%} of the conversations were too long and left out",
                "raise sft.max_length, if need be with a model that reads more tokens",
                otherwise="warn",
            )
        )
    if "oracle_score" in metrics:
        reasons += _facts(metrics)
    elif "question_gain" in metrics:  # which takes two conversations that can exchange their answers
        reasons.append(_heeds_the_question(metrics))
    return verdict_of(reasons)


def _stops(metrics: Mapping[str, Any]) -> Reason:
    share, within = metrics["eos_share"], metrics.get("answers_within_limit", 1.0)
    longer = f"{1 - within:.0%}"
    why = "" if longer == "0%" else f", since {longer} of those in the data are longer than evaluation.max_new_tokens"
    return reason(
        share >= MIN_EOS_SHARE * within,
        f"{share:.1%} of validation answers stop by themselves; {MIN_EOS_SHARE * within:.0%} are expected{why}",
        "raise sft.num_train_epochs or sft.learning_rate; if the answers are long, evaluation.max_new_tokens",
        otherwise="warn" if share >= FAILING_EOS_SHARE * within else "fail",
    )


def _facts(metrics: Mapping[str, Any]) -> list[Reason]:
    right, low, chance = metrics["right"], metrics["right_low"], metrics["chance"]
    return [
        reason(
            low > chance,
            f"{right:.1%} of validation questions are answered correctly (95 % interval from {low:.1%}), "
            f"to be above chance, {chance:.1%}",
            "check that each answer in sft.data belongs to its question, and raise sft.num_train_epochs",
        ),
        reason(
            right >= MIN_RIGHT,
            f"{right:.1%} are correct; {MIN_RIGHT:.0%} are expected",
            "raise sft.pretrain_mix, so that what was read is not forgotten, or pretrain.max_steps",
            otherwise="warn",
        ),
    ]


def _heeds_the_question(metrics: Mapping[str, Any]) -> Reason:
    gain, low = metrics["question_gain"], metrics["question_gain_low"]
    return reason(
        low > 0,
        f"Answers are {gain:.3f} nats per token likelier under their own question than under another one "
        f"(95 % interval from {low:.3f}); at 0 or below, answers ignore the question",
        "check that each answer in sft.data belongs to its question; raise pretrain.max_steps or sft.num_train_epochs",
    )


def _not_finite(loss: float) -> Verdict:
    return verdict_of([("fail", f"The validation loss is {loss}, not finite. Try: {SMALLER_STEPS}.")])
