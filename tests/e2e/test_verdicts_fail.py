"""A verdict that cannot fail is worthless: each stage is spoilt in one way, which its verdict names.

Five steps of pretraining fail in test_run.py. Each spoilt stage also runs unspoilt, and passes.
"""

import json
import random

import pytest
from own_files import FEW_PROMPTS, LEARN, as_messages, asked, write_rows

from chatpipe.data.messages import prompt_key
from chatpipe.data.row_files import split_of


def reason(told, beginning):
    return next(reason for reason in told["verdict"]["reasons"] if reason.startswith(beginning))


# ---- sft: each answer belongs to another question ----


def test_sft_on_shuffled_answers_fails(own, tiny_run, tmp_path, chatpipe):
    every = asked()
    answers = [one.right for one in every]
    random.Random(0).shuffle(answers)
    rows = [as_messages(one.question, answer) for one, answer in zip(every, answers, strict=True)]
    shuffled = write_rows(tmp_path / "shuffled.jsonl", rows)
    command = ("sft", "--model", tiny_run.folder / "pretrain", "--data", shuffled, "--out", tmp_path / "sft")
    spoilt = chatpipe(*command, *LEARN["sft"], *FEW_PROMPTS, "--json").object
    assert spoilt["verdict"]["status"] == "fail"
    told = reason(spoilt, "Answers are ")
    assert "at 0 or below, answers ignore the question" in told
    assert "Try: check that each answer in sft.data belongs to its question" in told
    # it has learned to answer and to stop, just not what was asked
    assert spoilt["metrics"]["eos_share"] >= 0.8
    assert spoilt["metrics"]["eval_loss"] < spoilt["metrics"]["eval_loss_before"]

    unspoilt = own.results["sft"]
    assert unspoilt["metrics"]["question_gain_low"] > 0.1
    assert "Try" not in reason(unspoilt, "Answers are ")


# ---- rm: the ranks are drawn at random ----


@pytest.fixture(scope="module")
def ranked(own, tmp_path_factory, chatpipe):
    """The results of rm on rankings of K = 4 answers: of the right order, and of a random one."""
    folder = tmp_path_factory.mktemp("ranked")
    rng = random.Random(0)
    told = {}
    for order in ("right", "random"):
        rows = []
        for one in asked():
            answers = rng.sample([one.right, one.right + " Bye.", one.wrong, one.wrong + " Bye."], 4)
            ranks = [1 if answer.startswith(one.right) else 2 for answer in answers]
            if order == "random":
                rng.shuffle(ranks)
            rows.append({"prompt": [{"role": "user", "content": one.question}], "responses": answers, "ranks": ranks})
        data = write_rows(folder / f"{order}.jsonl", rows)
        command = ("rm", "--model", own.file("sft"), "--data", data, "--out", folder / order, *LEARN["rm"])
        told[order] = chatpipe(*command, "--json").object
    return told


def test_rm_on_random_ranks_fails(ranked):
    random_ones = ranked["random"]
    assert random_ones["verdict"]["status"] == "fail"
    metrics = random_ones["metrics"]
    assert metrics["accuracy_low"] <= 0.5
    validation = sum(
        split_of(prompt_key([{"role": "user", "content": one.question}])) == "validation" for one in asked()
    )
    assert metrics["eval_pairs"] == 4 * validation
    told = reason(random_ones, f"{metrics['eval_accuracy']:.1%} of validation pairs ordered correctly")
    assert "the interval must lie above chance, 50 %. Try: " in told


def test_rm_on_the_right_order_passes(ranked):
    assert ranked["right"]["verdict"]["status"] == "pass"
    assert ranked["right"]["metrics"]["eval_accuracy"] > 0.9


# ---- ppo: the reward model likes what people do not, and no KL holds it back ----


def test_ppo_without_kl_against_a_bad_reward_model_fails(tiny_run, tmp_path, chatpipe):
    """The reward model has learned that longer is better; the oracle is not fooled."""
    rows = []
    for line in (tiny_run.folder / "rank" / "rankings.jsonl").read_text().splitlines():
        said = json.loads(line)["responses"] * 2
        more = [said[0], " ".join(said[:2]), " ".join(said[:4])]
        rows.append({"prompt": json.loads(line)["prompt"], "responses": more, "ranks": [3, 2, 1]})
    data = write_rows(tmp_path / "more.jsonl", rows)
    rm = ("rm", tiny_run.recipe, f"rm.data={data}", "rm.learning_rate=1e-3", "--out", tmp_path / "rm")
    assert chatpipe(*rm).code == 0

    bad = (f"ppo.reward_model={tmp_path}/rm", "ppo.data=pocketworld", "ppo.kl_coef=0", "ppo.missing_eos_penalty=null")
    learn = ("ppo.learning_rate=1e-3", "ppo.total_episodes=512", "ppo.batch_size=32", "ppo.response_length=48")
    ppo = ("ppo", tiny_run.recipe, *bad, *learn, "evaluation.max_new_tokens=48", "--out", tmp_path / "ppo", "--json")
    told = chatpipe(*ppo).object
    assert told["verdict"]["status"] == "fail"
    metrics = told["metrics"]
    assert metrics["reward_change_low"] > 0  # the reward model is pleased, and nobody else
    assert metrics["oracle_change_high"] < 0
    assert "Try: raise ppo.kl_coef, and train a better reward model" in reason(told, "Mean score by the oracle ")
    assert metrics["win_rate_high"] < 0.5
    assert "to lie above 50 %. Try: " in reason(told, "The oracle prefers it to sft on ")
    assert metrics["objective/kl"] > 10 * tiny_run.stage("ppo")["metrics"]["objective/kl"]
