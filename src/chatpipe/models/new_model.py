"""New models of any family and size, as transformers' own classes, so that their folders open anywhere."""

from typing import Any

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from chatpipe.errors import UsageError
from chatpipe.models.pretrained import prepare_model
from chatpipe.recipe.architectures import Architecture, Family

_CLASSES: dict[Family, type[PreTrainedModel]] = {
    "gpt2": GPT2LMHeadModel,
    "qwen3": Qwen3ForCausalLM,
    "llama": LlamaForCausalLM,
    "modernbert": ModernBertForMaskedLM,
}


def new_model(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with fresh weights for the tokens of `tokenizer`, on the device that trains.

    GPT-2's are N(0, 0.02), its residual projections N(0, 0.02/sqrt(2N)) (GPT-2 paper, section 2.3); the other families'
    N(0, 0.02) (ModernBERT's truncated). transformers' initialisation does this itself; `tests/models` checks the
    standard deviations.

    Raises `UsageError` where the tokenizer has more tokens than `architecture.vocab_size`.
    """
    if architecture.vocab_size is not None and len(tokenizer) > architecture.vocab_size:
        raise UsageError(
            f"The tokenizer has {len(tokenizer):,} tokens, but pretrain.architecture.vocab_size = "
            f"{architecture.vocab_size:,}: the model could not read the last of them.",
            "Raise it (a multiple of 64 is fast on GPUs), leave it out, or take a smaller tokenizer.",
        )
    config = model_config(architecture, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    return prepare_model(build_model(architecture.family, config))


def build_model(family: Family, config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration that `model_config` made; under `torch.device("meta")` it takes no memory."""
    return _CLASSES[family](config)


def model_config(
    architecture: Architecture, tokens: int, eos_token_id: int, pad_token_id: int | None
) -> PretrainedConfig:
    """The configuration of a model of this architecture for a tokenizer with `tokens` tokens."""
    make = {"gpt2": _gpt2, "qwen3": _qwen3, "llama": _llama, "modernbert": _modernbert}[architecture.family]
    return make(
        architecture,
        vocab_size=architecture.vocab_size or tokens,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def _gpt2(architecture: Architecture, **common: Any) -> PretrainedConfig:
    return GPT2Config(
        **common,
        n_positions=architecture.n_positions,
        n_embd=architecture.n_embd,
        n_layer=architecture.n_layer,
        n_head=architecture.n_head,
        n_inner=architecture.n_inner,
        # GPT-2's own GELU under its other name, which torch computes in one pass instead of eight.
        activation_function="gelu_pytorch_tanh",
        embd_pdrop=architecture.dropout,
        resid_pdrop=architecture.dropout,
        attn_pdrop=architecture.dropout,
    )


def _qwen3(architecture: Architecture, **common: Any) -> PretrainedConfig:
    return Qwen3Config(**common, **_of_llama(architecture))


def _llama(architecture: Architecture, **common: Any) -> PretrainedConfig:
    return LlamaConfig(**common, **_of_llama(architecture))


def _of_llama(architecture: Architecture) -> dict[str, Any]:
    return {
        **_sizes(architecture),
        "num_key_value_heads": architecture.kv_heads,
        "head_dim": architecture.head_width,
        "tie_word_embeddings": architecture.tie_word_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": architecture.rope_theta},
        "rms_norm_eps": 1e-6,
    }


def _modernbert(architecture: Architecture, **common: Any) -> PretrainedConfig:
    rope = {"rope_type": "default", "rope_theta": architecture.rope_theta}
    return ModernBertConfig(
        **common,
        **_sizes(architecture),
        cls_token_id=common["bos_token_id"],
        sep_token_id=common["eos_token_id"],
        # Every layer reads the whole context, which is short here; windows pay beyond a thousand tokens.
        layer_types=["full_attention"] * architecture.n_layer,
        rope_parameters={"full_attention": rope, "sliding_attention": rope},
        # Chat conversations begin with no [CLS] token whose state could represent them.
        classifier_pooling="mean",
        embedding_dropout=architecture.dropout,
        mlp_dropout=architecture.dropout,
    )


def _sizes(architecture: Architecture) -> dict[str, Any]:
    return {
        "hidden_size": architecture.n_embd,
        "intermediate_size": architecture.inner,
        "num_hidden_layers": architecture.n_layer,
        "num_attention_heads": architecture.n_head,
        "max_position_embeddings": architecture.n_positions,
        "attention_dropout": architecture.dropout,
    }
