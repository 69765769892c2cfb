import pytest
import torch
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
    load_masked_model,
    load_reward_model,
    load_tokenizer,
)


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
