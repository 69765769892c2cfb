"""Loading a causal model to chat with: its tokenizer gets a chat template, and embeddings for the template's tokens."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from chatpipe import console
from chatpipe.data.chat_template import add_chat_template
from chatpipe.models.pretrained import load_causal_model, load_tokenizer


def load_for_chat(model: str, frozen: bool = False) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A causal model in float32 and its tokenizer, with a chat template and embeddings for all of its tokens."""
    tokenizer = load_tokenizer(model)
    loaded = load_causal_model(model, frozen)
    add_chat_template(tokenizer)
    entries = loaded.get_input_embeddings().num_embeddings
    if len(tokenizer) > entries:
        console.note(
            f"the vocabulary grows from {entries:,} to {len(tokenizer):,}: tokens of the chat template, untrained"
        )
        set_seed(0)  # the new rows are drawn at random
        loaded.resize_token_embeddings(len(tokenizer))
    loaded.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, loaded
