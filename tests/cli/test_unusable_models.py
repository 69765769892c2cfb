"""Model folders that cannot be used: each command refuses them with the reason, before it has begun anything."""

import io
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from chatpipe.errors import UsageError
from chatpipe.models.model_folder import check_model
from chatpipe.models.pretrained import load_for_chat
from foreign_models import write_foreign_model, write_rows

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def renamed(change):
    """Renames each weight."""

    def spoil(folder):
        saved(folder, {change(name): weight for name, weight in load_file(folder / WEIGHTS).items()})

    return spoil


def saved(folder, weights):
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS, {"format": "pt"})


def changed_weights(change):
    def spoil(folder):
        weights = load_file(folder / WEIGHTS)
        change(weights)
        saved(folder, weights)

    return spoil


def written(name, content):
    def spoil(folder):
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_text(content)

    return spoil


def configured(file="config.json", **changes):
    def spoil(folder):
        settings = json.loads((folder / file).read_text())
        settings.update(changes)
        (folder / file).write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))

    return spoil


def without(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


def all_of(*changes):
    def spoil(folder):
        for change in changes:
            change(folder)

    return spoil


def sharded(missing):
    """Two files of weights and their index, without the `missing` file."""

    def spoil(folder):
        weights = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(weights)
        files = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
        for file, some in files.items():
            save_file({name: weights[name] for name in some}, folder / file, {"format": "pt"})
        (folder / missing).unlink()
        places = {name: file for file, some in files.items() for name in some}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return spoil


def as_shard(folder):
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")


def as_pickle(content=None):
    def spoil(folder):
        weights = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        if content is None:
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            (folder / "pytorch_model.bin").write_bytes(content)

    return spoil


def half(folder):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])


def dropped(*parts):
    def drop(weights):
        for name in [name for name in weights if any(part in name for part in parts)]:
            del weights[name]

    return changed_weights(drop)


def fp8(weights):
    for name in weights:
        if weights[name].ndim == 2 and "proj" in name:
            weights[name] = weights[name].to(torch.float8_e4m3fn)


def transposed(weights):
    name = next(name for name in weights if "gate_proj" in name)
    weights[name] = weights[name].T.contiguous()


def not_finite(weights):
    for name in weights:
        weights[name] = weights[name] * torch.nan


def more_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"newtoken{number}" for number in range(60)])
    tokenizer.save_pretrained(folder)


def quantised(method, **more):
    return configured(quantization_config={"quant_method": method, **more})


def adapter_alone(base):
    def spoil(folder):
        for name in ("config.json", WEIGHTS, "generation_config.json"):
            (folder / name).unlink()
        text = json.dumps({"base_model_name_or_path": base, "peft_type": "LORA", "task_type": "CAUSAL_LM"})
        (folder / "adapter_config.json").write_text(text)
        save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)},
                  folder / "adapter_model.safetensors")  # fmt: skip

    return spoil


VARIANTS = {
    "compiled": (renamed("_orig_mod.{}".format), "_orig_mod."),
    "of DDP": (renamed("module.{}".format), "module."),
    "of FSDP": (renamed(lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module.")), "_fsdp_wrapped"),
    "with an adapter": (renamed("base_model.model.{}".format), "base_model.model."),
    "of lightning": (renamed("state_dict.model.{}".format), "state_dict."),
    "without a layer": (dropped("layers.1."), "its config.json has 2 layers"),
    "without an embedding": (dropped("embed_tokens"), "embed_tokens"),
    "without an output head": (dropped("lm_head"), "lm_head.weight"),
    "without a norm": (dropped("model.norm"), "model.norm.weight"),
    "of other shapes": (changed_weights(transposed), "gate_proj"),
    "of a wider model": (configured(hidden_size=64), "its config.json makes it"),
    "of a smaller vocabulary": (configured(vocab_size=100), "100 rows"),
    "of fewer layers than the config": (configured(num_hidden_layers=4), "its config.json has 4 layers"),
    "of more layers than the config": (configured(num_hidden_layers=1), "2 layers, its config.json has 1"),
    "a generation config that breaks off": (written("generation_config.json", "{"), "generation_config.json"),
    "a generation config that is a list": (written("generation_config.json", "[]"), "generation_config.json"),
    "an end that is a word": (written("generation_config.json", '{"eos_token_id": "</s>"}'), "eos_token_id"),
    "a template in another encoding": (written("chat_template.jinja", b"\xff\xfe{{ x }}"), "chat_template.jinja"),
    "in fp8": (changed_weights(fp8), "F8_E4M3"),
    "not finite": (changed_weights(not_finite), "not finite"),
    "a shard missing": (sharded("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors"),
    "cut off": (half, WEIGHTS),
    "empty": (written(WEIGHTS, b""), WEIGHTS),
    "no safetensors": (written(WEIGHTS, b"<html>Not found</html>" * 40), WEIGHTS),
    "a pointer of Git LFS": (written(WEIGHTS, LFS), "git lfs pull"),
    "an index that is no index": (written(INDEX, "[]"), INDEX),
    "a damaged pickle": (as_pickle(b"x" * 300), "pytorch_model.bin"),
    "an empty pickle": (as_pickle(b""), "pytorch_model.bin"),
    "a pickled pointer": (as_pickle(LFS.encode()), "git lfs pull"),
    "GGUF alone": (all_of(without(WEIGHTS), written("model.gguf", b"GGUF")), "model.gguf"),
    "of TensorFlow": (all_of(without(WEIGHTS), written("tf_model.h5", b"\x89HDF")), "tf_model.h5"),
    "an adapter of a model here": (adapter_alone("../good"), "adapter"),
    "an adapter of a model nowhere": (adapter_alone("someone/model"), "adapter"),
    "gptq": (quantised("gptq", bits=4), "gptq"),
    "awq": (quantised("awq", bits=4), "awq"),
    "bitsandbytes": (quantised("bitsandbytes", load_in_4bit=True), "bitsandbytes"),
    "fp8 by its config": (quantised("fp8"), "fp8"),
    "compressed tensors": (quantised("compressed-tensors"), "compressed-tensors"),
    "mxfp4": (quantised("mxfp4"), "mxfp4"),
    "quantised by a file beside": (written("quantize_config.json", '{"bits": 4}'), "quantize_config"),
    "compressed beside": (configured(compression_config={"quant_method": "compressed-tensors"}), "compress"),
    "code of its own": (
        configured(architectures=["MindForCausalLM"], model_type="mind", auto_map={"AutoConfig": "mind.MindConfig"}),
        "Python code",
    ),
    "code of its own for a known type": (
        configured(architectures=["OtherLlamaForCausalLM"], auto_map={"AutoModelForCausalLM": "mind.OtherLlama"}),
        "Python code",
    ),
    "of an unknown type": (configured(model_type="mind9", architectures=["Mind9ForCausalLM"]), "mind9"),
    "without a type": (configured(model_type=None), "model_type"),
    "without architectures": (configured(architectures=None), "architectures"),
    "an encoder-decoder": (
        configured(architectures=["T5ForConditionalGeneration"], model_type="t5", is_encoder_decoder=True),
        "encoder-decoder",
    ),
    "an encoder-decoder by its type": (
        configured(architectures=["T5ForConditionalGeneration"], model_type="t5"),
        "encoder-decoder",
    ),
    "of speech": (
        configured(architectures=["WhisperForConditionalGeneration"], model_type="whisper", is_encoder_decoder=True),
        "encoder-decoder",
    ),
    "of images": (configured(architectures=["ViTForImageClassification"], model_type="vit"), "ViTForImage"),
    "of sentences": (configured(architectures=["BertModel"], model_type="bert"), "BertModel"),
    "a classifier": (configured(architectures=["LlamaForTokenClassification"]), "LlamaForTokenClassification"),
    "a body alone": (configured(architectures=["LlamaModel"]), "LlamaModel"),
    "without config.json": (without("config.json"), "config.json"),
    "a config.json that breaks off": (written("config.json", '{"model_type": "llama",'), "config.json"),
    "a config.json that is a list": (written("config.json", "[]"), "config.json"),
    "an empty config.json": (written("config.json", ""), "config.json"),
    "an empty object": (written("config.json", "{}"), "config.json"),
    "a config.json that is binary": (written("config.json", b"\xff\xfe\x00"), "config.json"),
    "numbers that are words": (configured(num_hidden_layers="two"), "num_hidden_layers"),
    "heads that do not divide": (configured(num_attention_heads=5, num_key_value_heads=5), "attention heads"),
    "without a tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
    "a tokenizer that breaks off": (written("tokenizer.json", '{"version": "1.0", '), "tokenizer"),
    "an empty tokenizer": (written("tokenizer.json", ""), "tokenizer.json is not JSON"),
    "a vocabulary of another form": (written("tokenizer.json", '{"model": "words"}'), "values of other kinds"),
    "a text config that is a word": (configured(text_config="llama"), "values of other kinds"),
    "shards without their index": (as_shard, "model.safetensors.index.json"),
    "a tokenizer of Git LFS": (written("tokenizer.json", LFS), "git lfs pull"),
    "a damaged tokenizer_config": (written("tokenizer_config.json", "{"), "tokenizer"),
    "a tokenizer of its own code": (
        configured("tokenizer_config.json", tokenizer_class="MindTokenizer", auto_map={"AutoTokenizer": ["m.M", None]}),
        "Python code",
    ),
    "a tokenizer with more tokens than rows": (more_tokens, "newtoken"),
}  # fmt: skip


SEEN_WHEN_LOADED = {
    "without an embedding",
    "without an output head",
    "without a norm",
    "of other shapes",
    "of a wider model",
    "not finite",
    "an encoder-decoder by its type",
    "without a type",
    "numbers that are words",
    "heads that do not divide",
    "of lightning",
    "a tokenizer of its own code",
}
"""What is found when a model is loaded. All else is refused by its headers and json files."""

COMMANDS = {
    "chat": "chat model",
    "eval": "eval model --data chats.jsonl",
    "sample": "sample model --prompts chats.jsonl -o answers.jsonl",
    "sft": "sft --model model --data chats.jsonl --out out",
    "sft dry": "sft --model model --data chats.jsonl --out out --dry-run",
    "rm": "rm --model model --data pairs.jsonl --out out",
    "ppo": "ppo --model model --data chats.jsonl --out out --reward zeros:score",
    "run": "run recipe.yaml",
}


@pytest.fixture(scope="session")
def good_model(tmp_path_factory):
    return write_foreign_model(tmp_path_factory.mktemp("good") / "model", "smollm_untied")


@pytest.fixture
def laid_out(work, good_model, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    write_rows(work)
    (work / "zeros.py").write_text("def score(prompts, completions):\n    return [0.0] * len(completions)\n")
    (work / "recipe.yaml").write_text(
        "out: out\nsft: {model: model, data: chats.jsonl}\nrm: {data: pairs.jsonl}\nppo: {data: chats.jsonl}\n"
    )
    shutil.copytree(good_model, work / "good")
    shutil.copytree(good_model, work / "model")
    return work


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in SEEN_WHEN_LOADED])
def test_files_of_a_model_that_cannot_be_used_are_refused_by_what_they_say(name, laid_out):
    spoil, reason = VARIANTS[name]
    spoil(laid_out / "model")
    with pytest.raises(UsageError) as refused:
        check_model("model", "causal", "sft.model")
    assert reason in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", [*sorted(SEEN_WHEN_LOADED), "compiled", "a tokenizer with more tokens than rows"])
def test_each_command_says_why_before_it_begins(name, command, laid_out, chatpipe):
    spoil, reason = VARIANTS[name]
    spoil(laid_out / "model")
    said = chatpipe(*COMMANDS[command].split())
    error = said.err[said.err.index("error: ") :]
    assert said.code == 2
    assert reason in error
    assert len(error.splitlines()) <= 8
    assert not [*laid_out.glob("out/**/*.safetensors"), *laid_out.glob("answers.jsonl")]


@pytest.mark.parametrize("name", ["without a norm", "compiled", "not finite"])
def test_check_gives_the_reason_too(name, laid_out, chatpipe):
    spoil, reason = VARIANTS[name]
    spoil(laid_out / "model")
    said = chatpipe("check", "recipe.yaml", "--json")
    assert said.code == 2
    assert reason in said.out


def test_control_tokens_that_text_never_has_need_no_embedding(laid_out):
    tokenizer = AutoTokenizer.from_pretrained(laid_out / "model")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    tokenizer.save_pretrained(laid_out / "model")
    assert check_model("model", "causal", "sft.model") == "causal"
    assert load_for_chat("model")[0].pad_token is None  # it has no embedding, and padded cells are read


def test_an_end_of_text_without_an_embedding_is_refused(laid_out):
    tokenizer = AutoTokenizer.from_pretrained(laid_out / "model")
    tokenizer.add_special_tokens({"eos_token": "<the end>"})
    tokenizer.save_pretrained(laid_out / "model")
    with pytest.raises(UsageError, match="<the end>"):
        check_model("model", "causal", "sft.model")


@pytest.mark.parametrize("place", ["checkpoint-2", "snapshots/0a1b"])
def test_a_folder_around_a_model_names_the_model(place, laid_out, good_model):
    shutil.copytree(good_model, laid_out / "outer" / place)
    with pytest.raises(UsageError, match="no config.json") as refused:
        check_model("outer", "causal", "sft.model")
    assert f"outer/{place}" in refused.value.hint
