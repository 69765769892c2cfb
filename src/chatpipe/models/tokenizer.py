"""Training the byte-level BPE tokenizer of a new model."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chatpipe.data.template import ROLE_TOKENS

PAD, EOS = "<|pad|>", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with `vocab_size` entries at most, any text of which decodes to itself.

    Pad, end-of-text and the role tokens of the chat template are reserved from the start, so the base model's
    embeddings need no resizing for fine-tuning; pad is not EOS (trl #976, transformers #23530). It has no chat
    template yet: a base model completes text.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, *ROLE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=EOS,
        extra_special_tokens=ROLE_TOKENS,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )
