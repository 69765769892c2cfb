import math

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from chatpipe.models.architecture import gpt2_config, new_model
from chatpipe.models.tokenizer import train_tokenizer
from chatpipe.recipe.schema import Architecture

SHAPE = Architecture(n_layer=3, n_head=4, n_embd=128, n_positions=64)


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return new_model(SHAPE, train_tokenizer([""], 300, 64)).eval()  # the 256 bytes and 5 special tokens


def test_gpt2_small_has_its_published_number_of_parameters():
    small = Architecture(n_layer=12, n_head=12, n_embd=768, n_positions=1024)
    assert small.parameters(vocab_size=50257) == 124_439_808
    with torch.device("meta"):
        assert GPT2LMHeadModel(GPT2Config()).num_parameters() == 124_439_808
        assert GPT2LMHeadModel(gpt2_config(small, 50257, 50256, 0)).num_parameters() == 124_439_808


@pytest.mark.parametrize(
    ("layers", "heads", "width", "positions", "vocab"), [(1, 1, 8, 16, 272), (4, 4, 128, 128, 1024)]
)
def test_the_closed_form_counts_what_the_model_has(layers, heads, width, positions, vocab):
    shape = Architecture(n_layer=layers, n_head=heads, n_embd=width, n_positions=positions)
    with torch.device("meta"):
        assert GPT2LMHeadModel(gpt2_config(shape, vocab, 1, 0)).num_parameters() == shape.parameters(vocab)


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
    assert (config.vocab_size, config.n_positions, config.n_layer, config.n_head, config.n_embd) == (261, 64, 3, 4, 128)


def test_dropout_is_off_unless_asked_for():
    assert gpt2_config(SHAPE, 300, 1, 0).resid_pdrop == 0.0
    config = gpt2_config(SHAPE.model_copy(update={"dropout": 0.1}), 300, 1, 0)
    assert (config.embd_pdrop, config.resid_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
