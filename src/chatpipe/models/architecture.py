"""New models: a GPT-2 of any size, as transformers' own class."""

from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from chatpipe.models.loading import quickest_attention
from chatpipe.recipe.schema import Architecture


def gpt2_config(architecture: Architecture, vocab_size: int, eos_token_id: int, pad_token_id: int) -> GPT2Config:
    """The configuration of a GPT-2 of the recipe's size."""
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=architecture.n_positions,
        n_embd=architecture.n_embd,
        n_layer=architecture.n_layer,
        n_head=architecture.n_head,
        # GPT-2's own GELU under its other name, which torch computes in one pass instead of eight.
        activation_function="gelu_pytorch_tanh",
        embd_pdrop=architecture.dropout,
        resid_pdrop=architecture.dropout,
        attn_pdrop=architecture.dropout,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def new_model(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """A GPT-2 with fresh weights: N(0, 0.02), residual projections N(0, 0.02/sqrt(2N)) (GPT-2 paper, section 2.3).

    transformers' initialisation does this itself; `tests/models` checks the standard deviations.
    """
    config = gpt2_config(architecture, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    return quickest_attention(GPT2LMHeadModel(config))
