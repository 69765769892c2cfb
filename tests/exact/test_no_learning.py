"""T7: with a learning rate of 0 nothing moves: ratio 1, no KL between old and new policy, none to the reference."""

import pytest
import tiny


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    ppo = tiny.trainer(tmp_path_factory.mktemp("ppo"), learning_rate=0.0, temperature=0.7, total_episodes=48)
    ppo.train()
    return tiny.logged_iterations(ppo)


def test_ratio_is_1(lines):
    assert len(lines) == 3
    for line in lines:
        for name in ("val/ratio", "val/ratio_first", "val/ratio_max"):
            assert line[name] == pytest.approx(1, abs=1e-5)
        assert line["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)
        assert line["policy/k3_avg"] == pytest.approx(0, abs=1e-6)
        assert line["val/ratio_var"] == pytest.approx(0, abs=1e-10)
        assert line["policy/clipfrac_avg"] == 0


def test_kl_to_the_reference_is_0(lines):
    for line in lines:
        assert line["objective/kl"] == 0
        assert line["objective/rlhf_reward"] == line["objective/scores"]
