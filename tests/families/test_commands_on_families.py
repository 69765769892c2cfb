"""A model that the decode engine cannot run goes through sft; one that nothing can complete is refused before it."""

import json

import pytest
import torch
from tiny_families import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from chatpipe.data.chat_template import add_chat_template
from chatpipe.models.new_model import train_tokenizer

QUICK = (
    "sft.max_steps=2",
    "sft.batch_size=4",
    "sft.bf16=false",
    "evaluation.prompts=10",
    "evaluation.max_new_tokens=8",
)


@pytest.fixture
def start(work):
    """Writes a random model with a chat tokenizer, and conversations, into the working folder."""

    def start(family, shape):
        tokenizer = train_tokenizer(["Mara is a baker. Who is Mara?"], 300, 128)
        add_chat_template(tokenizer)
        torch.manual_seed(0)
        tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = AutoConfig.for_model(family, **shape | tokens | {"vocab_size": len(tokenizer)})
        AutoModelForCausalLM.from_config(config).save_pretrained(work / "start")
        tokenizer.save_pretrained(work / "start")
        lines = (
            [
                {"role": "user", "content": f"Who is Mara {number}?"},
                {"role": "assistant", "content": "Mara is a baker." * (1 + number % 3)},
            ]
            for number in range(60)
        )
        (work / "chats.jsonl").write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))

    return start


@pytest.mark.parametrize("family", ["mamba", "lfm2"])
def test_sft_judges_answers_of_a_model_that_the_engine_cannot_run(family, start, work, chatpipe):
    start(family, FAMILIES[family])
    said = chatpipe("sft", "--model", "start", "--data", "chats.jsonl", "--out", "out", *QUICK, "--json")
    assert "of validation answers stop by themselves" in " ".join(said.object["verdict"]["reasons"])
    assert "answers come from model.generate" in said.err


def test_a_model_that_generate_cannot_run_is_refused_before_a_step(start, work, chatpipe):
    start("xlstm", {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4})  # its one-token step fails
    said = chatpipe("sft", "--model", "start", "--data", "chats.jsonl", "--out", "out", *QUICK)
    assert said.code == 2
    assert "sft.model = start: xLSTMForCausalLM cannot complete a prompt" in said.err
    assert not list(work.glob("out/**/*.safetensors"))
    (work / "recipe.yaml").write_text("sft: {model: start, data: chats.jsonl}\n")
    checked = chatpipe("check", "recipe.yaml")
    assert "cannot complete a prompt" in checked.out + checked.err
