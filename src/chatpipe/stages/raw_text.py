"""The raw text of a stage: which tokenizer reads it, and its token stores in the stage's folder."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.documents import RawText, raw_texts, sample_texts
from chatpipe.data.durable import PARTIAL, fault_of, fingerprint, fsync, publish, write_json
from chatpipe.data.encoding import Encoder
from chatpipe.data.sources import data_fingerprints
from chatpipe.data.text_blocks import TrainingText, ValidationText
from chatpipe.data.token_store import TokenStore, build_token_store, find_token_store
from chatpipe.data.worlds import world_settings
from chatpipe.errors import UsageError
from chatpipe.evaluation.text import MAX_TEXT_BYTES
from chatpipe.models.pretrained import load_tokenizer
from chatpipe.models.tokenizer_training import character_tokenizer, train_tokenizer
from chatpipe.recipe.schema import Tokenizer
from chatpipe.stages.step import Step
from chatpipe.training.ranks import main_process_first

TOKENS = "tokens"
MADE_FROM = "made_from.json"


def stage_texts(step: Step, key: str) -> list[RawText]:
    """The sources of raw text that the stage reads under a recipe key."""
    return raw_texts(step.data[key], step.recipe.worlds, key)


def pretraining_tokenizer(step: Step, texts: Sequence[RawText]) -> PreTrainedTokenizerBase:
    """The tokenizer that the recipe names, that of the model to go on from, or a new one; all ranks get the same.

    Raises `UsageError` for one that cannot be used. A new one is kept in the stage's folder and trained once.
    """
    section = step.recipe.pretrain.tokenizer
    if section.pretrained is not None:
        return _usable(load_tokenizer(section.pretrained), f"pretrain.tokenizer.pretrained = {section.pretrained}")
    if "model" in step.models:
        return _usable(load_tokenizer(step.models["model"]), f"The tokenizer of {step.models['model']}")
    folder = step.folder / TOKENS / "tokenizer"
    positions = step.recipe.pretrain.architecture.n_positions
    made_from = _made_from(step, section, positions)
    with main_process_first(step.folder):
        if not _is_made_from(folder, made_from):
            _write_tokenizer(_new_tokenizer(section, texts, positions), folder, made_from)
    return load_tokenizer(folder)


def training_text(
    step: Step,
    texts: Sequence[RawText],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    samples: int | None = None,
    batch_size: int = 0,
) -> TrainingText:
    """`texts` tokenised once into the stage's folder, in the order in which the stage's seed reads it.

    What pretrain has tokenised in the same run, later stages read there.
    `samples` is how many blocks the stage reads in all; by default one epoch. Raises `UsageError` where a source has
    nothing to train on, and where all together have fewer tokens than `batch_size` blocks, which would then be read
    twice in one batch; what was made of so small a text is not kept.
    """
    encoder = Encoder.of(tokenizer)
    with main_process_first(step.folder):
        stores = [_store(step, number, text, encoder) for number, text in enumerate(texts)]
        tokens = sum(map(len, stores))
        if tokens < batch_size * block_size:
            shutil.rmtree(step.folder / TOKENS, ignore_errors=True)
            raise _less_than_one_batch(texts[0].key, tokens, batch_size, block_size)
    for text, store in zip(texts, stores, strict=True):
        if len(store) == 0:
            raise _too_little(text.key, [text.block.source])
        if store.skipped and step.is_main:
            said = "; ".join(
                f"{count}: {reason}, first at {store.first_skipped[reason]}" for reason, count in store.skipped.items()
            )
            left_out = sum(store.skipped.values())
            console.note(f"{text.key}: {text.block.source}: {left_out} left out ({said})")
    return TrainingText(stores, [text.block.weight for text in texts], block_size, step.recipe.seed, samples)


def check_training_side(texts: Sequence[RawText]) -> None:
    """Raises `UsageError` where a source has nothing to train on; reads no further than to the first piece of it."""
    for text in texts:
        if all(piece.split == "validation" for piece in text.pieces()):
            raise _too_little(text.key, [text.block.source])


def validation_documents(texts: Sequence[RawText]) -> list[str]:
    """Documents of the validation split, an equal share of each source. Raises `UsageError` where there are none."""
    found = list(sample_texts(texts, "validation", max_bytes=MAX_TEXT_BYTES))
    if not any(map(str.strip, found)):
        raise _too_little(texts[0].key, [text.block.source for text in texts])
    return found


def validation_text(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int, isolate: bool
) -> ValidationText:
    """Validation documents as the model reads them."""
    return ValidationText.of(texts, Encoder.of(tokenizer), block_size, tokenizer.eos_token_id if isolate else None)


def _store(step: Step, number: int, text: RawText, encoder: Encoder) -> TokenStore:
    """The tokens of the stage's source with this number: pretrain's where they are the same, else the stage's own."""
    if step.stage != "pretrain":
        found = find_token_store(sorted(Path(step.recipe.out, "pretrain", TOKENS).glob("train.*")), text, encoder)
        if found is not None:
            return found
    return build_token_store(step.folder / TOKENS / f"train.{number}", text, encoder)


def _too_little(key: str, sources: Sequence[str]) -> UsageError:
    return UsageError(
        f"{key} = {', '.join(sources)} holds too little: nothing to train on, or nothing for validation.",
        "A tenth is for validation, chosen by its text; give dozens of documents, or one, whose last tenth is taken.",
    )


def _less_than_one_batch(key: str, tokens: int, batch_size: int, block_size: int) -> UsageError:
    return UsageError(
        f"{key} has {tokens:,} tokens to train on, but one batch reads {batch_size * block_size:,}: "
        f"{batch_size} sequences of {block_size}.",
        "Give more text, or lower pretrain.batch_size or pretrain.block_size.",
    )


def _usable(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    if not tokenizer.is_fast:
        raise UsageError(f"{name} has no tokenizer.json.", "Convert it to a fast tokenizer, or take another.")
    if tokenizer.eos_token_id is None:
        raise UsageError(f"{name} has no end-of-text token.", "Set eos_token in its tokenizer_config.json.")
    return tokenizer


def _new_tokenizer(section: Tokenizer, texts: Sequence[RawText], positions: int) -> PreTrainedTokenizerBase:
    make: Callable[[Iterable[str], int, int], PreTrainedTokenizerBase]
    samples: Iterable[str]
    if section.kind == "character":
        make, samples = character_tokenizer, (piece.text for text in texts for piece in text.pieces())
    else:
        make, samples = train_tokenizer, sample_texts(texts, "train", max_bytes=section.train_bytes)
    return make(_watched(samples, "tokenizer", _expected_megabytes(section, texts)), section.vocab_size, positions)


def _expected_megabytes(section: Tokenizer, texts: Sequence[RawText]) -> float | None:
    """How much text a new tokenizer is trained on; None where only reading it tells."""
    sizes = [text.megabytes() for text in texts]
    known = sum(size for size in sizes if size is not None)
    limit = section.train_bytes / 10**6 if section.kind == "bpe" else known
    return None if None in sizes else round(min(known, limit))


def _watched(texts: Iterable[str], title: str, megabytes: float | None) -> Iterator[str]:
    """`texts` as they come, with a progress bar while they are read."""
    with console.progress(title, megabytes) as bar:
        read = 0
        for text in texts:
            yield text
            read += len(text)
            bar.update(read // 10**6, "MB")


def _made_from(step: Step, section: Tokenizer, positions: int) -> str:
    """Fingerprint of all that decides a new tokenizer."""
    sources = data_fingerprints(step.data["pretrain.data"], "pretrain.data")
    world = world_settings(step.data["pretrain.data"], step.recipe.worlds)
    return fingerprint([sources, world, section.model_dump(mode="json"), positions])


def _is_made_from(folder: Path, made_from: str) -> bool:
    note = folder / MADE_FROM
    return fault_of(folder) is None and json.loads(note.read_text(encoding="utf-8")) == made_from


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, made_from: str) -> None:
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    tokenizer.save_pretrained(partial)
    write_json(partial / MADE_FROM, made_from)
    for path in partial.iterdir():
        fsync(path)
    publish(partial)
