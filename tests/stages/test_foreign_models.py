"""A model that somebody brings stays what it is: its tokenizer, its rows, its dtype and its files."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from chatpipe.data.chat_template import encode_conversation
from chatpipe.models.pretrained import load_reward_model
from chatpipe.reward.reward_model import reward_offset, score_sequences
from foreign_models import GENERATION, KEPT_FILES, write_foreign_model, write_rows

FEW = ("evaluation.prompts=10", "evaluation.max_new_tokens=8")
SFT = ("sft.max_steps=2", "sft.batch_size=4", "sft.max_length=64", "sft.learning_rate=1e-2", "sft.bf16=false")
RM = ("rm.batch_size=8", "rm.num_train_epochs=1", "rm.max_length=64", "rm.learning_rate=1e-2", "rm.bf16=false")
PPO = (
    *("ppo.total_episodes=8", "ppo.batch_size=8", "ppo.response_length=8", "ppo.bf16=false"),
    *("checks.reward_at_chance=false", "checks.policy_is_not_reference=true"),
)


def weights_of(folder):
    """The shape and dtype of each weight in a folder."""
    with safe_open(folder / "model.safetensors", framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (tuple(found.get_shape()), found.get_dtype()) for name, found in slices.items()}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def done(said):
    assert said.code == 0, said.err
    assert "vocabulary" not in said.err
    return said


@pytest.mark.parametrize("kind", ["smollm", "llama", "gpt2"])
def test_sft_rm_and_ppo_keep_tokenizer_rows_dtype_and_files(chatpipe, work, kind):
    model = write_foreign_model(work / "model", kind)
    write_rows(work)
    done(chatpipe("sft", "--model", model, "--data", "chats.jsonl", "--out", "sft", *SFT, *FEW))
    done(chatpipe("rm", "--model", model, "--data", "pairs.jsonl", "--out", "rm", *RM))
    done(chatpipe("ppo", "--model", "sft", "--data", "chats.jsonl", "--reward", "rm", "--out", "ppo", *PPO, *FEW))
    before, config = weights_of(model), config_of(model)
    for stage in ("sft", "rm", "ppo"):
        folder = work / stage
        for name in KEPT_FILES:
            assert (folder / name).read_bytes() == (model / name).read_bytes(), (stage, name)
        after = weights_of(folder)
        assert after.items() >= {name: of for name, of in before.items() if not name.startswith("lm_head")}.items()
        assert {dtype for _, dtype in after.values()} == {dtype for _, dtype in before.values()}
        kept = ["vocab_size", "bos_token_id", "eos_token_id", "use_cache", "dtype", "tie_word_embeddings"]
        kept += [] if stage == "rm" else ["pad_token_id"]
        assert [config_of(folder).get(key) for key in kept] == [config.get(key) for key in kept], stage
        assert os.stat(folder / "model.safetensors").st_mode == os.stat(folder / "config.json").st_mode
    assert config_of(work / "rm")["pad_token_id"] == 2
    changed = AutoModelForCausalLM.from_pretrained(work / "sft", dtype=torch.float32).state_dict()
    given = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    assert any(not torch.equal(changed[name], weight) for name, weight in given.items())


@pytest.mark.parametrize("kind", ["smollm", "llama"])
def test_transformers_reads_the_scores_of_a_saved_reward_model_where_we_do(chatpipe, work, kind):
    """Alone, and in batches padded on either side with the tokenizer's own pad token, which may be EOS."""
    model = write_foreign_model(work / "model", kind)
    write_rows(work)
    done(chatpipe("rm", "--model", model, "--data", "pairs.jsonl", "--out", "rm", *RM))
    tokenizer = AutoTokenizer.from_pretrained("rm")
    turns = [[{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "red " * i}] for i in range(1, 6)]
    rows = [encode_conversation(tokenizer, conversation)[0] for conversation in turns]
    assert {ids[-1] for ids in rows} == {2}
    ours = score_sequences(load_reward_model("rm"), rows) + reward_offset(load_reward_model("rm"))
    stock = AutoModelForSequenceClassification.from_pretrained("rm", dtype=torch.float32).eval()
    longest = max(map(len, rows))
    with torch.no_grad():
        alone = torch.cat([stock(torch.tensor([ids])).logits[:, 0] for ids in rows])
        padded = torch.tensor([[*ids, *[2] * (longest - len(ids))] for ids in rows])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows])
        together = stock(padded, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(alone, ours, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, ours, atol=1e-5, rtol=0)


def test_only_a_model_without_a_chat_template_gets_ours_and_rows_in_steps_of_64(chatpipe, work):
    model = write_foreign_model(work / "model", "base")
    write_rows(work)
    said = chatpipe("sft", "--model", model, "--data", "chats.jsonl", "--out", "sft", *SFT, *FEW)
    assert said.code == 0, said.err
    assert "no chat template" in said.err
    assert "<|user|>" in said.err
    tokenizer, before = AutoTokenizer.from_pretrained("sft"), AutoTokenizer.from_pretrained(model)
    assert len(tokenizer) == len(before) + 3
    assert before.get_vocab().items() <= tokenizer.get_vocab().items()
    assert (tokenizer.pad_token, tokenizer.eos_token) == (before.pad_token, before.eos_token)
    rows = weights_of(work / "sft")["transformer.wte.weight"][0][0]
    assert rows == config_of(work / "sft")["vocab_size"]
    assert rows % 64 == 0
    assert rows - 64 < len(tokenizer) <= rows


def test_generation_settings_that_do_not_go_together_are_kept(chatpipe, work):
    """transformers refuses to save a temperature without sampling, as Vicuna has it."""
    model = write_foreign_model(work / "model", "smollm")
    settings = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": 0, "pad_token_id": 2}
    (model / "generation_config.json").write_text(json.dumps(settings))
    write_rows(work)
    done(chatpipe("sft", "--model", model, "--data", "chats.jsonl", "--out", "sft", *SFT, *FEW))
    assert json.loads((work / "sft" / "generation_config.json").read_text()) == {**settings, "eos_token_id": [2, 0]}


def test_an_end_that_generation_does_not_know_is_added_to_its_others(chatpipe, work):
    model = write_foreign_model(work / "model", "smollm")
    (model / "generation_config.json").write_text(json.dumps({**GENERATION, "eos_token_id": 0}))
    write_rows(work)
    said = done(chatpipe("sft", "--model", model, "--data", "chats.jsonl", "--out", "sft", *SFT, *FEW))
    settings = json.loads((work / "sft" / "generation_config.json").read_text())
    assert settings == {**GENERATION, "eos_token_id": [2, 0]}
    assert "generation_config.json" in said.err
