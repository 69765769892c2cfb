import itertools
import math
import re

import pytest
from pydantic import BaseModel

from chatpipe.evaluation.language_verdicts import masked_verdict, pretrain_verdict, sft_verdict
from chatpipe.evaluation.preference_verdicts import ppo_verdict, rm_verdict
from chatpipe.evaluation.verdict import Verdict
from chatpipe.recipe.schema import Recipe

PRETRAIN = {"eval_loss": 2.0, "bits_per_byte": 1.0, "trigram_bits_per_byte": 2.0, "untrained_bits_per_byte": 4.0}
PRETRAIN_ON = {"eval_loss": 2.0, "bits_per_byte": 1.0, "trigram_bits_per_byte": 2.0, "bits_per_byte_before": 1.5}
MASKED = {"eval_loss": 4.0, "unigram_loss": 5.0, "untrained_eval_loss": 7.0}
MASKED_ON = {"eval_loss": 4.0, "unigram_loss": 5.0, "eval_loss_before": 4.4}
SFT = {"eos_share": 0.99, "eval_loss": 0.5, "eval_loss_before": 3.0}
SFT_GOLD = {**SFT, "oracle_score": 1.2, "right": 0.95, "right_low": 0.91, "chance": 0.2}
SFT_REAL = {**SFT, "question_gain": 0.3, "question_gain_low": 0.1}
RM = {
    "eval_accuracy": 0.8,
    "accuracy_low": 0.76,
    "accuracy_high": 0.84,
    "length_baseline": 0.6,
    "length_rule": "longer",
}
RM_WORDS = {**RM, "words_baseline": 0.7, "words_lead_low": 0.02, "words_lead_high": 0.18}
RM_SEVERAL = {
    **RM,
    "between_annotators": 0.726,
    "between_annotators_low": 0.70,
    "between_annotators_high": 0.75,
}
RM_GOLD = {**RM, "annotator_agreement": 0.85, "annotator_agreement_low": 0.8}
PPO = {
    "objective/kl": 8.0,
    "eos_share": 0.99,
    "eos_share_before": 0.97,
    "eos_change_high": -0.001,
    "length_before": 10.0,
    "length_after": 12.0,
}
PPO_ORACLE = {
    **PPO,
    "win_rate": 0.75,
    "win_rate_low": 0.7,
    "win_rate_high": 0.8,
    "oracle_score": 1.8,
    "oracle_score_before": 1.1,
    "oracle_change_high": 0.9,
    "right": 0.94,
    "right_before": 0.95,
    "right_change_high": 0.02,
}
PPO_REAL = {
    **PPO,
    "reward_score": 1.0,
    "reward_score_before": 0.0,
    "reward_change_low": 0.8,
    "reward_change_high": 1.2,
    "reward_sources": ["model"],
}
ORACLE_MODEL = {
    "oracle_reward_score": 1.5,
    "oracle_reward_score_before": 1.0,
    "oracle_reward_change_low": 0.3,
    "oracle_reward_change_high": 0.7,
}
PPO_WITH_MODEL = {**PPO_REAL, **ORACLE_MODEL}
RANDOM_RM = {"eval_accuracy": 0.51, "accuracy_low": 0.47, "accuracy_high": 0.55}

# verdict, good metrics, what is changed in them, the status that must follow
CASES = [
    (pretrain_verdict, PRETRAIN, {}, "pass"),
    (pretrain_verdict, PRETRAIN, {"bits_per_byte": 1.999}, "pass"),
    (pretrain_verdict, PRETRAIN, {"bits_per_byte": 2.0}, "fail"),
    (pretrain_verdict, PRETRAIN, {"bits_per_byte": 3.1}, "fail"),
    (pretrain_verdict, PRETRAIN, {"eval_loss": math.nan, "bits_per_byte": math.nan}, "fail"),
    (pretrain_verdict, PRETRAIN, {"eval_loss": math.inf, "bits_per_byte": math.inf}, "fail"),
    (pretrain_verdict, PRETRAIN, {"untrained_bits_per_byte": 2.0}, "pass"),
    (pretrain_verdict, PRETRAIN, {"untrained_bits_per_byte": 1.65}, "warn"),
    (pretrain_verdict, PRETRAIN_ON, {}, "pass"),
    (pretrain_verdict, PRETRAIN_ON, {"bits_per_byte": 1.5}, "warn"),
    (masked_verdict, MASKED, {}, "pass"),
    (masked_verdict, MASKED, {"eval_loss": 4.5}, "warn"),
    (masked_verdict, MASKED, {"eval_loss": 5.0}, "fail"),
    (masked_verdict, MASKED, {"eval_loss": math.nan}, "fail"),
    (masked_verdict, MASKED_ON, {}, "pass"),
    (masked_verdict, MASKED_ON, {"eval_loss": 4.4}, "warn"),
    (sft_verdict, SFT_GOLD, {}, "pass"),
    (sft_verdict, SFT_REAL, {}, "pass"),
    (sft_verdict, SFT_GOLD, {"eos_share": 0.95}, "pass"),
    (sft_verdict, SFT_REAL, {"left_out_conversations": 10, "train_conversations": 90}, "pass"),
    (sft_verdict, SFT_REAL, {"left_out_conversations": 11, "train_conversations": 89}, "warn"),
    (sft_verdict, SFT_GOLD, {"eos_share": 0.949}, "warn"),
    (sft_verdict, SFT_GOLD, {"eos_share": 0.80}, "warn"),
    (sft_verdict, SFT_REAL, {"eos_share": 0.799}, "fail"),
    (sft_verdict, SFT_REAL, {"eos_share": 0.58, "answers_within_limit": 0.6}, "pass"),
    (sft_verdict, SFT_REAL, {"eos_share": 0.55, "answers_within_limit": 0.6}, "warn"),
    (sft_verdict, SFT_REAL, {"eos_share": 0.47, "answers_within_limit": 0.6}, "fail"),
    (sft_verdict, SFT_GOLD, {"right": 0.90}, "pass"),
    (sft_verdict, SFT_GOLD, {"right": 0.899}, "warn"),
    (sft_verdict, SFT_GOLD, {"right": 0.3, "right_low": 0.21}, "warn"),
    (sft_verdict, SFT_GOLD, {"right": 0.25, "right_low": 0.2}, "fail"),
    (sft_verdict, SFT_GOLD, {"eval_loss": 3.0}, "warn"),
    (sft_verdict, SFT_REAL, {"eval_loss": math.nan}, "warn"),
    (sft_verdict, SFT_REAL, {"question_gain": 0.02, "question_gain_low": 0.0}, "fail"),
    (sft_verdict, SFT_REAL, {"question_gain": -0.1, "question_gain_low": -0.2}, "fail"),
    (sft_verdict, SFT_REAL, {"question_gain": math.nan, "question_gain_low": math.nan}, "fail"),
    (rm_verdict, RM, {}, "pass"),
    (rm_verdict, RM_GOLD, {}, "pass"),
    (rm_verdict, RM, RANDOM_RM, "fail"),
    (rm_verdict, RM, {"accuracy_low": 0.5, "length_baseline": 0.49}, "fail"),
    (rm_verdict, RM, {"length_baseline": 0.759}, "pass"),
    (rm_verdict, RM, {"length_baseline": 0.76}, "warn"),
    (rm_verdict, RM, {"length_baseline": 0.80}, "fail"),
    (rm_verdict, RM_WORDS, {}, "pass"),
    (rm_verdict, RM_WORDS, {"words_baseline": 0.78, "words_lead_low": 0.0}, "warn"),
    (rm_verdict, RM_WORDS, {"words_baseline": 0.81, "words_lead_low": -0.04, "words_lead_high": 0.02}, "warn"),
    (rm_verdict, RM_WORDS, {"words_baseline": 0.81, "words_lead_low": -0.04, "words_lead_high": -0.001}, "fail"),
    (rm_verdict, RM_GOLD, {"annotator_agreement": 0.52, "annotator_agreement_low": 0.5}, "fail"),
    (rm_verdict, RM_SEVERAL, {}, "pass"),
    (rm_verdict, RM_SEVERAL, {"between_annotators": 0.55, "between_annotators_low": 0.5}, "warn"),
    (rm_verdict, RM_SEVERAL, {"between_annotators_low": math.nan, "between_annotators_high": math.nan}, "warn"),
    (rm_verdict, RM_SEVERAL, {"between_annotators_low": 0.3, "between_annotators_high": 0.49}, "fail"),
    (ppo_verdict, PPO_ORACLE, {}, "pass"),
    (ppo_verdict, PPO_ORACLE, {"win_rate": 0.54, "win_rate_low": 0.5}, "warn"),
    (ppo_verdict, PPO_ORACLE, {"win_rate": 0.5, "win_rate_low": 0.45}, "fail"),
    (ppo_verdict, PPO_ORACLE, {"oracle_score": 1.1, "oracle_change_high": 0.1}, "warn"),
    (ppo_verdict, PPO_ORACLE, {"oracle_score": 0.9, "oracle_change_high": -0.1}, "fail"),
    (ppo_verdict, PPO_ORACLE, {"right": 0.92, "right_change_high": 0.0}, "pass"),
    (ppo_verdict, PPO_ORACLE, {"right": 0.90, "right_change_high": -0.001}, "fail"),
    (ppo_verdict, PPO_ORACLE, {"objective/kl": 15.0}, "pass"),
    (ppo_verdict, PPO_ORACLE, {"objective/kl": 15.1}, "warn"),
    (ppo_verdict, PPO_ORACLE, {"objective/kl": 45.0}, "warn"),
    (ppo_verdict, PPO_REAL, {"objective/kl": 45.1}, "fail"),
    (ppo_verdict, PPO_REAL, {"objective/kl": math.nan}, "fail"),
    (ppo_verdict, PPO_ORACLE, {"eos_share": 0.951}, "pass"),
    (ppo_verdict, PPO_ORACLE, {"eos_share": 0.949}, "warn"),
    (ppo_verdict, PPO_ORACLE, {"eos_share": 0.949, "eos_change_high": 0.0}, "pass"),
    (ppo_verdict, PPO_ORACLE, {"length_after": 20.0}, "pass"),
    (ppo_verdict, PPO_ORACLE, {"length_after": 20.1}, "warn"),
    (ppo_verdict, PPO_ORACLE, {"length_after": 4.9}, "warn"),
    (ppo_verdict, PPO_REAL, {}, "pass"),
    (ppo_verdict, PPO_REAL, {"reward_score": 0.1, "reward_change_low": 0.0}, "warn"),
    (ppo_verdict, PPO_REAL, {"reward_score": 0.0, "reward_change_low": -0.2}, "fail"),
    (ppo_verdict, PPO_WITH_MODEL, {}, "pass"),
    (ppo_verdict, PPO_WITH_MODEL, {"reward_score": -1.0, "reward_change_low": -2.0}, "pass"),
    (ppo_verdict, PPO_WITH_MODEL, {"oracle_reward_change_low": 0.0}, "warn"),
    (
        ppo_verdict,
        PPO_WITH_MODEL,
        {"oracle_reward_score": 0.9, "oracle_reward_change_low": -0.3, "oracle_reward_change_high": 0.0},
        "warn",
    ),
    (
        ppo_verdict,
        PPO_WITH_MODEL,
        {"oracle_reward_score": 0.9, "oracle_reward_change_low": -0.3, "oracle_reward_change_high": -0.01},
        "fail",
    ),
    (ppo_verdict, {**PPO_ORACLE, **ORACLE_MODEL}, {}, "pass"),
    (
        ppo_verdict,
        {**PPO_ORACLE, **ORACLE_MODEL},
        {"oracle_reward_change_low": -0.3, "oracle_reward_change_high": -0.01},
        "fail",
    ),
    (ppo_verdict, {**PPO_ORACLE, **ORACLE_MODEL}, {"oracle_score": 0.9, "oracle_change_high": -0.1}, "fail"),
]


@pytest.mark.parametrize("verdict_of, good, change, status", CASES)
def test_status_at_and_around_each_threshold(verdict_of, good, change, status):
    verdict = verdict_of({**good, **change})
    assert verdict.status == status, verdict.reasons


@pytest.mark.parametrize("verdict_of, good, change, status", CASES)
def test_trouble_comes_first_and_names_what_to_try(verdict_of, good, change, status):
    reasons = verdict_of({**good, **change}).reasons
    assert reasons
    assert all(reason.endswith(".") and re.search(r"\d|nan|inf", reason) for reason in reasons)
    assert ("Try: " in reasons[0]) is (status != "pass")
    troubled = ["Try: " in reason for reason in reasons]
    assert troubled == sorted(troubled, reverse=True)


def test_what_to_try_names_keys_that_a_recipe_has():
    sentences = [reason for verdict_of, good, change, _ in CASES for reason in verdict_of({**good, **change}).reasons]
    keys = set(itertools.chain(*(re.findall(r"\b[a-z]+\.[a-z_]+\b", sentence) for sentence in sentences)))
    assert len(keys) > 15
    for key in keys:
        section: type[BaseModel] = Recipe
        *path, name = key.split(".")
        for part in path:
            section = section.model_fields[part].annotation
        assert name in section.model_fields, key


LOST = [
    (pretrain_verdict, PRETRAIN, {"bits_per_byte": 4.1}),
    (pretrain_verdict, PRETRAIN_ON, {"bits_per_byte": 2.1}),
    (masked_verdict, MASKED, {"eval_loss": 7.1}),
    (masked_verdict, MASKED, {"eval_loss": math.nan}),
    (masked_verdict, MASKED_ON, {"eval_loss": 5.1}),
]


@pytest.mark.parametrize("verdict_of, good, change", LOST)
def test_a_model_that_lost_what_it_began_with_is_not_advised_to_take_larger_steps(verdict_of, good, change):
    verdict = verdict_of({**good, **change})
    assert verdict.status == "fail"
    assert all("Try: lower pretrain.learning_rate." in reason for reason in verdict.reasons)


def test_validation_text_of_which_nothing_was_hidden_is_reported():
    verdict = masked_verdict({**MASKED, "eval_loss": math.nan, "untrained_eval_loss": math.nan})
    assert verdict.status == "fail"
    assert "none of the validation tokens was hidden. Try: raise pretrain.mlm_probability" in verdict.reasons[0]


def test_how_far_above_the_untrained_model_is_reported():
    told = "100% above the untrained model's 4.00 bits per byte; 40% below it are expected."
    assert any(told in reason for reason in pretrain_verdict({**PRETRAIN, "bits_per_byte": 8.0}).reasons)


def test_the_gravest_finding_decides():
    both = {**PPO_ORACLE, "objective/kl": 20.0, "right_change_high": -0.1}
    verdict = ppo_verdict(both)
    assert verdict.status == "fail"
    assert "correctly" in verdict.reasons[0]
    assert "KL" in verdict.reasons[1]


@pytest.mark.parametrize("rule", ["longer", "shorter"])
def test_reward_model_at_its_baseline_is_reported_as_exactly_that(rule):
    verdict = rm_verdict({**RM, "length_baseline": 0.81, "length_rule": rule})
    assert any(f"no better than always choosing the {rule} answer" in reason for reason in verdict.reasons)
    assert not any("no better than" in reason for reason in rm_verdict(RM).reasons)


def test_annotators_agreement_is_shown_with_the_accuracy_where_it_is_known():
    assert any("85.0%" in reason for reason in rm_verdict(RM_GOLD).reasons)
    assert not any("annotators" in reason for reason in rm_verdict(RM).reasons)


def test_what_annotators_agree_on_is_shown_with_the_accuracy():
    told = "Annotators agree with each other on 72.6% of pairs (95 % interval 70.0% to 75.0%), to lie above chance"
    assert f"{told}, 50 %." in rm_verdict(RM_SEVERAL).reasons


def test_the_lead_over_counting_words_is_reported_with_its_interval():
    lead = {"words_baseline": 0.81, "words_lead_low": -0.04, "words_lead_high": -0.001}
    reasons = rm_verdict({**RM, **lead}).reasons
    told = "is no better than counting words and length (81.0%); 95 % interval of the lead -4.0 to -0.1 points."
    assert told in reasons[0]


def test_random_rankings_fail_even_where_the_reward_model_is_right_by_accident():
    lucky = {**RM_GOLD, "annotator_agreement": 0.5, "annotator_agreement_low": 0.47}
    assert rm_verdict(lucky).status == "fail"


@pytest.mark.parametrize("change", [{}, {"reward_score": -1.0, "reward_change_low": -2.0}])
@pytest.mark.parametrize(
    "sources, who",
    [
        (["model"], "Only the reward model scored this: its score on validation prompts"),
        (["function"], "Only the reward function scored this: its score on validation prompts"),
        (
            ["model", "model", "function"],
            "Only the 3 rewards that it was trained on scored this: their weighted sum on validation prompts",
        ),
    ],
)
def test_where_only_the_rewards_scored_the_verdict_names_them(change, sources, who):
    reasons = ppo_verdict({**PPO_REAL, **change, "reward_sources": sources}).reasons
    assert any(reason.startswith(who) for reason in reasons)


@pytest.mark.parametrize("metrics", [PPO_ORACLE, PPO_WITH_MODEL, {**PPO_ORACLE, **ORACLE_MODEL}])
def test_where_an_oracle_reward_model_scored_the_verdict_names_it(metrics):
    reasons = ppo_verdict(metrics).reasons
    assert not any(reason.startswith("Only") for reason in reasons)
    assert any("The oracle prefers" in reason for reason in reasons) is ("oracle_score" in metrics)
    by_model = "The score of ppo.oracle_reward_model on validation prompts is 1.50, "
    assert any(reason.startswith(by_model) for reason in reasons) is ("oracle_reward_score" in metrics)


@pytest.mark.parametrize("good, who", [(PPO_ORACLE, "sft"), ({**PPO_ORACLE, "round": 3}, "ppo of round 2")])
def test_the_kl_and_the_preference_are_reported_against_what_the_round_started_from(good, who):
    reasons = ppo_verdict(good).reasons
    assert f"8.0 nats of KL from {who}; at most 15 are expected." in reasons
    assert any(reason.startswith(f"The oracle prefers it to {who} on 75.0%") for reason in reasons)


def test_as_stored():
    assert Verdict("warn", ["It is so."]).to_dict() == {"status": "warn", "reasons": ["It is so."]}


def test_answers_beyond_the_limit_are_named_where_their_share_is_seen():
    def sentence(within):
        return next(r for r in sft_verdict({**SFT_REAL, "answers_within_limit": within}).reasons if "stop by" in r)

    assert "since 40% of those" in sentence(0.6)
    assert "since" not in sentence(0.997)
    assert "since" not in sentence(1.0)
