"""`evaluate`: completions to prompts of their own, and PPO's objective on them."""

import parts
import tiny

PROMPTS = [{"input_ids": ids} for ids in ([3], [4, 5], [6, 7, 8])]


def test_eval_dataset_is_completed_at_its_steps_and_changes_nothing(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 4}
    ppo = parts.trainer(tmp_path, settings, eval_dataset=PROMPTS)
    ppo.train()
    lines = [line for line in ppo.state.log_history if "eval_objective/scores" in line]
    assert [line["step"] for line in lines] == [4, 8]
    assert lines[1]["eval_objective/kl"] != 0
    assert {"eval_objective/scores", "eval_objective/rlhf_reward", "eval_response/eos_frac"} <= set(lines[0])
    assert not any(name.startswith("eval_val/") for name in lines[0])
    plain = parts.trainer(tmp_path)
    plain.train()
    assert not parts.changed(ppo.model, parts.weights(plain.model))
    assert [line["objective/kl"] for line in tiny.logged_iterations(ppo)] == [
        line["objective/kl"] for line in tiny.logged_iterations(plain)
    ]


def test_the_same_weights_always_get_the_same_evaluation(tmp_path):
    ppo = parts.trainer(tmp_path, eval_dataset=PROMPTS)
    first = ppo.evaluate()
    assert ppo.evaluate() == first
    assert first["eval_objective/kl"] == 0
    other = ppo.evaluate([{"input_ids": [9, 9]}] * 4, metric_key_prefix="mine")
    assert other["mine_objective/scores"] != first["eval_objective/scores"]
