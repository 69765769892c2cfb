import math
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from chatpipe.errors import UsageError
from chatpipe.models.new_model import build_model, model_config, new_model, train_tokenizer
from chatpipe.recipe.architectures import PRESETS, Architecture, Family

SHAPE = Architecture(n_layer=3, n_head=4, n_embd=128, n_positions=64)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    return new_model(SHAPE, train_tokenizer([""], 300, 64)).eval()  # the 256 bytes and 5 special tokens


def on_meta(architecture: Architecture, tokens: int = 300) -> PreTrainedModel:
    """The model without memory: shapes only."""
    with torch.device("meta"):
        return build_model(architecture.family, model_config(architecture, tokens, eos_token_id=1, pad_token_id=0))


def test_gpt2_small_has_its_published_number_of_parameters():
    small = Architecture(preset="gpt2-124m")
    assert small.parameters(tokens=1) == 124_439_808
    assert on_meta(small).num_parameters() == 124_439_808
    with torch.device("meta"):
        assert GPT2LMHeadModel(GPT2Config()).num_parameters() == 124_439_808
    config = on_meta(small).config
    assert (config.vocab_size, config.n_positions) == (50257, 1024)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_about_the_size_of_its_name(preset):
    architecture = Architecture(preset=preset)
    counted = architecture.parameters(tokens=300)
    assert on_meta(architecture).num_parameters() == counted
    number, unit = float(preset.split("-")[1][:-1]), preset[-1]
    assert counted == pytest.approx(number * {"m": 1e6, "b": 1e9}[unit], rel=0.25)


@pytest.mark.parametrize(
    "keys",
    [
        {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 16},
        {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 128, "n_inner": 300, "vocab_size": 1024},
        {"family": "qwen3", "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 64},
        {"family": "qwen3", "n_layer": 2, "n_head": 2, "n_embd": 48, "tie_word_embeddings": False},
        {"family": "llama", "n_layer": 3, "n_head": 4, "n_kv_head": 1, "n_embd": 64, "n_inner": 100},
        {"family": "llama", "n_layer": 1, "n_head": 2, "n_embd": 48, "tie_word_embeddings": False, "vocab_size": 77},
        {"family": "modernbert", "n_layer": 1, "n_head": 2, "n_embd": 48},
        {"family": "modernbert", "n_layer": 3, "n_head": 4, "n_embd": 64, "n_inner": 96, "vocab_size": 512},
    ],
)
def test_the_closed_form_counts_what_the_model_has(keys):
    architecture = Architecture(**keys)
    assert on_meta(architecture, tokens=301).num_parameters() == architecture.parameters(tokens=301)


def test_keys_given_with_a_preset_win():
    architecture = Architecture(preset="modern-124m", family="llama", n_layer=3)
    assert (architecture.family, architecture.n_layer, architecture.n_embd) == ("llama", 3, 768)


@pytest.mark.parametrize(
    "keys, told",
    [
        ({"n_embd": 100, "n_head": 3}, "n_embd = 100 cannot be shared by n_head = 3 heads"),
        ({"family": "llama", "n_embd": 60, "n_head": 4}, "n_embd / n_head = 15 is odd"),
        ({"family": "qwen3", "n_head": 4, "n_kv_head": 3}, "n_head = 4 is no multiple of n_kv_head = 3"),
        ({"n_head": 4, "n_kv_head": 2}, "gpt2 cannot share keys and values"),
        ({"tie_word_embeddings": False}, "gpt2 always ties its embeddings"),
        ({"preset": "gpt2-small"}, "there is no preset 'gpt2-small'; there are gpt2-1m,"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(keys, told):
    with pytest.raises(ValidationError, match=told):
        Architecture(**keys)


def test_a_vocabulary_has_room_for_every_token_and_may_have_more():
    tokenizer = train_tokenizer([""], 300, 64)
    with pytest.raises(UsageError) as caught:
        new_model(SHAPE.model_copy(update={"vocab_size": 200}), tokenizer)
    assert "The tokenizer has 261 tokens, but pretrain.architecture.vocab_size = 200" in caught.value.message
    assert new_model(SHAPE.model_copy(update={"vocab_size": 262}), tokenizer).config.vocab_size == 262
    assert new_model(SHAPE, tokenizer).config.vocab_size == 320  # the next multiple of 64
    assert [SHAPE.rows(tokens) for tokens in (64, 65, 1280)] == [64, 128, 1280]


def test_logits_are_those_of_transformers_gpt2_with_the_same_weights(model):
    stock = GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_positions=64, n_embd=128, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=1)
    ).eval()
    stock.load_state_dict(model.state_dict())
    ids = torch.randint(5, 261, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, stock(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", get_args(Family))
def test_a_new_model_guesses_and_reopens_as_it_was(family, tmp_path):
    torch.manual_seed(0)
    architecture = Architecture(family=family, n_layer=2, n_head=4, n_embd=64, n_positions=64)
    model = new_model(architecture, train_tokenizer([""], 300, 64)).eval()
    ids = torch.randint(5, 261, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss == pytest.approx(math.log(320), abs=0.1)

    model.save_pretrained(tmp_path)
    auto = AutoModelForMaskedLM if architecture.objective == "masked" else AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_modern_weights_begin_at_002_and_norms_at_1(family):
    torch.manual_seed(0)
    model = new_model(Architecture(family=family, n_layer=2, n_embd=128), train_tokenizer([""], 300, 64))
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert torch.all(weight == 1), name
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.03), name


def test_weights_begin_at_002_and_residual_projections_at_002_over_sqrt_2n(model):
    residual = 0.02 / math.sqrt(2 * SHAPE.n_layer)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert torch.all(weight == 0), name
        elif ".ln_" in name:
            assert torch.all(weight == 1), name
        else:
            expected = residual if name.endswith("c_proj.weight") else 0.02
            # 128 * 64 numbers or more: the deviation of a sample's deviation is below 0.8 %.
            assert weight.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(weight.mean().item()) < 0.05 * expected, name
    projections = [name for name, _ in model.named_parameters() if name.endswith("c_proj.weight")]
    assert len(projections) == 2 * SHAPE.n_layer


def test_input_and_output_embeddings_are_one_also_after_saving(model, tmp_path):
    assert model.lm_head.weight is model.transformer.wte.weight
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.transformer.wte.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_token_changes_no_prediction_before_it(model):
    ids = torch.randint(5, 261, (2, 12), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 7] = 5 + (changed[:, 7] - 4) % 256
    with torch.no_grad():
        before, after = model(input_ids=ids).logits, model(input_ids=changed).logits
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_the_model_is_normalised_before_each_block_and_at_the_end(model):
    hidden = model(input_ids=torch.arange(5, 13)[None], output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(hidden.mean(-1), torch.zeros(1, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.var(-1, unbiased=False), torch.ones(1, 8), atol=0.1, rtol=0)


def test_the_model_knows_its_special_tokens_and_its_size(model):
    config = model.config
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, 1)
    assert (config.vocab_size, config.n_positions, config.n_layer, config.n_head, config.n_embd) == (320, 64, 3, 4, 128)


def test_dropout_is_off_unless_asked_for():
    assert on_meta(SHAPE).config.resid_pdrop == 0.0
    config = on_meta(SHAPE.model_copy(update={"dropout": 0.1})).config
    assert (config.embd_pdrop, config.resid_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
    config = on_meta(Architecture(family="modernbert", dropout=0.1)).config
    assert (config.embedding_dropout, config.mlp_dropout, config.attention_dropout) == (0.1, 0.1, 0.1)
