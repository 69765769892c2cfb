"""The raw text of a stage: its sources, its tokenizer, and its token stores in the stage's folder."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.documents import RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.text_blocks import TrainingText
from chatpipe.data.text_sources import raw_texts
from chatpipe.data.token_store import skipped_in, token_stores
from chatpipe.errors import UsageError
from chatpipe.models.pretrained import load_tokenizer
from chatpipe.models.tokenizer_training import tokenizer_of_text
from chatpipe.stages.step import Step
from chatpipe.training.ranks import main_process_first

TOKENS = "tokens"


def stage_texts(step: Step, key: str) -> list[RawText]:
    """The sources of raw text that the stage reads under a recipe key."""
    return raw_texts(step.data[key], step.recipe.worlds, key)


def pretraining_tokenizer(step: Step, texts: Sequence[RawText]) -> PreTrainedTokenizerBase:
    """The tokenizer that the recipe names, that of the model to start from, or a new one, trained once for all ranks.

    Raises `UsageError` for one that cannot be used.
    """
    section = step.recipe.pretrain.tokenizer
    if section.pretrained is not None:
        return _usable(load_tokenizer(section.pretrained), f"pretrain.tokenizer.pretrained = {section.pretrained}")
    if "model" in step.models:
        return _usable(load_tokenizer(step.models["model"]), f"The tokenizer of {step.models['model']}")
    folder = step.folder / TOKENS / "tokenizer"
    with main_process_first(step.folder):
        tokenizer_of_text(folder, section, texts, step.recipe.pretrain.architecture.n_positions)
    return load_tokenizer(folder)


def training_text(
    step: Step,
    texts: Sequence[RawText],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    samples: int | None = None,
    batch_size: int = 0,
) -> TrainingText:
    """The train split of `texts`, tokenised once into the stage's folder, in the order of the recipe's seed.

    Later stages read the stores of pretrain where they hold the same. `samples` is the number of blocks that the stage
    reads in all; by default one epoch. Raises `UsageError` as `token_stores` does.
    """
    made_before = None if step.stage == "pretrain" else Path(step.recipe.out, "pretrain", TOKENS)
    with main_process_first(step.folder):
        folder = step.folder / TOKENS
        stores = token_stores(folder, texts, Encoder.of(tokenizer), made_before, batch_size, block_size)
    for text, store in zip(texts, stores, strict=True):
        line = skipped_in(text, store)
        if line is not None and step.is_main:
            console.note(line)
    return TrainingText(stores, [text.block.weight for text in texts], block_size, step.recipe.seed, samples)


def _usable(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    if not tokenizer.is_fast:
        raise UsageError(f"{name} has no tokenizer.json.", "Convert it to a fast tokenizer, or take another.")
    if tokenizer.eos_token_id is None:
        raise UsageError(f"{name} has no end-of-text token.", "Set eos_token in its tokenizer_config.json.")
    return tokenizer
