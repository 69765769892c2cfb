"""Where the value model comes from, its warm-up and its own learning rate."""

import parts
import pytest
import tiny
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from chatpipe.errors import UsageError
from chatpipe.ppo.model import value_model_from_policy
from chatpipe.training.resume import newest_resume_point


def encoder(seed: int = 3) -> BertForSequenceClassification:
    """A reward model that reads both ways."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes = {"vocab_size": tiny.VOCABULARY, "max_position_embeddings": 32, "num_labels": 1, "pad_token_id": tiny.PAD}
    return BertForSequenceClassification(BertConfig(**shape, **sizes, initializer_range=0.3))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": tiny.VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, initializer_range=0.3))


@pytest.mark.parametrize("make", [tiny.policy, llama])
def test_value_model_from_the_policy_has_its_body_and_values_of_0(tmp_path, make):
    policy = make()
    value_model = value_model_from_policy(policy)
    for name, weight in policy.base_model.state_dict().items():
        assert value_model.base_model.state_dict()[name].equal(weight), name
    assert not any(parameter.is_meta for parameter in value_model.parameters())
    own = {parameter.data_ptr() for parameter in value_model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in policy.parameters()}

    ppo = parts.trainer(tmp_path, {"value_model": "policy"}, model=policy)
    assert tiny.make_experience(ppo).values.abs().max() == 0
    ppo.train()
    assert tiny.make_experience(ppo).values.abs().max() > 0


def test_encoder_as_reward_model_scores_whole_sequences_and_the_value_model_comes_from_the_policy(tmp_path):
    reward_model = encoder()
    ppo = parts.trainer(tmp_path, {"num_mini_batches": 1}, reward_model=reward_model)
    assert type(ppo.model.value_model).__name__ == "GPT2ForSequenceClassification"
    made = tiny.make_experience(ppo)
    for number, ids in enumerate(made.sequences.ids.split(made.sequences.lengths.tolist())):
        assert reward_model(ids[None]).logits.item() == pytest.approx(made.scores[number].item(), abs=1e-5)
    ppo.train()


def test_value_models_that_would_see_what_is_to_come_are_refused(tmp_path):
    with pytest.raises(UsageError, match="BertForSequenceClassification reads both ways") as refused:
        parts.trainer(tmp_path, {"value_model": "reward"}, reward_model=encoder())
    assert "value_model = policy" in refused.value.hint
    with pytest.raises(UsageError, match="value_model is a BertForSequenceClassification"):
        parts.trainer(tmp_path, value_model=encoder())


def test_warm_up_trains_the_value_model_alone(tmp_path):
    """Not even weight decay or a step of Adam reaches the policy; its first step after that is Adam's first."""
    seen = []

    def note(args, state, control, **_):
        optimizer = ppo._torch_optimizer()
        weight = ppo.model.policy.transformer.wte.weight
        seen.append((parts.changed(ppo.model.policy, policy), parts.changed(ppo.model.value_model, value_model)))
        steps.append(optimizer.state[weight]["step"].item() if weight in optimizer.state else 0)

    settings = {"value_model_warmup_iterations": 1, "weight_decay": 0.1, "ptx_coef": 1.0, "adaptive_kl_target": 1.0}
    text = [{"input_ids": [3, 4, 5, 6]}, {"input_ids": [7, 8]}]
    ppo = parts.trainer(tmp_path, settings, ptx_dataset=text)
    policy, value_model, steps = parts.weights(ppo.model.policy), parts.weights(ppo.model.value_model), []
    ppo.add_callback(tiny_callback(note))
    ppo.train()
    assert [bool(on_policy) for on_policy, _ in seen] == [False] * 4 + [True] * 4
    assert all(on_value_model for _, on_value_model in seen)
    assert steps == [0, 0, 0, 0, 1, 2, 3, 4]
    first, second = tiny.logged_iterations(ppo)
    assert first["policy/approxkl_avg"] < 1e-12
    assert "loss/ptx" not in first
    assert "loss/ptx" in second
    assert second["objective/kl_coef"] == first["objective/kl_coef"]  # a KL of 0 is no evidence while nothing moves


def tiny_callback(on_step_end):
    from transformers import TrainerCallback

    return type(
        "Note", (TrainerCallback,), {"on_step_end": lambda self, *args, **kwargs: on_step_end(*args, **kwargs)}
    )()


def test_value_model_has_its_own_learning_rate_and_the_schedule_covers_both(tmp_path):
    settings = {"value_model_learning_rate": 0.02, "lr_scheduler_type": "linear", "weight_decay": 0.1}
    ppo = parts.trainer(tmp_path, settings)
    ppo.train()
    groups = ppo._torch_optimizer().param_groups
    of_value_model = {id(parameter) for parameter in ppo.model.value_model.parameters()}
    for group in groups:
        sides = {id(parameter) in of_value_model for parameter in group["params"]}
        assert len(sides) == 1
        assert group["initial_lr"] == (0.02 if sides.pop() else 1e-3)
        assert group["lr"] == 0  # the end of the schedule
    assert sum(len(group["params"]) for group in groups) == len(list(ppo.model.parameters()))
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    assert tiny.logged_iterations(ppo)[0]["lr"] == pytest.approx(1e-3 * 5 / 8)


def test_the_same_rate_for_both_is_as_none(tmp_path):
    ends = []
    for rate in (None, 1e-3):
        ppo = parts.trainer(tmp_path, {"value_model_learning_rate": rate, "max_grad_norm": 0.0})
        ppo.train()
        ends.append(parts.weights(ppo.model))
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


def test_all_that_adapts_survives_a_resume_to_the_bit(tmp_path):
    settings = {
        "total_episodes": 64,
        "value_model_warmup_iterations": 1,
        "value_model_learning_rate": 5e-3,
        "adaptive_kl_target": 0.5,
        "adaptive_kl_horizon": 32,
        "ptx_coef": 0.5,
        "target_kl": 0.02,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "kl_loss": "k2",
        "kl_loss_coef": 0.05,
        "save_strategy": "steps",
        "save_steps": 4,
    }
    text = [{"input_ids": [i % 12, (5 * i) % 12, (7 * i) % 12]} for i in range(1, 20)]

    def trainer(folder):
        ppo = parts.trainer(folder, settings, ptx_dataset=text)
        ppo.resume_points_to_keep = 10
        return ppo

    whole = trainer(tmp_path)
    whole.train()
    lines = tiny.logged_iterations(whole)
    assert len({line["objective/kl_coef"] for line in lines}) > 2
    assert any(line["val/skipped_steps"] > 0 for line in lines)
    for point in ("step-4", "step-8", "step-12"):
        resumed = trainer(tmp_path)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / point))
        assert resumed.state.global_step == 16
        for name, tensor in whole.model.state_dict().items():
            assert tensor.equal(resumed.model.state_dict()[name]), name
    assert newest_resume_point(tmp_path / "checkpoints").name == "step-16"
