"""An encoder learns masked language modelling, becomes the body of a reward model, and scores in ppo."""

import json

import pytest
import torch
from own_files import FEW_PROMPTS, LEARN, as_messages, asked, write_rows
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from chatpipe.data.chat_template import add_chat_template, encode_conversation
from chatpipe.models.new_model import new_model
from chatpipe.recipe.architectures import Architecture

ENCODER = (
    "pretrain.objective=masked",
    "pretrain.architecture={family: modernbert, n_layer: 2, n_head: 2, n_embd: 64, n_positions: 96}",
    "pretrain.tokenizer.vocab_size=400",
    "pretrain.block_size=64",
    "pretrain.batch_size=16",
    "pretrain.max_steps=500",
    "pretrain.learning_rate=4e-3",
    "pretrain.warmup_steps=10",
    "pretrain.eval_steps=300",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encoder")


@pytest.fixture(scope="module")
def encoder(folder, chatpipe):
    """The result of `chatpipe pretrain` for an encoder that read the answers of the questions."""
    text = write_rows(folder / "text.jsonl", [{"text": f"{one.question} {one.right}"} for one in asked()] * 3)
    return chatpipe("pretrain", "--data", text, "--out", folder / "encoder", *ENCODER, "--json").object


@pytest.fixture(scope="module")
def reward(folder, encoder, chatpipe):
    pairs = [{"prompt": one.question, "chosen": one.right, "rejected": one.wrong} for one in asked()]
    data = write_rows(folder / "pairs.jsonl", pairs)
    return chatpipe(
        "rm", "--model", folder / "encoder", "--data", data, "--out", folder / "rm", *LEARN["rm"], "--json"
    ).object


def test_the_encoder_reads_and_opens_as_a_masked_model(folder, encoder):
    metrics = encoder["metrics"]
    assert metrics["eval_loss"] < 0.9 * metrics["unigram_loss"] < metrics["untrained_eval_loss"]
    assert encoder["verdict"]["status"] == "pass"
    model = AutoModelForMaskedLM.from_pretrained(folder / "encoder").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    assert model.get_input_embeddings().num_embeddings == -(-len(tokenizer) // 64) * 64
    assert tokenizer.mask_token_id is not None
    assert "AutoModelForMaskedLM" in (folder / "encoder" / "README.md").read_text()
    lines = [json.loads(line) for line in (folder / "encoder" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_accuracy" in line] == [300, 500]


def test_it_becomes_the_body_of_a_reward_model(folder, reward):
    assert reward["metrics"]["accuracy_low"] > 0.5
    assert reward["verdict"]["status"] != "fail"  # on so few pairs it may not be surely better than counting words
    assert json.loads((folder / "rm" / "chatpipe.json").read_text())["parents"].keys() == {"rm.model"}
    model = AutoModelForSequenceClassification.from_pretrained(folder / "rm").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "rm")
    assert type(model).__name__ == "ModernBertForSequenceClassification"

    def score(question, answer):
        ids, _ = encode_conversation(tokenizer, as_messages(question, answer)["messages"])
        with torch.no_grad():
            return model(torch.tensor([ids])).logits.item()

    ordered = [score(one.question, one.right) > score(one.question, one.wrong) for one in asked()[:60]]
    assert sum(ordered) >= 40


def test_data_show_prints_the_length_that_training_reads(folder, encoder, chatpipe):
    """A ModernBERT attends to 64 tokens around each in most of its layers, and reads as many as it has positions."""
    pairs = [{"prompt": one.question, "chosen": one.right, "rejected": one.wrong} for one in asked()]
    data = write_rows(folder / "pairs.jsonl", pairs)
    said = chatpipe("data", "show", "pocket", "rm", f"rm.data={data}", "--model", folder / "encoder", "--json")
    assert said.object["summary"]["max_length"] == 96


def test_it_is_no_model_for_sft(folder, encoder, chatpipe):
    chats = write_rows(folder / "chats.jsonl", [as_messages(one.question, one.right) for one in asked()])
    said = chatpipe("sft", "--model", folder / "encoder", "--data", chats, "--out", folder / "sft")
    assert said.code == 2
    assert "is a masked language model, but a causal language model is needed there" in said.err


def test_ppo_takes_its_rewards_and_its_value_model_from_the_policy(folder, tmp_path, chatpipe):
    """Both models with one tokenizer: an encoder and a causal model over the encoder's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "rm")
    add_chat_template(tokenizer)
    torch.manual_seed(0)
    new_model(Architecture(n_layer=1, n_head=2, n_embd=32, n_positions=96), tokenizer).save_pretrained(
        tmp_path / "chat"
    )
    tokenizer.save_pretrained(tmp_path / "chat")
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": one.question} for one in asked()])
    words = ("--model", tmp_path / "chat", "--reward", folder / "rm", "--data", prompts, "--out", tmp_path / "ppo")
    told = chatpipe("ppo", *words, *LEARN["ppo"], *FEW_PROMPTS, "--json").object
    assert told["metrics"]["reward_score"] == pytest.approx(told["metrics"]["reward_score"])  # not NaN
    assert (tmp_path / "ppo" / "model.safetensors").exists()
