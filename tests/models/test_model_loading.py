import pytest
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from chatpipe.errors import UsageError
from chatpipe.models.pretrained import load_causal_model, load_tokenizer
from chatpipe.models.tokenizer_training import train_tokenizer


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
    assert "The folder is damaged or not whole" in told
    assert "HF_HUB_OFFLINE" not in told
    assert len(told.splitlines()) == 2


def test_a_hub_id_that_is_not_in_the_cache_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (load_causal_model, load_tokenizer):
        told = problem_of(load, "no-such-model-1")
        assert told.startswith("no-such-model-1 is neither a folder nor in the cache of the hub, and HF_HUB_OFFLINE")
        assert "unset HF_HUB_OFFLINE" in told


def test_a_model_without_a_longest_context_is_loaded_too(tmp_path):
    BloomForCausalLM(BloomConfig(vocab_size=30, hidden_size=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    assert load_causal_model(tmp_path).num_parameters() > 0
