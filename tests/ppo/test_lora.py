"""LoRA: only the adapter learns, the reference is the policy without it, and what is saved is a plain model."""

import parts
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from chatpipe.errors import UsageError
from chatpipe.training.lora import Adapter, lora_config

peft = pytest.importorskip("peft")

SETTINGS = {"learning_rate": 3e-2, "total_episodes": 48}


def trainer(folder, settings=None, **more):
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], lora_dropout=0.5, task_type="CAUSAL_LM"
    )
    torch.manual_seed(7)  # the adapter's first weights are random
    return parts.trainer(folder, SETTINGS | (settings or {}), peft_config=config, **more)


def test_only_the_adapter_and_the_value_model_learn(tmp_path):
    ppo = trainer(tmp_path)
    assert ppo.ref_model is None
    policy, value_model = parts.weights(ppo.model.policy), parts.weights(ppo.model.value_model)
    ppo.train()
    learned = parts.changed(ppo.model.policy, policy)
    assert learned
    assert all("lora_" in name for name in learned)
    assert parts.changed(ppo.model.value_model, value_model)
    assert not any("lora_" in name for name in value_model)
    lines = tiny.logged_iterations(ppo)
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-6)  # a new adapter changes nothing
    assert all(line["val/ratio_first"] == pytest.approx(1, abs=1e-5) for line in lines)
    assert lines[-1]["objective/kl"] > 0.01


def test_reference_is_the_model_as_it_was(tmp_path):
    """trl #1871, #1340: the wrong reference with an adapter."""
    ppo = trainer(tmp_path)
    ppo.train()
    made = tiny.make_experience(ppo)
    reference = parts.trainer(tmp_path, SETTINGS)  # the same tiny policy, untrained
    row = 0
    for ids, start, logprobs in zip(
        made.sequences.ids.split(made.sequences.lengths.tolist()),
        made.sequences.prompt_lengths.tolist(),
        made.ref_logprobs.split(made.sequences.completion_lengths.tolist()),
        strict=True,
    ):
        logits = reference.model.policy(ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
        assert torch.allclose(logits.gather(-1, ids[start:, None])[:, 0], logprobs, atol=1e-4)
        row += 1
    assert row == 16
    assert (made.logprobs - made.ref_logprobs).abs().max() > 0.01


def test_what_is_saved_opens_as_a_plain_model_with_the_same_answers(tmp_path):
    ppo = trainer(tmp_path)
    ppo.train()
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        expected = ppo.model.policy.eval()(ids).logits
        with ppo.adapter.off():
            untrained = ppo.model.policy(ids).logits
    ppo.save_model(str(tmp_path / "saved"))
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "training_args.bin" not in names
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.allclose(saved(ids).logits, expected, atol=1e-5)
    assert (expected - untrained).abs().max() > 1e-2
    with torch.no_grad():  # and training could continue
        assert ppo.model.policy(ids).logits.equal(expected)


def test_resume_point_holds_the_adapter_and_training_continues_to_the_bit(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer(tmp_path, settings)
    whole.resume_points_to_keep = 10
    whole.train()
    point = tmp_path / "checkpoints" / "step-8"
    from safetensors.torch import load_file

    kept = load_file(point / "policy.safetensors")
    assert kept
    assert all("lora_" in name for name in kept)
    resumed = trainer(tmp_path, settings)
    resumed.train(resume_from_checkpoint=str(point))
    assert resumed.state.global_step == 12
    assert not parts.changed(resumed.model, parts.weights(whole.model))


def test_a_model_that_has_an_adapter_already_is_refused(tmp_path):
    model = peft.get_peft_model(tiny.policy(), peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    with pytest.raises(UsageError, match="has an adapter already"):
        trainer(tmp_path, model=model)


@pytest.mark.parametrize("module", ["lm_head", "wte"])
def test_an_adapter_on_tied_embeddings_is_refused(module):
    """Merged into one of the two, it would change both."""
    with pytest.raises(UsageError, match="tied embeddings"):
        Adapter(tiny.policy(), lora_config(4, 8, [module, "c_attn"]))
    Adapter(tiny.policy(), lora_config(4, 8, "all-linear"))
