"""New models of any family and size, as transformers' own classes that open anywhere, and their tokenizers."""

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
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
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from chatpipe import console
from chatpipe.data.chat_template import ROLE_TOKENS
from chatpipe.data.documents import RawText, sample_texts
from chatpipe.data.durable import PARTIAL, find_damage, fingerprint, fsync, publish, read_json, write_json
from chatpipe.data.sources import data_fingerprints
from chatpipe.data.worlds import world_settings
from chatpipe.errors import UsageError
from chatpipe.models.pretrained import prepare_model
from chatpipe.recipe.architectures import Architecture, Family
from chatpipe.recipe.schema import Tokenizer as TokenizerSection

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
        vocab_size=architecture.rows(tokens),
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def _gpt2(architecture: Architecture, **common: Any) -> PretrainedConfig:
    return GPT2Config(
        **common,
        n_positions=architecture.n_positions,
        n_ctx=architecture.n_positions,  # its old name, which llama.cpp's converter reads
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


# ---- the tokenizer: byte-level BPE or single characters, trained on the text that the model reads ----

MADE_FROM = "made_from.json"
LONGEST_WORD = 256
_KINDS = (r"[^\W\d_]", r"\d", r"[^\w\s]", r"\s")
LONG_RUN = re.compile("|".join(f"{kind}{{{LONGEST_WORD}}}(?={kind})" for kind in _KINDS))
BLANKS = re.compile(rf"\s{{{LONGEST_WORD}}}")
PAD, EOS, UNKNOWN = "<|pad|>", "<|endoftext|>", "<|unknown|>"


def tokenizer_of_text(folder: Path, section: TokenizerSection, texts: Sequence[RawText], model_max_length: int) -> None:
    """Trains the tokenizer of a new model on `texts` and writes it to `folder`, unless it is there already.

    Raises `UsageError` where the texts cannot be used, or have more characters than `section.vocab_size` entries.
    """
    blocks, key = [text.block for text in texts], texts[0].key
    sources = [data_fingerprints(blocks, key), world_settings(blocks, texts[0].worlds)]
    made_from = fingerprint([sources, section.model_dump(mode="json"), model_max_length])
    if find_damage(folder) is None and read_json(folder / MADE_FROM) == made_from:
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
    bpe.train_from_iterator((part for text in texts for part in without_long_words(text)), trainer)
    return _with_special_tokens(bpe, model_max_length)


def without_long_words(text: str) -> Iterator[str]:
    """`text` in parts that end inside a run of more than 256 letters, digits, signs or blanks, each 256 further.

    The time of BPE's training is quadratic in the longest word, and DNA or Base64 is one word. Such a run is no word of
    a language, so the tokens of usual text are the same.
    """
    start = 0
    if max(map(len, text.split()), default=0) > LONGEST_WORD or BLANKS.search(text):
        for run in LONG_RUN.finditer(text):
            yield text[start : run.end()]
            start = run.end()
    yield text[start:]


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
