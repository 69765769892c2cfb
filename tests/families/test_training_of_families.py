"""Each family is trained on the log-probs that it samples with, and takes steps of sft, rm and ppo."""

import copy

import pytest
import torch
from datasets import Dataset
from tiny_families import EOS, FAMILIES, VOCABULARY, tiny_model, word_tokenizer
from transformers import PrinterCallback, TrainingArguments
from trl import SFTConfig

from chatpipe.data.sequences import Sequences, pad
from chatpipe.models.logprobs import completion_logprobs
from chatpipe.models.pretrained import load_causal_model
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.trainer import PPOTrainer
from chatpipe.reward.reward_model import new_reward_model, score_sequences
from chatpipe.reward.reward_trainer import RewardTrainer
from chatpipe.reward.training_data import EncodedRanking, Judgement
from chatpipe.training.sft_trainer import SftTrainer

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16]]
COMPLETIONS = [[20, 21, 22], [23, 24, 25, 26, 27, EOS], [28]]
SETTINGS = {
    "per_device_train_batch_size": 3,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "learning_rate": 1e-3,
    "gradient_checkpointing": False,
}
NO_SCORES = {"ctrl", "llama4_text"}
"""Families that can be no reward model."""


def copied(family):
    return copy.deepcopy(tiny_model(family))


def moved(model, before):
    return sum(not weights.equal(old) for weights, old in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_the_model(family):
    model = tiny_model(family)
    batch = pad(Sequences.of(PROMPTS, COMPLETIONS, [False, True, False]))
    with torch.no_grad():
        ours = completion_logprobs(model, batch, temperature=0.7).split([len(ids) for ids in COMPLETIONS])
        for prompt, completion, found in zip(PROMPTS, COMPLETIONS, ours, strict=True):
            logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1]
            expected = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"llama4_text"}))  # trl looks for its body in vain
def test_sft(family, tmp_path):
    model = copied(family)
    rows = [
        {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    own = {"max_steps": 1, "bf16": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    args = SFTConfig(output_dir=str(tmp_path), remove_unused_columns=False, **SETTINGS, **own)
    trainer = SftTrainer(model, args, Dataset.from_list(rows), word_tokenizer())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert moved(model, tiny_model(family)) > 4


@pytest.mark.parametrize("family", ["qwen2_vl", "mistral3", "smolvlm", "gemma3"])
def test_what_text_never_reaches_is_frozen(family, tmp_path):
    """DDP waits for gradients of all that is trained."""
    tiny_model(family).save_pretrained(tmp_path)
    model = load_causal_model(tmp_path)
    model(input_ids=torch.tensor([PROMPTS[0]]), labels=torch.tensor([PROMPTS[0]])).loss.backward()
    trained = {name for name, weights in model.named_parameters() if weights.requires_grad}
    assert trained == {name for name, weights in model.named_parameters() if weights.grad is not None}
    assert 0 < len(trained) < len(list(model.parameters()))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - NO_SCORES))
def test_rm_and_ppo(family, tmp_path):
    policy = copied(family)
    policy.save_pretrained(tmp_path / "start")
    reward_model = new_reward_model(str(tmp_path / "start"), pad_token_id=3, seed=0)
    rankings = [
        EncodedRanking([[*prompt, *completion, EOS] for completion in COMPLETIONS], [Judgement([1, 2, 3])])
        for prompt in PROMPTS
    ]
    own = {"max_steps": 1, "remove_unused_columns": False, "ddp_find_unused_parameters": False}
    args = TrainingArguments(output_dir=str(tmp_path), **SETTINGS, **own)
    RewardTrainer(reward_model, args, rankings).train()
    scores = score_sequences(reward_model, rankings[0].sequences)
    single = torch.cat([score_sequences(reward_model, [ids]) for ids in rankings[0].sequences])
    torch.testing.assert_close(scores, single, rtol=1e-3, atol=1e-3)

    ppo = PPOTrainer(
        args=PPOConfig(
            output_dir=str(tmp_path), total_episodes=3, batch_size=3, response_length=4, num_ppo_epochs=1, **SETTINGS
        ),
        processing_class=word_tokenizer(),
        model=policy,
        reward_model=reward_model.eval(),
        train_prompts=PROMPTS,
    )
    ppo.train()
    [logged] = [line for line in ppo.state.log_history if "objective/kl" in line]
    assert abs(logged["objective/kl"]) < 1e-4
    assert logged["val/ratio_first"] == pytest.approx(1, abs=1e-4)
    assert moved(policy, tiny_model(family)) > 4
    assert policy.config.get_text_config().vocab_size == VOCABULARY
