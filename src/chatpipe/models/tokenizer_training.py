"""The tokenizer of a new model: byte-level BPE or single characters, trained on the text that the model reads."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from chatpipe import console
from chatpipe.data.chat_template import ROLE_TOKENS
from chatpipe.data.documents import RawText
from chatpipe.data.durable import PARTIAL, fault_of, fingerprint, fsync, publish, read_json, write_json
from chatpipe.data.sources import data_fingerprints
from chatpipe.data.text_sources import sample_texts
from chatpipe.data.worlds import world_settings
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import Tokenizer as TokenizerSection

MADE_FROM = "made_from.json"
PAD, EOS, UNKNOWN = "<|pad|>", "<|endoftext|>", "<|unknown|>"


def tokenizer_of_text(folder: Path, section: TokenizerSection, texts: Sequence[RawText], model_max_length: int) -> None:
    """Trains the tokenizer of a new model on `texts` and writes it to `folder`, unless it is there already.

    Raises `UsageError` where the texts cannot be used, or have more characters than `section.vocab_size` entries.
    """
    blocks, key = [text.block for text in texts], texts[0].key
    sources = [data_fingerprints(blocks, key), world_settings(blocks, texts[0].worlds)]
    made_from = fingerprint([sources, section.model_dump(mode="json"), model_max_length])
    if fault_of(folder) is None and read_json(folder / MADE_FROM) == made_from:
        return
    sizes = [text.megabytes() for text in texts]
    megabytes = None if None in sizes else sum(size for size in sizes if size is not None)
    if section.kind == "character":
        characters = _with_progress((piece.text for text in texts for piece in text.pieces()), megabytes)
        made = character_tokenizer(characters, section.vocab_size, model_max_length)
    else:
        megabytes = None if megabytes is None else min(megabytes, section.train_bytes / 10**6)
        samples = _with_progress(sample_texts(texts, "train", section.train_bytes), megabytes)
        made = train_tokenizer(samples, section.vocab_size, model_max_length)
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    made.save_pretrained(partial)
    write_json(partial / MADE_FROM, made_from)
    for path in partial.iterdir():
        fsync(path)
    publish(partial)


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


def _with_progress(texts: Iterable[str], megabytes: float | None) -> Iterator[str]:
    """`texts` unchanged, with a progress bar while they are read."""
    with console.progress("tokenizer", None if megabytes is None else round(megabytes)) as bar:
        read = 0
        for text in texts:
            yield text
            read += len(text)
            bar.update(read // 10**6, "MB")


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
    """The ids of special tokens, except the unknown token: it replaces text, which would otherwise look easy.

    Where one token is both, as GPT-2's end of text, it counts as special.
    """
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
    return tuple(sorted(set(tokenizer.all_special_ids) - unknown))
