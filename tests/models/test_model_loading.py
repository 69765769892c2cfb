import io
import json
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from chatpipe.errors import UsageError
from chatpipe.models.new_model import train_tokenizer
from chatpipe.models.pretrained import (
    fuse_gelu,
    load_causal_model,
    load_config,
    load_masked_model,
    load_reward_model,
    load_tokenizer,
)
from chatpipe.reward.reward_model import new_reward_model


@pytest.fixture
def folder(tmp_path):
    """A whole model folder."""
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1, n_positions=16)).save_pretrained(tmp_path)
    train_tokenizer([], vocab_size=300, model_max_length=16).save_pretrained(tmp_path)
    return tmp_path


def problem_of(load, model: object) -> str:
    with pytest.raises(UsageError) as caught:
        load(model)
    return f"{caught.value.message}\n{caught.value.hint}"


@pytest.mark.parametrize(
    ("name", "content", "load"),
    [
        ("model.safetensors", b"", load_causal_model),
        ("model.safetensors", b"\x02\0\0", load_causal_model),
        ("model.safetensors", b"no tensors at all, but text", load_causal_model),
        ("config.json", b"{", load_causal_model),
        ("config.json", b"{}", load_causal_model),
        ("tokenizer.json", b"{}", load_tokenizer),
        ("tokenizer.json", b"{", load_tokenizer),
    ],
)
def test_a_damaged_folder_is_the_user_s_to_mend_and_no_matter_of_the_hub(folder, name, content, load):
    load(folder)
    (folder / name).write_bytes(content)
    told = problem_of(load, folder)
    assert told.startswith(f"{folder} cannot be loaded: ")
    assert "make it again" in told
    assert "HF_HUB_OFFLINE" not in told
    assert len(told.splitlines()) == 2


def test_weights_that_are_missing_are_no_model(folder, capfd):
    """transformers would draw them at random and print a table; an error names them, and nothing else is printed."""
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.ln_f.weight"]
    weights["transformer.final.weight"] = torch.ones(8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    told = problem_of(load_causal_model, folder)
    assert told.startswith(f"{folder} lacks the weight transformer.ln_f.weight; ")
    assert "1 that it does not know (transformer.final.weight, ...)" in told
    assert capfd.readouterr().err.count("ln_f") == 0


def test_a_body_without_all_its_weights_makes_no_reward_model(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.0.ln_1.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_body = partial(load_reward_model, new_head=True)
    for load in (load_body, lambda model: new_reward_model(str(model), 0, seed=0)):
        assert f"{folder} lacks the weight transformer.h.0.ln_1.bias" in problem_of(load, folder)


def test_weights_of_another_size_than_the_config_says(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": 16}))
    told = problem_of(load_causal_model, folder)
    assert "other sizes" in told
    assert "damaged" not in told


@pytest.mark.parametrize("load", [load_causal_model, load_reward_model, load_tokenizer, load_config])
def test_code_in_a_folder_is_neither_run_nor_asked_about(folder, load, monkeypatch, capfd):
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    own = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text("print('THIS CODE RAN')")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    told = problem_of(load, folder)
    assert "Python code of its own" in told
    said = capfd.readouterr()
    assert "RAN" not in said.out + said.err
    assert "Do you wish" not in said.out + said.err
    assert sys.stdin.tell() == 0


def test_a_hub_id_that_is_not_in_the_cache_is_reported_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (load_causal_model, load_tokenizer):
        told = problem_of(load, "no-such-model-1")
        assert told.startswith("no-such-model-1 is neither a folder nor in the cache of the hub, and HF_HUB_OFFLINE")
        assert "unset HF_HUB_OFFLINE" in told


def test_a_model_without_a_longest_context_is_loaded_too(tmp_path):
    BloomForCausalLM(BloomConfig(vocab_size=30, hidden_size=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    assert load_causal_model(tmp_path).num_parameters() > 0


@pytest.mark.parametrize("load", [load_causal_model, load_masked_model, load_reward_model])
@pytest.mark.parametrize("frozen", [True, False])
def test_only_what_is_trained_takes_gradients_and_on_a_cpu_all_is_float32(tmp_path, load, frozen):
    save_kind(load, tmp_path)
    model = load(tmp_path, frozen)
    assert not torch.cuda.is_available()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert {weight.requires_grad for weight in model.parameters()} == {not frozen}


@pytest.mark.parametrize("load", [load_causal_model, load_reward_model])
def test_what_is_only_read_is_bfloat16_on_a_cpu_where_that_is_asked_for(tmp_path, load):
    """As ppo's reference and reward models, where the policy computes in bfloat16: half of their memory."""
    save_kind(load, tmp_path)
    assert {weight.dtype for weight in load(tmp_path, frozen=True, half=True).parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in load(tmp_path, half=True).parameters()} == {torch.float32}


def save_kind(load, folder) -> None:
    if load is load_masked_model:
        config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        BertForMaskedLM(config).to(torch.bfloat16).save_pretrained(folder)
        return
    kind = GPT2LMHeadModel if load is load_causal_model else GPT2ForSequenceClassification
    config = GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=1, n_positions=16, num_labels=1)
    kind(config).to(torch.bfloat16).save_pretrained(folder)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh"])
def test_the_fused_gelu_changes_no_logit_no_gradient_and_no_file(tmp_path, name):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=8, activation_function=name)
    model = GPT2LMHeadModel(config).double().eval()
    ids = torch.arange(8)[None]

    def logits_and_gradients():
        model.zero_grad()
        logits = model(input_ids=ids).logits
        logits.square().sum().backward()
        return [logits, *(parameter.grad for parameter in model.parameters())]

    before, after = logits_and_gradients(), (fuse_gelu(model), logits_and_gradients())[1]
    for one, other in zip(after, before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    model.save_pretrained(tmp_path)
    assert GPT2LMHeadModel.from_pretrained(tmp_path).config.activation_function == name
