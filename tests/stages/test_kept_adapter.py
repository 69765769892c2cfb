"""`lora.keep_adapter`: the adapter beside the merged model, which peft puts into the model it started from."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from foreign_models import write_foreign_model, write_rows

peft = pytest.importorskip("peft")
KEEP = "lora={r: 4, alpha: 8, keep_adapter: true}"
FEW = ("evaluation.prompts=10", "evaluation.max_new_tokens=8")
SFT = ("sft.max_steps=3", "sft.batch_size=4", "sft.max_length=64", "sft.learning_rate=1e-2", "sft.bf16=false")
RM = ("rm.batch_size=8", "rm.num_train_epochs=1", "rm.max_length=64", "rm.learning_rate=1e-2", "rm.bf16=false")
PPO = (
    *("ppo.total_episodes=8", "ppo.batch_size=8", "ppo.response_length=8", "ppo.bf16=false", "ppo.learning_rate=1e-2"),
    *("checks.reward_at_chance=false", "ppo.num_mini_batches=1"),
)


def test_adapter_and_base_give_what_the_merged_model_gives(chatpipe, work):
    model = write_foreign_model(work / "model", "gpt2")
    write_rows(work)
    for words in (
        ("sft", "--model", model, "--data", "chats.jsonl", "--out", "sft", f"sft.{KEEP}", *SFT, *FEW),
        ("rm", "--model", model, "--data", "pairs.jsonl", "--out", "rm", f"rm.{KEEP}", *RM),
        ("ppo", "--model", "sft", "--data", "chats.jsonl", "--reward", "rm", "--out", "ppo", f"ppo.{KEEP}", *PPO, *FEW),
    ):
        said = chatpipe(*words)
        assert said.code == 0, said.err
    ids = torch.tensor([[5, 6, 7, 8, 2]])
    for stage, base, auto in (
        ("sft", model, AutoModelForCausalLM),
        ("rm", model, AutoModelForSequenceClassification),
        ("ppo", work / "sft", AutoModelForCausalLM),
    ):
        options: dict = {"num_labels": 1} if stage == "rm" else {}
        merged, plain = (auto.from_pretrained(folder, **options).eval() for folder in (work / stage, base))
        for each in (merged, plain):
            each.config.pad_token_id = None  # of the reward models: both are read at the last token
        with torch.no_grad():
            expected, before = merged(ids).logits, plain(ids).logits
            adapted = peft.PeftModel.from_pretrained(plain, work / stage / "adapter").eval()
            torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-4, rtol=0)
        assert (expected - before).abs().max() > 1e-3, stage
        settings = json.loads((work / stage / "adapter" / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str(base if stage != "ppo" else "sft")
        assert (work / stage / "adapter" / "adapter_model.safetensors").stat().st_mode & 0o044


def test_without_the_key_there_is_no_adapter(chatpipe, work):
    model = write_foreign_model(work / "model", "gpt2")
    write_rows(work)
    said = chatpipe("sft", "--model", model, "--data", "chats.jsonl", "--out", "sft", "sft.lora={r: 4}", *SFT, *FEW)
    assert said.code == 0, said.err
    assert not (work / "sft" / "adapter").exists()
