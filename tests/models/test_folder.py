import json
import struct

import pytest

from chatpipe.errors import UsageError
from chatpipe.models.model_folder import check_model, has_tokenizer, looks_like_path, model_kind
from stub_models import write_stub_model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes a model folder whose configuration names `architecture`; the path is relative, as people type it."""
    monkeypatch.chdir(tmp_path)

    def folder(architecture: str | None, name: str = "out/model") -> str:
        write_stub_model(name, architecture or "")
        if architecture is None:
            (tmp_path / name / "config.json").write_text("{}")
        return name

    return folder


def problem_of(check, *arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        check(*arguments)
    return f"{caught.value.message}\n{caught.value.hint}"


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("GPT2LMHeadModel", "causal"),
        ("Qwen3ForCausalLM", "causal"),
        ("Gemma3ForConditionalGeneration", "causal"),
        ("GPT2ForSequenceClassification", "reward"),
        ("ModernBertForMaskedLM", "masked"),
    ],
)
def test_the_kind_of_a_model_is_read_from_its_config(folder, architecture, kind):
    model = folder(architecture)
    assert model_kind(model, "sft.model") == kind
    check_model(model, kind, "sft.model")
    other = "reward" if kind == "causal" else "causal"
    assert f"sft.model = {model} is a" in problem_of(check_model, model, other, "sft.model")


def test_a_wrong_kind_is_named_with_what_is_needed_and_who_makes_it(folder):
    told = problem_of(check_model, folder("GPT2ForSequenceClassification"), "causal", "ppo.model")
    assert "ppo.model = out/model is a reward model, but a causal language model is needed there." in told
    assert "chatpipe sft" in told
    told = problem_of(check_model, folder("GPT2LMHeadModel"), "reward", "ppo.reward_model")
    assert "ppo.reward_model = out/model is a causal language model, but a reward model is needed there." in told
    assert "chatpipe rm" in told


def test_a_model_of_no_known_kind_is_refused(folder):
    told = problem_of(model_kind, folder("BertModel"), "sft.model")
    assert "sft.model = out/model holds a BertModel" in told
    told = problem_of(model_kind, folder(None), "sft.model")
    assert "sft.model = out/model: its config.json names no `architectures`" in told


def test_a_folder_that_is_no_model_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "sft.model = empty is not a model folder: it has no config.json." in problem_of(
        check_model, "empty", "causal", "sft.model"
    )
    model = folder("GPT2LMHeadModel")
    (tmp_path / model / "model.safetensors").unlink()
    assert "sft.model = out/model is not a complete model folder: its weights are missing." in problem_of(
        check_model, model, "causal", "sft.model"
    )
    (tmp_path / model / "config.json").write_text("{")
    assert "out/model/config.json is not JSON" in problem_of(check_model, model, "causal", "sft.model")


@pytest.mark.parametrize("missing", ["./no", "/no/where", "~/no-such-model", "a/b/c", "out/sfd"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(folder, missing):
    folder("GPT2LMHeadModel", "out/sft")
    assert f"rm.model = {missing}: there is no such folder." in problem_of(check_model, missing, "causal", "rm.model")


def test_a_hub_id_is_taken_on_trust(folder):
    for name in ("gpt2", "Qwen/Qwen3-0.6B"):
        assert not looks_like_path(name)
        check_model(name, "causal", "sft.model")
    folder("GPT2ForSequenceClassification", "gpt2")
    assert looks_like_path("gpt2")  # a folder of that name wins
    assert "reward model" in problem_of(check_model, "gpt2", "causal", "sft.model")


# ---- folders that cannot be used, each with its true reason ----


def change_config(model: str, **changes: object) -> None:
    path = f"{model}/config.json"
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump({**config, **changes}, file)


def write_weights(model: str, *names: str) -> None:
    """A safetensors file whose header has weights of one number each."""
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
    text = json.dumps(header).encode()
    with open(f"{model}/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + bytes(4 * len(names)))


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("T5ForConditionalGeneration", {"model_type": "t5", "is_encoder_decoder": True}, "an encoder-decoder model"),
        ("BartForConditionalGeneration", {"model_type": "bart", "is_encoder_decoder": True}, "an encoder-decoder"),
        ("WhisperForConditionalGeneration", {"is_encoder_decoder": True}, "an encoder-decoder"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised (gptq)"),
        ("LlamaForCausalLM", {"quantization_config": {"load_in_4bit": True}}, "is quantised"),
        ("Gemma3ForConditionalGeneration", {"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ("KimiForCausalLM", {"model_type": "kimi_x", "auto_map": {"AutoConfig": "a.B"}}, "Python code of its own"),
        ("NextForCausalLM", {"model_type": "next_year"}, "transformers"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_with_its_reason(folder, architecture, changes, reason):
    model = folder(architecture)
    change_config(model, **changes)
    for check in (lambda: check_model(model, "causal", "sft.model"), lambda: model_kind(model, "sft.model")):
        told = problem_of(check)
        assert told.startswith(f"sft.model = {model} "), told
        assert reason in told
        assert "damaged" not in told


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Phi3ForCausalLM", {"model_type": "phi3", "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}),
        ("BartForCausalLM", {"model_type": "bart"}),
        ("GPT2LMHeadModel", {"model_type": "gpt2", "quantization_config": None}),
        ("Gemma3ForCausalLM", {"model_type": "gemma3_text"}),
        ("GPTNeoXForCausalLM", {"model_type": "gpt_neox"}),
    ],
)
def test_code_beside_a_class_of_transformers_and_decoders_of_other_families_are_no_reason(
    folder, architecture, changes
):
    model = folder(architecture)
    change_config(model, **changes)
    check_model(model, "causal", "sft.model")


@pytest.mark.parametrize(
    ("before", "meant"),
    [
        ("_orig_mod.model.", "torch.compile"),
        ("model._orig_mod.", "torch.compile"),
        ("module.model.", "DDP"),
        ("base_model.model.model.", "PEFT"),
        ("model._fsdp_wrapped_module.", "FSDP"),
    ],
)
def test_weights_that_were_saved_with_a_wrapper_are_counted_and_the_wrapper_named(folder, before, meant):
    model = folder("LlamaForCausalLM")
    write_weights(model, f"{before}embed_tokens.weight", f"{before}layers.0.mlp.up_proj.weight", "other.weight")
    told = problem_of(check_model, model, "causal", "sft.model")
    assert told.startswith(f"2 weights of sft.model = {model} are missing (model.embed_tokens.weight, ...)")
    assert f"{before}embed_tokens.weight" in told
    assert meant in told


@pytest.mark.parametrize("place", ["model.layers.", "transformer.h.", "gpt_neox.layers."])
def test_layers_without_weights_are_counted(folder, place):
    model = folder("LlamaForCausalLM")
    names = [f"{place}{layer}.{name}.weight" for layer in (0, 2) for name in ("q", "k")]
    write_weights(model, "model.embed_tokens.weight", *names)
    change_config(model, num_hidden_layers=4)
    told = problem_of(check_model, model, "causal", "rm.model")
    assert told.startswith(f"4 weights of rm.model = {model} are missing ({place}1, ...)")
    assert "4 layers" in told
    change_config(model, num_hidden_layers=2)
    assert f"2 weights of rm.model = {model}" in problem_of(check_model, model, "causal", "rm.model")
    write_weights(model, *(f"{place}{layer}.q.weight" for layer in range(3)))
    assert "3 layers, its config.json has 2" in problem_of(check_model, model, "causal", "rm.model")
    change_config(model, num_nextn_predict_layers=1)  # one for another purpose behind them
    check_model(model, "causal", "rm.model")


def test_layers_that_share_their_weights_are_not_missed(folder):
    model = folder("AlbertForMaskedLM")
    write_weights(model, "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight")
    change_config(model, num_hidden_layers=12)
    check_model(model, "masked", "rm.model")


def test_an_adapter_is_refused_also_beside_a_model(folder, tmp_path):
    """transformers would load the adapter's own base model in place of the weights in the folder."""
    model = folder("GPT2LMHeadModel")
    (tmp_path / model / "adapter_config.json").write_text("{}")
    told = problem_of(check_model, model, "causal", "sft.model")
    assert "PEFT adapter" in told
    assert "merge_and_unload" in told


def test_a_pointer_of_git_lfs_is_no_weight(folder, tmp_path):
    model = folder("GPT2LMHeadModel")
    (tmp_path / model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 12\n")
    assert "git lfs pull" in problem_of(check_model, model, "causal", "sft.model")


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "tekken.json"])
def test_a_tokenizer_has_many_forms(tmp_path, file):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not has_tokenizer(tmp_path)
    (tmp_path / file).write_text("{}")
    assert has_tokenizer(tmp_path)
