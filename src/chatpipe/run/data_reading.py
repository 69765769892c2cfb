"""The tokenizer that reads a stage's data. It is found before the models of the run exist; no weights are loaded."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from chatpipe.data.chat_template import add_chat_template
from chatpipe.models.model_folder import check_tokenizer, looks_like_path
from chatpipe.models.pretrained import load_config, load_tokenizer
from chatpipe.models.properties import longest_sequence
from chatpipe.run.steps import maker_of
from chatpipe.stages.step import Step


@dataclass(frozen=True)
class Reader:
    """A tokenizer, the folder or hub id that it came from, and the longest sequence of its model in tokens."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    context: int


def find_reader(step: Step, model: str | None) -> Reader | None:
    """The tokenizer of `model` if given, else of the model that the stage starts from; None where there is none yet.

    Raises `UsageError` where it cannot be used.
    """
    if model is not None:
        check_tokenizer(model, "--model")
    name = model or _tokenizer_source(step)
    if name is None:
        return None
    tokenizer = load_tokenizer(name)
    if step.stage != "pretrain":
        add_chat_template(tokenizer)
    return Reader(name, tokenizer, _context(step, name, tokenizer))


def _tokenizer_source(step: Step) -> str | None:
    if step.stage == "pretrain":
        section = step.recipe.pretrain
        return section.tokenizer.pretrained or section.model or _made(step.folder)
    model, maker = step.models["model"], maker_of(step)
    if maker is None:
        check_tokenizer(model, f"{step.stage}.model")
        return model
    return _made(Path(model)) or _tokenizer_source(maker)


def _made(folder: Path) -> str | None:
    return str(folder) if (folder / "tokenizer.json").is_file() else None


def _context(step: Step, name: str, tokenizer: PreTrainedTokenizerBase) -> int:
    pretrain = step.recipe.pretrain
    is_model = not looks_like_path(name) or (Path(name).expanduser() / "config.json").is_file()
    if name == pretrain.tokenizer.pretrained or not is_model:
        return pretrain.architecture.n_positions
    config = load_config(name)
    return longest_sequence(config, tokenizer) if step.stage == "rm" else longest_sequence(config, decodes=True)
