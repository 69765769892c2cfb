"""The alarms of a run that goes wrong."""

import parts
import pytest
import tiny
import torch

from chatpipe import console
from chatpipe.ppo.metrics import VALUE_MODEL_WARMUP, VALUE_MODEL_WINDOW, WINDOW, alarms, trend

HEALTHY = {
    "val/ratio_first": 1.0,
    "objective/kl": 2.0,
    "objective/kl_se": 0.1,
    "objective/scores": 1.0,
    "objective/oracle": 1.0,
    "response/eos_frac": 0.95,
    "val/explained_variance": 0.5,
}
CUT = "completions are cut"
"""The alarm that tiny policies without training rightly raise."""
NOISE = [0.3, -0.2, 0.1, -0.4, 0.2, 0.0, -0.1, 0.4, -0.3, 0.1, 0.2, -0.2, 0.3, -0.1, -0.3, 0.2, 0.1, -0.2, 0.0, 0.1]


def history(**series) -> list[dict]:
    """A healthy run of WINDOW iterations in which these metrics take these values (`__` means `/`)."""
    lines = [dict(HEALTHY) for _ in range(WINDOW)]
    for name, values in series.items():
        for line, value in zip(lines, values, strict=True):
            line[name.replace("__", "/")] = value
    return lines


def line(start: float, end: float, noise: float = 0.0) -> list[float]:
    return [start + (end - start) * i / (WINDOW - 1) + noise * NOISE[i] for i in range(WINDOW)]


def test_a_healthy_run_raises_nothing():
    assert alarms(history()) == {}
    noisy = {"objective__scores": line(1, 1, 0.5), "objective__oracle": line(1, 1, -0.5)}
    assert alarms(history(**noisy, response__eos_frac=line(0.9, 0.9, 0.1))) == {}


@pytest.mark.parametrize(("share", "raised"), [(0.51, False), (0.49, True)])
def test_completions_that_are_cut(share, raised):
    found = alarms([HEALTHY | {"response/eos_frac": share}])
    assert ("completions_cut" in found) == raised
    assert not raised or found["completions_cut"].startswith("51% of the completions are cut at response_length")


def test_rising_scores_alone_raise_nothing():
    assert alarms(history(objective__scores=line(0, 3, 0.1), response__eos_frac=line(0.9, 0.97, 0.01))) == {}


@pytest.mark.parametrize(
    "ratio, bf16, raised",
    [(1.00009, False, False), (1.0002, False, True), (0.9998, False, True), (1.01, True, False), (1.03, True, True)],
)
def test_the_first_ratio(ratio, bf16, raised):
    assert ("ratio_first" in alarms([HEALTHY | {"val/ratio_first": ratio}], bf16=bf16)) == raised


@pytest.mark.parametrize(
    "kl, error, raised",
    [(-0.29, 0.1, False), (-0.31, 0.1, True), (0.0, 0.0, False), (-1e-5, 1e-6, False), (-0.1, 0.0, True)],
)
def test_kl_below_zero(kl, error, raised):
    found = alarms([HEALTHY | {"objective/kl": kl, "objective/kl_se": error}])
    assert ("negative_kl" in found) == raised
    assert not raised or "standard error" in found["negative_kl"]


def test_completions_that_stop_less_and_less_while_scores_rise():
    rising = line(1, 2, 0.1)
    found = alarms(history(objective__scores=rising, response__eos_frac=line(0.95, 0.6, 0.02)))
    assert set(found) == {"eos_falling"}
    assert "missing_eos_penalty" in found["eos_falling"]
    assert alarms(history(objective__scores=line(2, 1), response__eos_frac=line(0.95, 0.6))) == {}
    assert alarms(history(objective__scores=rising, response__eos_frac=line(0.95, 0.94))) == {}  # too little to matter
    short = history(objective__scores=rising, response__eos_frac=line(0.95, 0.6))[:7]
    assert alarms(short) == {}


def test_scores_that_rise_while_the_oracle_s_fall():
    found = alarms(history(objective__scores=line(1, 2, 0.1), objective__oracle=line(1, 0.2, 0.1)))
    assert set(found) == {"oracle_falling"}
    assert "being exploited" in found["oracle_falling"]
    assert alarms(history(objective__scores=line(1, 2), objective__oracle=line(1, 1.5))) == {}
    without_oracle = history(objective__scores=line(1, 2))
    for each in without_oracle:
        del each["objective/oracle"]
    assert alarms(without_oracle) == {}


def test_a_value_model_that_is_worse_than_a_constant_after_its_warm_up():
    bad = [dict(HEALTHY, **{"val/explained_variance": -0.3}) for _ in range(40)]
    first = next(n for n in range(1, 41) if alarms(bad[:n]))
    assert first == VALUE_MODEL_WARMUP + VALUE_MODEL_WINDOW
    assert next(n for n in range(1, 41) if alarms(bad[:n], value_model_warmup_iterations=5)) == first + 5
    assert "value_model_warmup_iterations" in alarms(bad)["value_model"]
    mended = bad[:10] + [dict(HEALTHY)] * 30
    assert alarms(mended) == {}


def test_trend_is_that_of_least_squares():
    rise, t = trend([0.0, 1.0, 2.0, 3.5])
    x = torch.arange(4, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3.5], dtype=torch.float64)
    slope = torch.cov(torch.stack([x, y]))[0, 1] / x.var()
    residual = (y - y.mean() - slope * (x - x.mean())).square().sum() / 2
    assert rise == pytest.approx(3 * slope.item())
    assert t == pytest.approx((slope / (residual / (x - x.mean()).square().sum()).sqrt()).item())
    assert trend([1.0] * 5) == (0.0, 0.0)
    assert trend([3.0, 2.0, 1.0])[1] < -1e6


def test_an_alarm_is_printed_once_flagged_each_time_and_kept_over_a_resume(tmp_path, monkeypatch):
    """A reference that is not what sampled looks as if KL were below zero."""
    said = []
    monkeypatch.setattr(console, "warn", lambda text: said.append(text) if CUT not in text else None)
    settings = {"total_episodes": 64, "save_strategy": "steps", "save_steps": 4, "num_ppo_epochs": 2}

    def broken(folder):
        ppo = parts.trainer(folder, settings)
        metrics = ppo.rollout_metrics
        ppo.rollout_metrics = lambda *made: metrics(*made) | {"objective/kl": -1.0, "objective/kl_se": 0.1}
        return ppo

    ppo = broken(tmp_path)
    ppo.resume_points_to_keep = 9
    ppo.train()
    assert [line["alarm/negative_kl"] for line in tiny.logged_iterations(ppo)] == [1.0] * 4
    assert len(said) == 1
    assert said[0].startswith("Iteration 1: KL to the reference is -1.000 nats")
    assert ppo.alarms.keys() - {"completions_cut"} == {"negative_kl"}
    assert ppo.alarms["negative_kl"] == said[0]

    resumed = broken(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "step-8"))
    assert len(said) == 1
    assert resumed.alarms == ppo.alarms


def test_a_run_that_is_well_raises_no_alarm(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(console, "warn", said.append)
    parts.trainer(tmp_path, {"total_episodes": 64}).train()
    assert [text for text in said if CUT not in text] == []


@pytest.mark.parametrize("iterations, raised", [(7, False), (8, True), (15, True)])
def test_a_short_run_needs_a_clearer_trend(iterations, raised):
    falling = {"objective__scores": line(0, 3, 0.05), "response__eos_frac": line(0.95, 0.3, 0.01)}
    assert ("eos_falling" in alarms(history(**falling)[:iterations])) == raised
    noisy = {"objective__scores": line(0, 3, 8.0), "response__eos_frac": line(0.95, 0.3, 2.0)}
    assert alarms(history(**noisy)[:iterations]).keys() <= {"completions_cut"}
