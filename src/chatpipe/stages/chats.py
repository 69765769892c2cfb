"""The conversations of sft: tokenised once into the stage's folder, and opened there by every process."""

from transformers import PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.chat_rows import FORMAT, Rows, RowsNote, open_rows, write_rows
from chatpipe.data.datasets import stream_conversations
from chatpipe.data.durable import fingerprint
from chatpipe.data.report import Report
from chatpipe.data.sources import data_fingerprints
from chatpipe.data.worlds import world_settings
from chatpipe.errors import UsageError
from chatpipe.stages.step import Step
from chatpipe.training.ranks import main_process_first

KEY = "sft.data"
ROWS = "rows"


def rows_of_step(step: Step, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Rows, Rows, RowsNote]:
    """Rows of the train and the validation split, and what was left out; the main process writes, the others wait.

    Rows that lie there, of the same data, tokenizer, template and `max_length`, are opened as they are.
    """
    made_from = _made_from(step, tokenizer, max_length)
    folder = step.folder / ROWS
    with main_process_first(step.folder):
        found = open_rows(folder, made_from)
        if found is None:
            _write(step, tokenizer, max_length, made_from)
            found = open_rows(folder, made_from)
    assert found is not None, f"{folder} was written a moment ago"
    return found


def check_enough(train: Rows, validation: Rows) -> None:
    """Raises `UsageError` where there is nothing to train on, or too little to evaluate on."""
    if len(train) == 0 or len(validation) < 2:
        raise UsageError(
            f"{KEY} holds too little: {len(train)} conversations for training, {len(validation)} for validation.",
            "A tenth is for validation, chosen by its text; give at least some dozens of different ones.",
        )


def say_left_out(train: Rows, validation: Rows, note: RowsNote, max_length: int) -> None:
    """Tells how many conversations of each split were too long."""
    for rows, left_out in zip((train, validation), note.too_long.values(), strict=True):
        if left_out:
            console.note(
                f"sft: {left_out} of {len(rows) + left_out} conversations left out: longer than {max_length} tokens"
            )


def _write(step: Step, tokenizer: PreTrainedTokenizerBase, max_length: int, made_from: str) -> None:
    """Tokenises all conversations as they are read, and tells what could not be used."""
    report = Report()
    stream = stream_conversations(step.data[KEY], step.recipe.worlds, KEY, report)
    write_rows(step.folder / ROWS, stream, report, tokenizer, max_length, made_from)
    report.say()


def _made_from(step: Step, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """Fingerprint of all that decides the rows."""
    world = world_settings(step.data[KEY], step.recipe.worlds)
    reads = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map]
    return fingerprint([FORMAT, data_fingerprints(step.data[KEY], KEY), world, reads, max_length])
