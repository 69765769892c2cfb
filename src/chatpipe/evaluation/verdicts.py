"""What the numbers of a stage mean: pass, warn or fail, why, and what to try next.

Pure functions of the metrics that a stage stores. A number that is not finite never passes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "warn", "fail"]
SEVERITY: tuple[Status, ...] = ("fail", "warn", "pass")

MIN_PRETRAIN_GAIN = 0.40
"""Below the untrained model's bits per byte. Token frequencies alone, learned in the first steps, give 20 to 25 % (on
tinyshakespeare and the pocketworld, 1,024 tokens)."""
DIVERGED = 1.01
"""Of the loss that training began with: above it the model has lost what it knew, and larger steps lose more."""
MIN_MASKED_GAIN = 0.10
"""Below guessing by frequency, where an encoder's loss stands still at first: less, and it has not begun to read."""
FAILING_EOS_SHARE, MIN_EOS_SHARE = 0.80, 0.95
"""Every answer that does not stop is cut off in chat and penalised in ppo: 1 in 20 is a nuisance, 1 in 5 a defect."""
MAX_LEFT_OUT_SHARE = 0.1
"""Of the conversations, for their length: what is left is no longer the data that was given."""
MIN_RIGHT = 0.90
"""Of questions whose answers stand in the text read; wrong facts that fine-tuning leaves are not what ppo can mend."""
CHANCE_OF_A_PAIR = 0.5
MAX_KL = 15.0
"""Nats per answer (lm-human-preferences holds 6): far from where its answers came from, a reward model guesses."""
FAILING_KL = 3 * MAX_KL
EOS_NOISE = 0.02
"""How far a share of stopping answers may fall: 1 to 2 standard errors of a share near 1 in 200 answers."""
MAX_LENGTH_DRIFT = 2.0
"""Answers of twice or half the length: length is what reward models are misled by most (arXiv 2409.17407)."""

MORE_STEPS = "raise pretrain.max_steps or pretrain.learning_rate"
SMALLER_STEPS = "lower pretrain.learning_rate"


@dataclass(frozen=True)
class Verdict:
    """Whether a stage has done what it is for, and the measured reasons, the gravest first."""

    status: Status
    reasons: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As stored in the manifest and printed by `--json`."""
        return asdict(self)


Finding = tuple[Status, str]


def pretrain_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether the base model has learned more of its text than counting does.

    Reads `eval_loss`, `bits_per_byte`, `trigram_bits_per_byte`, and `untrained_bits_per_byte` of a new model or
    `bits_per_byte_before` of one that went on from another.
    """
    bits, trigram = metrics["bits_per_byte"], metrics["trigram_bits_per_byte"]
    if not metrics["eval_loss"] < float("inf"):
        return _not_finite(metrics["eval_loss"])
    went_on = "bits_per_byte_before" in metrics
    began = metrics["bits_per_byte_before" if went_on else "untrained_bits_per_byte"]
    diverged = bits > DIVERGED * began
    beats_counting = _finding(
        bits < trigram,
        f"{bits:.2f} bits per byte; counting 3-grams of bytes gives {trigram:.2f}, which must be beaten",
        SMALLER_STEPS if diverged else f"{MORE_STEPS}, or read more text (pretrain.data)",
    )
    if went_on:
        gained = _finding(
            bits < began,
            f"{bits:.2f} bits per byte; the model it went on from had {began:.2f}",
            SMALLER_STEPS,
            otherwise="warn",
        )
    else:
        gain = 1 - bits / began
        gained = _finding(
            gain >= MIN_PRETRAIN_GAIN,
            f"{abs(gain):.0%} {'below' if gain >= 0 else 'above'} the untrained model's {began:.2f} bits per byte; "
            f"{MIN_PRETRAIN_GAIN:.0%} {'are' if gain >= 0 else 'below it are'} expected",
            SMALLER_STEPS if diverged else MORE_STEPS,
            otherwise="warn",
        )
    return _verdict([beats_counting, gained])


def masked_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether an encoder guesses hidden tokens from what stands around them.

    Reads `eval_loss`, `unigram_loss`, and `untrained_eval_loss` of a new model or `eval_loss_before` of one that went
    on from another.
    """
    loss, unigram = metrics["eval_loss"], metrics["unigram_loss"]
    went_on = "eval_loss_before" in metrics
    began = metrics["eval_loss_before" if went_on else "untrained_eval_loss"]
    if math.isnan(loss) and math.isnan(began):
        remedy = "raise pretrain.mlm_probability, or give more text (pretrain.data)"
        return _verdict([("fail", f"The held-out loss is nan: none of the held-out tokens was hidden. Try: {remedy}.")])
    if not loss < float("inf"):
        return _not_finite(loss)
    longer = f"{MORE_STEPS}; masked models learn nothing but frequencies for the first thousand steps or so"
    reads = _finding(
        loss < (1 - MIN_MASKED_GAIN) * unigram,
        f"{loss:.2f} nats per hidden token; guessing by frequency takes {unigram:.2f}, and {MIN_MASKED_GAIN:.0%} less "
        "are expected",
        SMALLER_STEPS if loss > DIVERGED * began else longer,
        otherwise="warn" if loss < unigram else "fail",
    )
    if not went_on:
        return _verdict([reads])
    gained = _finding(
        loss < began,
        f"{loss:.2f} nats per hidden token; the model it went on from had {began:.2f}",
        SMALLER_STEPS,
        otherwise="warn",
    )
    return _verdict([reads, gained])


def sft_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether the model answers, answers what was asked, and stops.

    Reads `eos_share`, `eval_loss`, `eval_loss_before` (the parent's); with an oracle (`oracle_score` is there)
    `right`, `right_low` and `chance`; without one `question_gain` and `question_gain_low` (nats per token). With
    `left_out_conversations` also `train_conversations`.
    """
    loss, before = metrics["eval_loss"], metrics["eval_loss_before"]
    findings = [
        _stops(metrics),
        _finding(
            loss < before,
            f"Held-out loss {loss:.2f} nats per token; before fine-tuning it was {before:.2f}",
            "lower sft.learning_rate or sft.num_train_epochs; a loss that rises is over-fitting",
            otherwise="warn",
        ),
    ]
    left_out = metrics.get("left_out_conversations", 0)
    if left_out:
        in_all = left_out + metrics["train_conversations"]
        findings.append(
            _finding(
                left_out <= MAX_LEFT_OUT_SHARE * in_all,
                f"{left_out / in_all:.0%} of the conversations were too long and left out",
                "raise sft.max_length, if need be with a model that reads more tokens",
                otherwise="warn",
            )
        )
    return _verdict(findings + (_facts(metrics) if "oracle_score" in metrics else [_heeds_the_question(metrics)]))


def rm_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether the reward model orders held-out answers better than chance, than their length and than their words do.

    Reads `eval_accuracy`, `accuracy_low`, `accuracy_high`, `length_baseline`, `length_rule`; where they are known,
    `words_baseline`, `words_lead_low` and `words_lead_high`; of rankings by several `between_annotators`,
    `between_annotators_low` and `_high`; and where an oracle knows the true order `annotator_agreement` and
    `annotator_agreement_low`.
    """
    accuracy, low, high = (metrics[key] for key in ("eval_accuracy", "accuracy_low", "accuracy_high"))
    measured = f"{accuracy:.1%} of held-out pairs ordered rightly (95 % interval {low:.1%} to {high:.1%})"
    more = "rank more answers (sample.prompts, sample.k, more rm.data) or raise rm.learning_rate or rm.num_train_epochs"
    findings = [
        _finding(low > CHANCE_OF_A_PAIR, f"{measured}; the interval must lie above chance, 50 %", more),
        _better_than_length(metrics, more),
    ]
    if "words_baseline" in metrics:
        findings.append(_better_than_words(metrics, more))
    if "between_annotators" in metrics:
        findings.append(_between_annotators(metrics))
    if "annotator_agreement" in metrics:
        agreement, agreement_low = metrics["annotator_agreement"], metrics["annotator_agreement_low"]
        # A model of random rankings may agree with the oracle's order by accident; the rankings themselves show it.
        findings.append(
            _finding(
                agreement_low > CHANCE_OF_A_PAIR,
                f"The annotators themselves order {agreement:.1%} of the pairs as the oracle does "
                f"(95 % interval from {agreement_low:.1%}), to be above chance, 50 %",
                "look at the rankings, they teach nothing; lower rank.temperature, the annotators' noise",
            )
        )
    return _verdict(findings)


def ppo_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether the answers to held-out prompts are better than those of the model that ppo started from.

    Reads `objective/kl` (nats per answer), `eos_share`, `eos_share_before`, `length_before` and `length_after`
    (tokens); with an oracle (`oracle_score` is there) `win_rate`, `win_rate_low`, `win_rate_high`, `oracle_score`,
    `oracle_score_before`, `oracle_change_high`, `right`, `right_before` and `right_change_high`; with
    `ppo.oracle_reward_model` `oracle_reward_score`, `oracle_reward_score_before`, `oracle_reward_change_low`, `_high`;
    with neither the same of the rewards that it trained on, `reward_score` and so on, and `reward_sources` (model or
    function, for each). Training's `alarms` (sentences by name) are repeated, and `kl_budget_note` if it ended early.
    """
    judged = _oracle_findings(metrics) if "oracle_score" in metrics else []
    if "oracle_reward_score" in metrics:
        judged.append(_oracle_reward_finding(metrics))
    if not judged:
        judged.append(_reward_finding(metrics))
    alarms: list[Finding] = [("warn", sentence) for sentence in metrics.get("alarms", {}).values()]
    note = metrics.get("kl_budget_note")
    ended: list[Finding] = [("pass", f"{note} (ppo.kl_budget).")] if note else []
    return _verdict([*judged, *_drift_findings(metrics), *alarms, *ended])


def _stops(metrics: Mapping[str, Any]) -> Finding:
    share = metrics["eos_share"]
    return _finding(
        share >= MIN_EOS_SHARE,
        f"{share:.1%} of held-out answers stop by themselves; {MIN_EOS_SHARE:.0%} are expected",
        "raise sft.num_train_epochs or sft.learning_rate; if the answers are long, evaluation.max_new_tokens",
        otherwise="warn" if share >= FAILING_EOS_SHARE else "fail",
    )


def _facts(metrics: Mapping[str, Any]) -> list[Finding]:
    right, low, chance = metrics["right"], metrics["right_low"], metrics["chance"]
    return [
        _finding(
            low > chance,
            f"{right:.1%} of held-out questions are answered rightly (95 % interval from {low:.1%}), "
            f"to be above chance, {chance:.1%}",
            "check that each answer in sft.data belongs to its question, and raise sft.num_train_epochs",
        ),
        _finding(
            right >= MIN_RIGHT,
            f"{right:.1%} right; {MIN_RIGHT:.0%} are expected",
            "raise sft.pretrain_mix, so that what was read is not forgotten, or pretrain.max_steps",
            otherwise="warn",
        ),
    ]


def _heeds_the_question(metrics: Mapping[str, Any]) -> Finding:
    gain, low = metrics["question_gain"], metrics["question_gain_low"]
    return _finding(
        low > 0,
        f"Answers are {gain:.3f} nats per token likelier under their own question than under another one "
        f"(95 % interval from {low:.3f}); at 0 or below, answers ignore the question",
        "check that each answer in sft.data belongs to its question; raise pretrain.max_steps or sft.num_train_epochs",
    )


def _better_than_length(metrics: Mapping[str, Any], more: str) -> Finding:
    accuracy, low, baseline = metrics["eval_accuracy"], metrics["accuracy_low"], metrics["length_baseline"]
    rule = f"always choosing the {metrics['length_rule']} answer ({baseline:.1%})"
    if low > baseline:
        return "pass", f"Better than {rule}."
    if accuracy > baseline:
        return "warn", f"Better than {rule} only within noise: {accuracy:.1%}, interval from {low:.1%}. Try: {more}."
    return "fail", f"With {accuracy:.1%} it is no better than {rule}. Try: {more}."


def _started_from(metrics: Mapping[str, Any]) -> str:
    return f"ppo of round {metrics['round'] - 1}" if "round" in metrics else "sft"


def _better_than_words(metrics: Mapping[str, Any], more: str) -> Finding:
    """Fails only where the lead is surely below 0: counting words is no mean rival of a small model on few pairs."""
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


def _between_annotators(metrics: Mapping[str, Any]) -> Finding:
    """Fails only where they surely contradict each other: few answers are ranked twice, and their interval is wide."""
    low, high = metrics["between_annotators_low"], metrics["between_annotators_high"]
    return _finding(
        low > CHANCE_OF_A_PAIR,
        f"Annotators agree with each other on {metrics['between_annotators']:.1%} of pairs "
        f"(95 % interval {low:.1%} to {high:.1%}), to lie above chance, 50 %",
        "look at what they rank differently (chatpipe rankings stats STORE) and agree on what makes an answer good; "
        "have more answers ranked by several (--overlap)",
        otherwise="fail" if high < CHANCE_OF_A_PAIR else "warn",
    )


def _oracle_findings(metrics: Mapping[str, Any]) -> list[Finding]:
    rate, low, high = (metrics[key] for key in ("win_rate", "win_rate_low", "win_rate_high"))
    oracle, before = metrics["oracle_score"], metrics["oracle_score_before"]
    right, right_before = metrics["right"], metrics["right_before"]
    return [
        _finding(
            low > CHANCE_OF_A_PAIR,
            f"The oracle prefers it to {_started_from(metrics)} on {rate:.1%} of held-out prompts "
            f"(95 % interval {low:.1%} to {high:.1%}), to lie above 50 %",
            "raise ppo.total_episodes or ppo.learning_rate if the reward rose little, ppo.kl_coef if it rose much; "
            "and look at the verdict of rm",
            otherwise="warn" if rate > CHANCE_OF_A_PAIR else "fail",
        ),
        _finding(
            oracle > before,
            f"Mean score by the oracle {oracle:.2f}; before ppo it was {before:.2f}",
            "raise ppo.kl_coef, and train a better reward model (sample.prompts, rm.num_train_epochs)",
            otherwise="fail" if metrics["oracle_change_high"] < 0 else "warn",
        ),
        _finding(
            metrics["right_change_high"] >= 0,
            f"{right:.1%} of held-out questions are answered rightly; before ppo {right_before:.1%}, "
            "and it may not fall by more than noise",
            "raise ppo.kl_coef or lower ppo.learning_rate; rank more answers (sample.prompts)",
        ),
    ]


def _oracle_reward_finding(metrics: Mapping[str, Any]) -> Finding:
    return _finding(
        metrics["oracle_reward_change_low"] > 0,
        f"The score of ppo.oracle_reward_model {_change(metrics, 'oracle_reward')}",
        "raise ppo.total_episodes or ppo.learning_rate if the reward rose little, ppo.kl_coef if it rose much; "
        "and look at the verdict of rm",
        otherwise="fail" if metrics["oracle_reward_change_high"] < 0 else "warn",
    )


def _reward_finding(metrics: Mapping[str, Any]) -> Finding:
    sources = metrics["reward_sources"]
    who, what = f"the {len(sources)} rewards that it was trained on", "their weighted sum"
    if len(sources) == 1:
        who, what = f"the reward {sources[0]}", "its score"
    return _finding(
        metrics["reward_change_low"] > 0,
        f"Only {who} judged this: {what} {_change(metrics, 'reward')}",
        "raise ppo.total_episodes or ppo.learning_rate, or lower ppo.kl_coef",
        otherwise="warn" if metrics["reward_score"] > metrics["reward_score_before"] else "fail",
    )


def _change(metrics: Mapping[str, Any], name: str) -> str:
    score, before, low, high = (
        metrics[f"{name}_{key}"] for key in ("score", "score_before", "change_low", "change_high")
    )
    return (
        f"on held-out prompts is {score:.2f}, before ppo {before:.2f} "
        f"(95 % interval of the change {low:+.2f} to {high:+.2f}), to be above 0"
    )


def _drift_findings(metrics: Mapping[str, Any]) -> list[Finding]:
    kl, share, share_before = metrics["objective/kl"], metrics["eos_share"], metrics["eos_share_before"]
    drift = metrics["length_after"] / metrics["length_before"]
    return [
        _finding(
            kl <= MAX_KL,
            f"{kl:.1f} nats of KL from {_started_from(metrics)}; at most {MAX_KL:.0f} are expected",
            "raise ppo.kl_coef, or lower ppo.learning_rate or ppo.total_episodes",
            otherwise="warn" if kl <= FAILING_KL else "fail",
        ),
        _finding(
            share >= share_before - EOS_NOISE,
            f"{share:.1%} of answers stop by themselves; before ppo {share_before:.1%}, "
            f"and it may not fall by more than {EOS_NOISE:.0%}",
            "raise ppo.missing_eos_penalty or ppo.response_length",
            otherwise="warn" if share >= FAILING_EOS_SHARE else "fail",
        ),
        _finding(
            1 / MAX_LENGTH_DRIFT <= drift <= MAX_LENGTH_DRIFT,
            f"Answers are {drift:.1f} times as long as before ppo; "
            f"{1 / MAX_LENGTH_DRIFT:.1f} to {MAX_LENGTH_DRIFT:.1f} times are expected",
            "raise ppo.kl_coef, and compare the reward model with its length baseline in the verdict of rm",
            otherwise="warn",
        ),
    ]


def _not_finite(loss: float) -> Verdict:
    return _verdict([("fail", f"The held-out loss is {loss}, not finite. Try: {SMALLER_STEPS}.")])


def _finding(good: bool, measured: str, remedy: str, otherwise: Status = "fail") -> Finding:
    return ("pass", f"{measured}.") if good else (otherwise, f"{measured}. Try: {remedy}.")


def _verdict(findings: Sequence[Finding]) -> Verdict:
    """The gravest status of all findings, and their sentences from the gravest down."""
    ordered = sorted(findings, key=lambda finding: SEVERITY.index(finding[0]))
    return Verdict(ordered[0][0], [reason for _, reason in ordered])
