"""The verdicts of rm and ppo: whether a reward model orders answers, and whether a policy's answers became better."""

from collections.abc import Mapping
from typing import Any

from chatpipe.evaluation.verdict import (
    CHANCE_OF_A_PAIR,
    FAILING_EOS_SHARE,
    Reason,
    Status,
    Verdict,
    reason,
    started_from,
    verdict_of,
)

MAX_KL = 15.0
"""Nats per answer (lm-human-preferences keeps 6). Far from the answers of its training a reward model guesses."""
FAILING_KL = 3 * MAX_KL
EOS_NOISE = 0.02
"""The share of answers that stop may fall by this much, or further where the interval of the change reaches 0."""
MAX_LENGTH_DRIFT = 2.0
"""Twice or half the length before: length is what misleads reward models most (arXiv 2409.17407)."""


def rm_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether the reward model orders validation answers better than chance, their length and their words do.

    Reads `eval_accuracy`, `accuracy_low`, `accuracy_high`, `length_baseline`, `length_rule`; where they are known,
    `words_baseline`, `words_lead_low` and `words_lead_high`; of rankings by several `between_annotators`,
    `between_annotators_low` and `_high`; and where an oracle knows the true order `annotator_agreement` and
    `annotator_agreement_low`.
    """
    accuracy, low, high = (metrics[key] for key in ("eval_accuracy", "accuracy_low", "accuracy_high"))
    measured = f"{accuracy:.1%} of validation pairs ordered correctly (95 % interval {low:.1%} to {high:.1%})"
    more = "rank more answers (sample.prompts, sample.k, more rm.data) or raise rm.learning_rate or rm.num_train_epochs"
    reasons = [
        reason(low > CHANCE_OF_A_PAIR, f"{measured}; the interval must lie above chance, 50 %", more),
        _better_than_length(metrics, more),
    ]
    if "words_baseline" in metrics:
        reasons.append(_better_than_words(metrics, more))
    if "between_annotators" in metrics:
        reasons.append(_between_annotators(metrics))
    if "annotator_agreement" in metrics:
        agreement, agreement_low = metrics["annotator_agreement"], metrics["annotator_agreement_low"]
        # A model of random rankings may agree with the oracle's order by accident; the rankings themselves show it.
        reasons.append(
            reason(
                agreement_low > CHANCE_OF_A_PAIR,
                f"The annotators themselves order {agreement:.1%} of the pairs as the oracle does "
                f"(95 % interval from {agreement_low:.1%}), to be above chance, 50 %",
                "look at the rankings, they teach nothing; lower rank.temperature, the annotators' noise",
            )
        )
    return verdict_of(reasons)


def ppo_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether the answers to validation prompts are better than those of the model that ppo started from.

    Reads `objective/kl` (nats per answer), `eos_share`, `eos_share_before`, `eos_change_high`, `length_before` and
    `length_after` (tokens); with an oracle (`oracle_score` is there) `win_rate`, `win_rate_low`, `win_rate_high`,
    `oracle_score`, `oracle_score_before`, `oracle_change_high`, `right`, `right_before` and `right_change_high`; with
    `ppo.oracle_reward_model` `oracle_reward_score`, `oracle_reward_score_before`, `oracle_reward_change_low`, `_high`;
    with neither the same of the rewards that it trained on, `reward_score` and so on, and `reward_sources` (model or
    function, for each). Training's `alarms` (sentences by name) are repeated, and `kl_budget_note` if it ended early.
    """
    scored = _oracle_reasons(metrics) if "oracle_score" in metrics else []
    if "oracle_reward_score" in metrics:
        scored.append(_oracle_reward_reason(metrics))
    if not scored:
        scored.append(_reward_reason(metrics))
    alarms: list[Reason] = [("warn", sentence) for sentence in metrics.get("alarms", {}).values()]
    note = metrics.get("kl_budget_note")
    ended: list[Reason] = [("pass", f"{note} (ppo.kl_budget).")] if note else []
    return verdict_of([*scored, *_drift_reasons(metrics), *alarms, *ended])


def _better_than_length(metrics: Mapping[str, Any], more: str) -> Reason:
    accuracy, low, baseline = metrics["eval_accuracy"], metrics["accuracy_low"], metrics["length_baseline"]
    rule = f"always choosing the {metrics['length_rule']} answer ({baseline:.1%})"
    if low > baseline:
        return "pass", f"Better than {rule}."
    if accuracy > baseline:
        return "warn", f"Better than {rule} only within noise: {accuracy:.1%}, interval from {low:.1%}. Try: {more}."
    return "fail", f"With {accuracy:.1%} it is no better than {rule}. Try: {more}."


def _better_than_words(metrics: Mapping[str, Any], more: str) -> Reason:
    """Fails only where the whole interval is below 0: on few pairs a small model hardly beats counting words."""
    accuracy, baseline = metrics["eval_accuracy"], metrics["words_baseline"]
    low, high = metrics["words_lead_low"], metrics["words_lead_high"]
    rule = f"counting words and length ({baseline:.1%})"
    lead = f"95 % interval of the lead {100 * low:+.1f} to {100 * high:+.1f} points"
    if low > 0:
        return "pass", f"Better than {rule}; {lead}."
    if accuracy > baseline:
        return "warn", f"Better than {rule} only within noise; {lead}. Try: {more}."
    status: Status = "warn" if high >= 0 else "fail"
    return status, f"With {accuracy:.1%} it is no better than {rule}; {lead}. Try: {more}."


def _between_annotators(metrics: Mapping[str, Any]) -> Reason:
    """Fails only where the whole interval is below chance: few answers are ranked twice, so that it is wide."""
    low, high = metrics["between_annotators_low"], metrics["between_annotators_high"]
    return reason(
        low > CHANCE_OF_A_PAIR,
        f"Annotators agree with each other on {metrics['between_annotators']:.1%} of pairs "
        f"(95 % interval {low:.1%} to {high:.1%}), to lie above chance, 50 %",
        "look at what they rank differently (chatpipe rankings stats STORE) and agree on what makes an answer good; "
        "have more answers ranked by several (--overlap)",
        otherwise="fail" if high < CHANCE_OF_A_PAIR else "warn",
    )


def _oracle_reasons(metrics: Mapping[str, Any]) -> list[Reason]:
    rate, low, high = (metrics[key] for key in ("win_rate", "win_rate_low", "win_rate_high"))
    oracle, before = metrics["oracle_score"], metrics["oracle_score_before"]
    right, right_before = metrics["right"], metrics["right_before"]
    return [
        reason(
            low > CHANCE_OF_A_PAIR,
            f"The oracle prefers it to {started_from(metrics)} on {rate:.1%} of validation prompts "
            f"(95 % interval {low:.1%} to {high:.1%}), to lie above 50 %",
            "raise ppo.total_episodes or ppo.learning_rate if the reward rose little, ppo.kl_coef if it rose much; "
            "and look at the verdict of rm",
            otherwise="warn" if rate > CHANCE_OF_A_PAIR else "fail",
        ),
        reason(
            oracle > before,
            f"Mean score by the oracle {oracle:.2f}; before ppo it was {before:.2f}",
            "raise ppo.kl_coef, and train a better reward model (sample.prompts, rm.num_train_epochs)",
            otherwise="fail" if metrics["oracle_change_high"] < 0 else "warn",
        ),
        reason(
            metrics["right_change_high"] >= 0,
            f"{right:.1%} of validation questions are answered correctly; before ppo {right_before:.1%}, "
            "and it may not fall by more than noise",
            "raise ppo.kl_coef or lower ppo.learning_rate; rank more answers (sample.prompts)",
        ),
    ]


def _oracle_reward_reason(metrics: Mapping[str, Any]) -> Reason:
    return reason(
        metrics["oracle_reward_change_low"] > 0,
        f"The score of ppo.oracle_reward_model {_change(metrics, 'oracle_reward')}",
        "raise ppo.total_episodes or ppo.learning_rate if the reward rose little, ppo.kl_coef if it rose much; "
        "and look at the verdict of rm",
        otherwise="fail" if metrics["oracle_reward_change_high"] < 0 else "warn",
    )


def _reward_reason(metrics: Mapping[str, Any]) -> Reason:
    sources = metrics["reward_sources"]
    who, what = f"the {len(sources)} rewards that it was trained on", "their weighted sum"
    if len(sources) == 1:
        who, what = f"the reward {sources[0]}", "its score"
    return reason(
        metrics["reward_change_low"] > 0,
        f"Only {who} scored this: {what} {_change(metrics, 'reward')}",
        "raise ppo.total_episodes or ppo.learning_rate, or lower ppo.kl_coef",
        otherwise="warn" if metrics["reward_score"] > metrics["reward_score_before"] else "fail",
    )


def _change(metrics: Mapping[str, Any], name: str) -> str:
    score, before, low, high = (
        metrics[f"{name}_{key}"] for key in ("score", "score_before", "change_low", "change_high")
    )
    return (
        f"on validation prompts is {score:.2f}, before ppo {before:.2f} "
        f"(95 % interval of the change {low:+.2f} to {high:+.2f}), to be above 0"
    )


def _drift_reasons(metrics: Mapping[str, Any]) -> list[Reason]:
    kl, share, share_before = metrics["objective/kl"], metrics["eos_share"], metrics["eos_share_before"]
    drift = metrics["length_after"] / metrics["length_before"]
    return [
        reason(
            kl <= MAX_KL,
            f"{kl:z.1f} nats of KL from {started_from(metrics)}; at most {MAX_KL:.0f} are expected",
            "raise ppo.kl_coef, or lower ppo.learning_rate or ppo.total_episodes",
            otherwise="warn" if kl <= FAILING_KL else "fail",
        ),
        reason(
            share >= share_before - EOS_NOISE or metrics["eos_change_high"] >= 0,
            f"{share:.1%} of answers stop by themselves; before ppo {share_before:.1%}, "
            f"and it may fall by {EOS_NOISE:.0%} or by noise",
            "raise ppo.missing_eos_penalty or ppo.response_length",
            otherwise="warn" if share >= FAILING_EOS_SHARE else "fail",
        ),
        reason(
            1 / MAX_LENGTH_DRIFT <= drift <= MAX_LENGTH_DRIFT,
            f"Answers are {drift:.1f} times as long as before ppo; "
            f"{1 / MAX_LENGTH_DRIFT:.1f} to {MAX_LENGTH_DRIFT:.1f} times are expected",
            "raise ppo.kl_coef, and compare the reward model with its length baseline in the verdict of rm",
            otherwise="warn",
        ),
    ]
