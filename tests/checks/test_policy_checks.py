"""Before the first step of ppo KL is 0 and the ratio 1, as the trainer puts its models together."""

import re
from functools import partial

import parts
import pytest
import tiny
import torch

from chatpipe.checks.model_checks import policy_is_not_reference
from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams
from chatpipe.ppo.model import disable_dropout
from chatpipe.stages.ppo import start_checks

PARAMS = SamplingParams(max_new_tokens=6, temperature=1.0)
DIFFER = r"policy and reference differ by \S+ nats a token .* KL must be 0 there\."


def quiet(model):
    disable_dropout(model)
    return model.eval()


def start(trainer):
    return start_checks(trainer)["policy_is_not_reference"]()


def test_the_same_weights_pass_and_others_do_not():
    one, same, other = quiet(tiny.policy()), quiet(tiny.policy()), quiet(tiny.policy(seed=1))
    assert policy_is_not_reference(one, same, tiny.PROMPTS, PARAMS, tiny.EOS) is None
    found = policy_is_not_reference(one, other, tiny.PROMPTS, PARAMS, tiny.EOS)
    assert re.fullmatch(DIFFER, found.what)
    assert "ppo.lora" in found.remedy
    assert not one.training


def test_noise_in_training_mode_makes_the_ratio_another():
    noisy = tiny.policy()  # GPT-2's dropout of 0.1
    found = policy_is_not_reference(noisy, noisy, tiny.PROMPTS, PARAMS, tiny.EOS)
    assert re.fullmatch(r"two readings of the policy differ by \S+ nats a token.* ratio must be 1\.", found.what)
    assert found.remedy.startswith("Use a model without noise in its forward pass")
    found = policy_is_not_reference(noisy, noisy, tiny.PROMPTS, PARAMS, tiny.EOS, bf16=True)
    assert found.remedy.startswith("Set ppo.bf16=false, or use a model without noise")


def test_a_deep_model_may_round_more(monkeypatch):
    """30 layers in bfloat16 differ by 0.03 nats a token, and train well."""
    policy = quiet(tiny.policy())
    read = iter([torch.zeros(3), torch.zeros(3), *[torch.full((1,), 0.03)] * 3] * 2)
    monkeypatch.setattr("chatpipe.checks.model_checks._logprobs", lambda *_: next(read))
    start = partial(policy_is_not_reference, policy, policy, tiny.PROMPTS[:3], PARAMS, tiny.EOS, bf16=True)
    assert "two readings of the policy differ by 0.03 nats" in start().what
    policy.config.n_layer = 30
    assert start() is None


def test_nan_is_no_agreement():
    broken = quiet(tiny.policy())
    broken.transformer.h[0].mlp.c_fc.weight.data.fill_(float("nan"))
    fine = quiet(tiny.policy())
    with pytest.raises(UsageError, match="output of GPT2LMHeadModel is not finite"):
        policy_is_not_reference(fine, broken, tiny.PROMPTS, PARAMS, tiny.EOS)


@pytest.mark.parametrize("settings", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_a_trainer_passes_and_one_with_another_reference_does_not(tmp_path, settings):
    assert start(parts.trainer(tmp_path, settings)) is None
    found = start(parts.trainer(tmp_path, settings, ref_model=tiny.policy(seed=1)))
    assert re.fullmatch(DIFFER, found.what)


def test_an_adapter_must_begin_as_nothing(tmp_path):
    peft = pytest.importorskip("peft")
    shape = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    assert start(parts.trainer(tmp_path, peft_config=peft.LoraConfig(**shape))) is None
    found = start(parts.trainer(tmp_path, peft_config=peft.LoraConfig(**shape, init_lora_weights=False)))
    assert re.fullmatch(DIFFER, found.what)
