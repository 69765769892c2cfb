import hashlib

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from chatpipe.data.sequences import pad
from chatpipe.errors import UsageError
from chatpipe.models.logprobs import output_head
from chatpipe.ppo.experience import row_numbers
from chatpipe.ppo.model import disable_dropout
from chatpipe.reward.reward_model import batch_scores
from chatpipe.training.resume import newest_resume_point


def fingerprint(model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_score_rises(tmp_path):
    """The reward model likes one token; PPO finds out which, and the log shows it."""
    ppo = tiny.trainer(
        tmp_path,
        reward_model=tiny.favourite_reward_model(),
        total_episodes=64 * 12,
        batch_size=32,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        missing_eos_penalty=None,
        kl_coef=0.02,
    )
    ppo.train()
    lines = tiny.logged_iterations(ppo)
    assert len(lines) == 12
    assert lines[-1]["objective/scores"] > lines[0]["objective/scores"] + 0.3
    assert lines[0]["objective/kl"] == 0
    assert lines[-1]["objective/kl"] > 1
    for line in lines:
        assert line["val/ratio_first"] == pytest.approx(1, abs=1e-5)
        assert line["objective/rlhf_reward"] == pytest.approx(
            line["objective/scores"] - 0.02 * line["objective/kl"], abs=1e-6
        )
    favourite = tiny.make_experience(ppo).sequences.ids.eq(tiny.FAVOURITE).float().mean()
    assert favourite > 0.4


def test_metrics_against_the_experience(tmp_path):
    ppo = tiny.trainer(tmp_path, missing_eos_penalty=0.25, kl_coef=0.3, learning_rate=1e-2)
    experience = tiny.recorded_experience(ppo)
    ppo.train()
    line, made = tiny.logged_iterations(ppo)[1], experience[1]
    lengths = made.sequences.completion_lengths.tolist()
    k1 = [row.sum() for row in (made.logprobs - made.ref_logprobs).split(lengths)]
    entropy = [-row.sum() for row in made.logprobs.split(lengths)]
    scores = made.scores - 0.25 * (~made.sequences.ended).float()
    expected = {
        "objective/kl": torch.stack(k1).mean(),
        "objective/kl_coef": 0.3,
        "objective/entropy": torch.stack(entropy).mean(),
        "objective/non_score_reward": -0.3 * torch.stack(k1).mean(),
        "objective/scores": scores.mean(),
        "objective/scores_raw": made.scores.mean(),
        "objective/rlhf_reward": scores.mean() - 0.3 * torch.stack(k1).mean(),
        "returns/mean": made.returns.mean(),
        "returns/var": made.returns.var(correction=0),
        "val/explained_variance": 1 - (made.returns - made.values).var(correction=0) / made.returns.var(correction=0),
        "val/num_eos_tokens": made.sequences.ended.sum(),
        "response/eos_frac": made.sequences.ended.float().mean(),
        "response/length": sum(lengths) / len(lengths),
        "episode": 32,
        "optimizer_steps": 8,
    }
    assert {name: line[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=1e-5
    )
    assert line["objective/kl"] != 0
    assert made.advantages.mean().item() == pytest.approx(0, abs=1e-5)
    assert {"loss", "grad_norm", "lr", "eps", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg",
            "loss/policy_avg", "loss/value_avg", "val/ratio", "val/ratio_var", "val/ratio_max", "val/clipfrac_avg",
            "advantages/mean", "advantages/var", "time/rollout", "time/score", "time/update"} <= set(line)  # fmt: skip


def test_the_loss_is_that_of_its_parts(tmp_path):
    """With one minibatch a mean over steps is a mean over tokens."""
    ppo = tiny.trainer(tmp_path, num_mini_batches=1, batch_size=16, learning_rate=1e-2)
    ppo.train()
    for line in tiny.logged_iterations(ppo):
        assert abs(line["loss"]) > 1e-3
        assert line["loss"] == pytest.approx(line["loss/policy_avg"] + 0.1 * line["loss/value_avg"], abs=1e-5)


def test_reference_and_reward_model_do_not_change_and_policy_and_value_model_do(tmp_path):
    ppo = tiny.trainer(tmp_path)
    models = {
        "ref": ppo.ref_model,
        "rm": ppo.reward_model,
        "policy": ppo.model.policy,
        "value_model": ppo.model.value_model,
    }
    before = {name: fingerprint(model) for name, model in models.items()}
    assert before["ref"] == before["policy"]
    assert before["rm"] == before["value_model"]
    ppo.train()
    after = {name: fingerprint(model) for name, model in models.items()}
    assert {name for name in models if after[name] != before[name]} == {"policy", "value_model"}


def test_value_model_starts_as_the_reward_model_with_its_offset(tmp_path):
    """trl #1783: the value model lost what centres the rewards."""
    ppo = tiny.trainer(tmp_path, reward_model=tiny.random_reward_model(offset=2.5))
    experience = tiny.make_experience(ppo)
    batch = pad(experience.sequences)
    at_last = batch_scores(ppo.model.value_model, batch.input_ids, batch.attention_mask)
    assert torch.allclose(at_last, experience.scores, rtol=0, atol=1e-6)
    uncentred = tiny.make_experience(tiny.trainer(tmp_path, reward_model=tiny.random_reward_model()))
    assert torch.allclose(experience.scores, uncentred.scores - 2.5, atol=1e-5)


def test_completions_that_are_cut_off_and_completions_that_end(tmp_path):
    sequences = tiny.make_experience(tiny.trainer(tmp_path, total_episodes=64, num_mini_batches=8)).sequences
    completions = [
        ids[prompt_length:].tolist()
        for ids, prompt_length in zip(
            sequences.ids.split(sequences.lengths.tolist()), sequences.prompt_lengths, strict=True
        )
    ]
    assert {True, False} == set(sequences.ended.tolist())
    for completion, ended in zip(completions, sequences.ended.tolist(), strict=True):
        assert (completion[-1] == tiny.EOS) == ended
        assert tiny.EOS not in completion[:-1]
        assert ended or len(completion) == 6


def test_returns_are_sums_of_raw_rewards_though_advantages_are_whitened(tmp_path):
    made = tiny.make_experience(tiny.trainer(tmp_path, lam=1.0, total_episodes=64, num_mini_batches=4))
    lengths = made.sequences.completion_lengths.tolist()
    to_come = [row.flip(0).cumsum(0).flip(0) for row in made.rewards.split(lengths)]
    assert torch.allclose(made.returns, torch.cat(to_come), atol=1e-5)
    assert made.advantages.mean().item() == pytest.approx(0, abs=1e-5)
    assert made.advantages.var(correction=0).item() == pytest.approx(1, abs=1e-4)


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def test_resumed_run_ends_with_the_same_weights_to_the_bit(tmp_path):
    settings = {"total_episodes": 64, "save_strategy": "steps", "save_steps": 1}
    whole = tiny.trainer(tmp_path / "whole", **settings)
    whole.train()

    tiny.trainer(tmp_path / "resumed", callbacks=[StopAfter(8)], **settings).train()
    point = newest_resume_point(tmp_path / "resumed" / "checkpoints")
    assert point.name == "step-8"
    resumed = tiny.trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(point))

    assert whole.state.global_step == resumed.state.global_step == 16
    for name in ("policy", "value_model"):
        assert fingerprint(getattr(resumed.model, name)) == fingerprint(getattr(whole.model, name))
    for one, other in zip(tiny.logged_iterations(whole), tiny.logged_iterations(resumed), strict=True):
        for name in set(one) - {"eps", "time/rollout", "time/score", "time/update"}:
            if not name.startswith("train_"):  # of Trainer's, speeds
                assert one[name] == other[name], name


def test_resume_points_lie_between_iterations(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    ppo = tiny.trainer(tmp_path, **settings)
    ppo.resume_points_to_keep = 10
    ppo.train()
    assert sorted(point.name for point in (tmp_path / "checkpoints").iterdir()) == ["step-4", "step-8"]


def test_each_sample_is_used_once_an_epoch_in_a_fresh_order(tmp_path):
    ppo = tiny.trainer(tmp_path, num_ppo_epochs=3)
    seen = []
    step = ppo.step

    def record(minibatch):
        seen.append(minibatch.scores.tolist())
        step(minibatch)

    ppo.step = record
    ppo.train()
    epochs = [seen[i] + seen[i + 1] for i in range(0, len(seen), 2)]
    assert len(epochs) == 6  # 2 iterations of 3 epochs
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 2
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_prompt_order_shows_each_prompt_once_a_pass_and_is_the_same_for_any_split():
    whole = row_numbers(7, 0, 21, seed=3)
    assert [sorted(whole[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert whole[:7] != whole[7:14]
    assert row_numbers(7, 5, 4, seed=3) + row_numbers(7, 9, 12, seed=3) == whole[5:]


def test_log_probs_of_another_architecture_with_dropout(tmp_path):
    torch.manual_seed(0)
    shape = {"vocab_size": tiny.VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    llama = LlamaForCausalLM(LlamaConfig(**shape, **heads, attention_dropout=0.3, initializer_range=0.3))
    ppo = tiny.trainer(tmp_path, model=llama, learning_rate=0.0)
    ppo.train()
    line = tiny.logged_iterations(ppo)[0]
    assert line["objective/kl"] == 0
    assert line["val/ratio_max"] == pytest.approx(1, abs=1e-5)


def test_dropout_is_off_in_training_mode():
    model = tiny.policy().train()
    ids = torch.tensor([[3, 4, 5, 6]])
    assert not model(ids).logits.equal(model(ids).logits)
    disable_dropout(model)
    assert model(ids).logits.equal(model(ids).logits)
    assert model.training


def test_batch_size_follows_from_the_micro_batch_where_it_is_not_given(tmp_path):
    args = tiny.trainer(tmp_path, batch_size=None, per_device_train_batch_size=4, gradient_accumulation_steps=2).args
    assert (args.batch_size, args.rollout_size, args.num_iterations) == (8, 16, 2)
    assert (args.max_steps, args.gradient_accumulation_steps) == (8, 1)


def test_what_could_only_go_wrong_silently_is_refused(tmp_path):
    policy, reward_model = tiny.policy(), tiny.random_reward_model()
    settings = {"args": tiny.trainer(tmp_path).args, "processing_class": tiny.tokenizer()}
    good = {"model": policy, "reward_model": reward_model, "train_prompts": tiny.PROMPTS}
    without_eos = tiny.tokenizer()
    without_eos.eos_token = None
    smaller = tiny.random_reward_model()
    smaller.resize_token_embeddings(5)
    for change, message in (
        ({"ref_model": policy}, "model and ref_model are the same object"),
        ({"value_model": reward_model}, "reward_model and value_model are the same object"),
        ({"reward_model": smaller}, "reward_model knows 5 tokens, the policy can write 12"),
        ({"train_prompts": []}, "no prompts"),
        ({"processing_class": without_eos}, "no EOS token"),
    ):
        with pytest.raises(UsageError, match=message):
            tiny.PPOTrainer(**settings | good | change)


def test_a_model_that_changes_its_logits_after_the_head_is_refused():
    output_head(tiny.policy())
    model = tiny.policy().eval()
    forward = model.forward

    def shifted(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits.roll(1, -1)
        return output

    model.forward = shifted
    with pytest.raises(UsageError, match="changes its logits"):
        output_head(model)


def test_compiled_it_takes_the_same_steps_and_saves_the_same_names(tmp_path):
    """Through dynamo alone: what a compiler then makes of it is torch's affair, and takes minutes on a CPU."""
    ends = []
    for compiled in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        models = {"model": tiny.policy().double(), "reward_model": tiny.random_reward_model().double()}
        settings = {"total_episodes": 16, "save_strategy": "steps", "save_steps": 4}
        ppo = tiny.trainer(tmp_path / f"{len(ends)}", **models, **settings, **compiled)
        ppo.train()
        point = newest_resume_point(tmp_path / f"{len(ends)}" / "checkpoints")
        ends.append((ppo.model.state_dict(), sorted(path.name for path in point.iterdir())))
    (plain, files), (other, other_files) = ends
    assert files == other_files
    assert plain.keys() == other.keys()
    for name in plain:
        assert torch.allclose(plain[name], other[name], rtol=0, atol=1e-9), name
