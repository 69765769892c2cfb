"""The tokenizer of a new model, byte-level BPE or characters trained on its text; which tokens stand for no text."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from chatpipe.data.chat_template import ROLE_TOKENS
from chatpipe.errors import UsageError

PAD, EOS, UNKNOWN = "<|pad|>", "<|endoftext|>", "<|unknown|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with `vocab_size` entries at most, any text of which decodes to itself.

    Pad, end-of-text and the role tokens of the chat template are reserved from the start, so the base model's
    embeddings need no resizing for fine-tuning; pad is not EOS (trl #976, transformers #23530). It has no chat
    template yet: a base model completes text. `texts` is read once, and what is kept are the counts of its words.
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
    return _with_special_tokens(bpe, model_max_length)


def character_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int) -> PreTrainedTokenizerFast:
    """A token for each character of `texts`, in the order of Unicode, behind the special tokens; one for all others.

    Raises `UsageError` where that takes more than `vocab_size` entries.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    entries = [PAD, EOS, *ROLE_TOKENS, UNKNOWN, *sorted(characters)]
    if len(entries) > vocab_size:
        raise UsageError(
            f"The text has {len(characters)} different characters, with the special tokens {len(entries)} entries; "
            f"pretrain.tokenizer.vocab_size is {vocab_size}.",
            "Raise it, or use kind: bpe.",
        )
    # BPE without merges takes a text apart into characters six times as fast as a word-level model that splits it.
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    single = Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN))
    single.decoder = decoders.Fuse()
    return _with_special_tokens(single, model_max_length, unk_token=UNKNOWN)


def _with_special_tokens(backend: Tokenizer, model_max_length: int, **more: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=EOS,
        extra_special_tokens=ROLE_TOKENS,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        **more,
    )


def tokens_without_text(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of special tokens, except the unknown token: it stands for text, which would otherwise look easy.

    Where one token is both, as GPT-2's end of text, it stands for no text.
    """
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
    return tuple(sorted(set(tokenizer.all_special_ids) - unknown))
