"""Bugs that were reported of other PPO implementations, or read in their code; each test is named after its source.

Proved elsewhere, for every run and not for one case (T1 ... T8 are in tests/exact):

    trl #3750, #5338               score a step after EOS: test_ppo_rewards, mutants
    trl #454, trlx #107            first ratio not 1: T7
    trlx #508, #509                positions and mask shifted by padding: T6 (loop over tokens), mutants
    trl #6809, #6861, #7012, #7041 means over padding, mean of micro-batches' means: T6 compares every metric
    verl                           value model's loss weighted by sample under dynamic batches: T6
    trl #2358                      log-probs of processed logits: generation/test_engine, test_sampling
    trl #3169, OpenRLHF #853       temperature not in reference and KL: T1 at .7
    trl #1783                      value model loses the reward's centring: test_ppo_trainer
    trl #495, #1340, #1871         LoRA with the wrong reference: test_lora.py
    OpenRLHF #1240                 NaN * mask: T5
    SkyRL #1305, torchtune         whitening over padding, mean added back: T3, mutants
    DeepSpeedExamples #316, #672   end of the answer off by one: T1
    ColossalAI #3623               value model's values sliced off by some: T1
    ColossalChat compute_reward    score on every token: T1, mutants
    DeepSpeed-Chat                 dropout in old log-probs: T7
    OpenRLHF                       no shuffling with dynamic batches: test_ppo_trainer (a fresh order each epoch)
    trl, NeMo-RL #3171             resume without value model or optimizer: test_ppo_trainer (to the bit)
    transformers #35352, #35909, #35911, OpenRLHF #1311, transformers #34191, #35203: tests/reward

Cannot occur here:

    trl #469, #1482, #2778, LLaMA-Factory #2382   padding side of the tokenizer: PPO never pads with it
    trl #2022, #2281, #2496        a fill value counted as log-prob: experience has no cells but tokens
    transformers #23530            EOS label masked as padding: there are no labels and no pad id in the loss
    ColossalChat                   right-padded values sliced as left-padded: there is no side
    AReaL #1351                    penalised rows in reward normalisation: rewards are not normalised
    trl                            scores [B, T, V] of a whole batch: the head sees completion positions only
    trl #2596                      cause never found
"""

import pytest
import tiny
import torch

from chatpipe.data.sequences import Sequences, pad
from chatpipe.generation import SamplingParams, generate
from chatpipe.models.logprobs import completion_logprobs
from sampled_logprobs import recorded_logprobs


def weights(ppo):
    return torch.cat([parameter.detach().flatten() for parameter in ppo.model.parameters()])


def texts(experience):
    """The token ids of each sequence."""
    return [ids.tolist() for ids in experience.sequences.ids.split(experience.sequences.lengths.tolist())]


# ---- the rollout ----


def test_trl_1893_score_lands_on_eos(tmp_path):
    """Without KL the reward is 0 but on the EOS, or the last token before the cut: there it is the score."""
    experience = tiny.make_experience(tiny.trainer(tmp_path, kl_coef=0.0, missing_eos_penalty=None, batch_size=32))
    rows = experience.rewards.split(experience.sequences.completion_lengths.tolist())
    assert {True, False} == set(experience.sequences.ended.tolist())
    for ids, ended, rewards, score in zip(
        texts(experience), experience.sequences.ended, rows, experience.scores, strict=True
    ):
        assert rewards.nonzero().flatten().tolist() == [len(rewards) - 1]
        assert rewards[-1] == score
        assert (ids[-1] == tiny.EOS) == ended


def test_trl_6805_missing_eos_is_looked_for_in_the_answer_and_not_in_the_prompt(tmp_path):
    prompts = [[4, tiny.EOS, 4], [5, 6], [7, tiny.EOS]]
    ppo = tiny.trainer(tmp_path, train_prompts=prompts, response_length=1, kl_coef=0.0, batch_size=60)
    experience = tiny.make_experience(ppo)
    cut = [ids[-1] != tiny.EOS for ids in texts(experience)]
    assert any(cut)
    assert not all(cut)
    assert torch.allclose(experience.rewards, experience.scores - torch.tensor(cut).float())


def test_trl_5338_missing_eos_is_found_by_the_token_that_generation_stops_at(tmp_path):
    """The policy's config may name another EOS than the tokenizer; the one that ended the answer counts."""
    model = tiny.policy()
    model.config.eos_token_id = model.generation_config.eos_token_id = 7
    sequences = tiny.make_experience(tiny.trainer(tmp_path, model=model, batch_size=32))
    assert any(sequences.sequences.ended)
    for ids, ended in zip(texts(sequences), sequences.sequences.ended, strict=True):
        assert (ids[-1] == tiny.EOS) == ended


def test_trl_235_1003_generation_settings_of_the_checkpoint_do_not_reach_the_rollout(tmp_path):
    """Top-k, top-p or a minimum length would sample from another policy than is trained, and make KL negative."""
    expected = texts(tiny.make_experience(tiny.trainer(tmp_path)))
    model = tiny.policy()
    changed = {"top_k": 1, "top_p": 0.1, "min_length": 9, "temperature": 0.1, "do_sample": False, "max_length": 3}
    model.generation_config.update(**changed)
    assert texts(tiny.make_experience(tiny.trainer(tmp_path, model=model))) == expected


def test_deepspeed_chat_rollouts_are_sampled(tmp_path):
    """It never asked for sampling, so that a model without generation settings answered greedily."""
    experience = tiny.make_experience(tiny.trainer(tmp_path, train_prompts=[[3, 4]], batch_size=16))
    assert len({tuple(ids) for ids in texts(experience)}) > 16


def test_colossalchat_each_rollout_has_random_numbers_of_its_own(tmp_path):
    """It seeded torch with 41 before each rollout."""
    ppo = tiny.trainer(tmp_path, train_prompts=[[3, 4]])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = texts(tiny.make_experience(ppo))
    assert torch.rand(3).equal(expected)  # torch's own generator is left alone
    ppo.iteration += 1
    assert texts(tiny.make_experience(ppo)) != first


def test_trl_976_pad_may_be_eos(tmp_path):
    """Whatever the tokenizer's pad token is, EOS stays in the answer and in the loss.

    A reward model says by its own pad token where its score is read (`reward.reward_model`).
    """
    ppo, other = tiny.trainer(tmp_path, batch_size=32), tiny.trainer(tmp_path, batch_size=32)
    other.processing_class.pad_token = other.processing_class.eos_token
    for model in (other.model.policy, other.model.value_model, other.ref_model):
        model.config.pad_token_id = tiny.EOS
    ppo.train()
    other.train()
    assert weights(ppo).equal(weights(other))
    batch = pad(tiny.make_experience(other).sequences)
    assert (batch.input_ids[batch.rows, batch.columns + 1] == tiny.EOS).any()


def test_a_sampled_pad_token_is_a_token_like_any_other(tmp_path):
    """A mask of `!= pad` would drop it: an untrained policy samples it."""
    experience = tiny.make_experience(tiny.trainer(tmp_path, batch_size=64))
    completions = [
        ids[prompt:] for ids, prompt in zip(texts(experience), experience.sequences.prompt_lengths, strict=True)
    ]
    assert any(tiny.PAD in completion[:-1] for completion in completions)
    assert sum(map(len, completions)) == experience.num_tokens == len(experience.advantages)


# ---- the update ----


def test_trl_583_gradients_of_all_micro_batches_reach_the_step(tmp_path):
    """zero_grad inside the accumulation lost all but the last."""
    ends = []
    for size in (1, 4, 8):
        models = {"model": tiny.policy().double(), "reward_model": tiny.random_reward_model().double()}
        ppo = tiny.trainer(tmp_path, per_device_train_batch_size=size, **models)
        before = weights(ppo)
        ppo.train()
        ends.append(weights(ppo))
    assert (ends[0] - before).abs().max() > 1e-3
    for end in ends[1:]:
        assert torch.allclose(end, ends[0], rtol=0, atol=1e-8)


def test_trl_3988_accelerate_1847_one_optimizer_step_for_each_minibatch(tmp_path):
    """accelerate steps on every micro-batch of a loader's last batch."""
    ppo = tiny.trainer(tmp_path, per_device_train_batch_size=1, num_ppo_epochs=3)
    ppo.create_optimizer()
    steps = []
    ppo.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    ppo.train()
    # 2 iterations, 3 epochs, 2 minibatches of 8 completions
    assert len(steps) == ppo.state.global_step == 12


def test_llama_factory_424_the_learning_rate_falls_once_a_step(tmp_path):
    rates = []
    ppo = tiny.trainer(tmp_path, learning_rate=1e-3, num_ppo_epochs=3)
    ppo.create_optimizer()
    ppo.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    ppo.train()
    assert rates == pytest.approx([1e-3 * (1 - step / 12) for step in range(12)])


def test_trl_gradients_are_clipped(tmp_path):
    ppo = tiny.trainer(tmp_path, optim="sgd", learning_rate=1.0, max_grad_norm=1e-3, lr_scheduler_type="constant")
    before = weights(ppo)
    ppo.train()
    assert tiny.logged_iterations(ppo)[0]["grad_norm"] > 1e-2
    moved = (weights(ppo) - before).norm().item()
    assert 1e-4 < moved <= 8 * 1e-3 * 2**0.5 * 1.001  # 8 steps of at most 1e-3 in either model


def test_trl_1066_training_mode_stays_on_so_that_activations_are_checkpointed(tmp_path):
    """Checkpointed layers run twice, once more in the backward pass, and give the same gradients."""
    runs_of_a_layer, ends = [], []
    for checkpointing in (False, True):
        models = {"model": tiny.policy().double(), "reward_model": tiny.random_reward_model().double()}
        ppo = tiny.trainer(tmp_path, gradient_checkpointing=checkpointing or None, **models)
        passes, layers = [], []

        def counting(seen):
            return lambda *_: seen.extend([1] * torch.is_grad_enabled())  # in the update, not in scoring

        body = ppo.model.policy.transformer
        body.register_forward_hook(counting(passes))
        body.h[0].ln_1.register_forward_hook(counting(layers))
        ppo.train()
        runs_of_a_layer.append(len(layers) / len(passes))
        ends.append(weights(ppo))
    assert runs_of_a_layer == [1, 2]
    assert torch.allclose(ends[0], ends[1], rtol=0, atol=1e-10)


def test_transformers_31267_bf16_ratio_is_1_though_generation_rounds_differently(tmp_path):
    """Old log-probs come from the training forward pass, not from generation."""
    ppo = tiny.trainer(tmp_path, bf16=True, learning_rate=0.0)
    with recorded_logprobs() as drawn:
        experience = tiny.make_experience(ppo)
    sampled = torch.tensor([logprob for place in range(len(drawn)) for logprob in drawn[place]])
    difference = (experience.logprobs - sampled).abs().max().item()
    ppo.train()
    for line in tiny.logged_iterations(ppo):
        assert abs(line["val/ratio_max"] - 1) < max(difference, 1e-6)
        assert line["val/ratio_first"] == pytest.approx(1, abs=1e-3)


# ---- metrics ----


def test_openrlhf_entropy_is_that_of_the_tempered_policy(tmp_path):
    ppo = tiny.trainer(tmp_path, temperature=0.5, learning_rate=0.0, total_episodes=16)
    experience = tiny.make_experience(ppo)
    batch = pad(experience.sequences)
    with torch.no_grad():
        logits = ppo.model.policy(batch.input_ids).logits[batch.rows, batch.columns] / 0.5
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    ppo.train()
    line = tiny.logged_iterations(ppo)[0]
    assert line["policy/entropy_avg"] == pytest.approx(entropy, abs=1e-5)
    assert line["objective/entropy"] > 0  # trl #2022


def test_deepspeed_chat_episodes_per_second_count_the_whole_iteration(tmp_path):
    """Its end-to-end time left scoring out."""
    ppo = tiny.trainer(tmp_path)
    ppo.train()
    for line in tiny.logged_iterations(ppo):
        seconds = line["time/rollout"] + line["time/score"] + line["time/update"]
        assert line["eps"] == pytest.approx(ppo.args.rollout_size / seconds)


@torch.no_grad()
def test_trl_925_kl_of_samples_is_not_negative(tmp_path):
    """Against another reference, the mean over many samples is the exact KL of the first token, which is above 0."""
    policy, ref_model = tiny.policy(seed=0).eval(), tiny.policy(seed=3).eval()
    prompts = [[3, 4, 5]] * 2000
    done = generate(policy, prompts, SamplingParams(max_new_tokens=1), tiny.EOS, seed=0)
    batch = pad(Sequences.of(prompts, [completion.ids for completion in done], [False] * len(done)))
    log_ratio = completion_logprobs(policy, batch, 1.0) - completion_logprobs(ref_model, batch, 1.0)
    new, old = (model(torch.tensor([prompts[0]])).logits[0, -1].log_softmax(-1) for model in (policy, ref_model))
    exact = (new.exp() * (new - old)).sum().item()
    assert exact > 0.1
    assert log_ratio.mean().item() == pytest.approx(exact, abs=3 * log_ratio.std().item() / 2000**0.5)
