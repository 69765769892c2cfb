"""Makes each mistake of the corpus in a folder of its own, and checks its error against the rules of all errors."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from chatpipe.data.chat_template import add_chat_template
from chatpipe.data.text_blocks import add_mask_token
from chatpipe.models.manifest import Manifest, write_manifest
from chatpipe.models.new_model import new_model, train_tokenizer
from chatpipe.recipe.architectures import Architecture
from chatpipe.recipe.loading import flatten
from chatpipe.recipe.schema import Recipe
from golden import GOLDEN, golden_lines
from mistakes import Mistake

MAX_LINES = 8
REMEDY = re.compile(
    r"\b(allow|change|choose|convert|copy|did you mean|example|fetch|give|is a quote|is it|leave|lists|look|lower|make|"
    r"mend|merge|must|name|other names|pip install|put|raise|reads|remove|run|save|see|set|start|take|train|try|use|write)\b",
    re.IGNORECASE,
)
"""A remedy in the lines after the first."""

KEYS = set(flatten(Recipe().model_dump()))


@pytest.fixture
def work(work, monkeypatch) -> Iterator[Path]:
    """Reward functions are looked for in the working folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield work
    sys.modules.pop("mine", None)


@pytest.fixture
def lay_out(work, request) -> Callable[[Mistake, Path], None]:
    """Puts the files and model folders of a mistake into the folder that its command runs in."""

    def lay_out(mistake: Mistake, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for name, kind in mistake.models.items():
            shutil.copytree(request.getfixturevalue("model_folders") / kind, folder / name)
        for name, content in mistake.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir(exist_ok=True)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content, encoding="utf-8")

    return lay_out


@pytest.fixture
def check(work, lay_out, listing, chatpipe) -> Callable[[Mistake], None]:
    """Makes a mistake in this process, and checks what every error must be, and that it is this one."""

    def check(mistake: Mistake) -> None:
        lay_out(mistake, work)
        before = listing()
        said = chatpipe(*mistake.words)
        assert said.code == 2, said.err
        assert said.out == ""
        after = listing()
        if mistake.begun:
            assert before.items() <= after.items()
            assert not any(name.endswith("chatpipe.json") for name in after.keys() - before.keys())
        else:
            assert after == before
        # Before it there may be lines about the data.
        check_error(mistake, said.err[max(0, said.err.find("error: ")) :])

    return check


def check_error(mistake: Mistake, error: str) -> None:
    """At most eight lines with the facts of the mistake, a place that the user knows, a remedy, and no traceback."""
    lines = error.splitlines()
    if mistake.name in GOLDEN:
        assert lines == golden_lines(mistake.name), error
    assert 2 <= len(lines) <= MAX_LINES, error
    assert "Traceback" not in error
    assert mistake.missing_facts(error) == [], error
    given = {part for word in mistake.words for part in (word, *re.split("[=.,]", word)) if len(part) > 1}
    assert any(place in error for place in {*KEYS, *mistake.files, *mistake.models, *given}), "it names no place"
    assert REMEDY.search("\n".join(lines[1:])), "it names no remedy"


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory) -> Path:
    """Folders of small models with nothing wrong but what they are named after."""
    folders = tmp_path_factory.mktemp("models")
    set_seed(0)
    shape = Architecture(n_layer=1, n_head=2, n_embd=16, n_positions=64)
    tokenizer, other, masked = (train_tokenizer([text], 300, 64) for text in ("Question.", "Other words.", "Question."))
    add_chat_template(tokenizer)
    add_mask_token(masked)
    chat = new_model(shape, tokenizer)
    _save(folders / "chat", chat, tokenizer)
    _save(folders / "encoder", new_model(shape.model_copy(update={"family": "modernbert"}), masked), masked)
    _save(folders / "reward", _reward_model(tokenizer), tokenizer)
    _save(folders / "two-labels", _reward_model(tokenizer, num_labels=2), tokenizer)
    _save(folders / "other-vocabulary", _reward_model(other), other)
    _spoil_weights(folders)
    _spoil_tokenizers(folders)
    shutil.copytree(folders / "reward", folders / "at-chance")
    measured = {"eval_accuracy": 0.5, "accuracy_low": 0.4, "eval_pairs": 80}
    write_manifest(folders / "at-chance", Manifest("rm", {}, {}, {}, seed=0, processes=1, metrics=measured))
    return folders


def _spoil_weights(folders: Path) -> None:
    """Copies of good models whose weights are not whole, or not there."""
    for name, kind in {"half": "chat", "shard-missing": "chat", "headless": "reward"}.items():
        shutil.copytree(folders / kind, folders / name)
    half = folders / "half" / "model.safetensors"
    half.write_bytes(half.read_bytes()[:-1000])
    weights = load_file(folders / "chat" / "model.safetensors")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    (folders / "shard-missing" / "model.safetensors").rename(folders / "shard-missing" / first)
    index = {"weight_map": dict.fromkeys(weights, first) | {"transformer.ln_f.weight": second}}
    (folders / "shard-missing" / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copytree(folders / "chat", folders / "compiled")
    compiled = {f"_orig_mod.{name}": weight for name, weight in weights.items()}
    save_file(compiled, folders / "compiled" / "model.safetensors", metadata={"format": "pt"})
    headless = folders / "headless" / "model.safetensors"
    body = {name: weight for name, weight in load_file(headless).items() if name != "score.weight"}
    save_file(body, headless, metadata={"format": "pt"})


def _spoil_tokenizers(folders: Path) -> None:
    """Copies of a good model whose tokenizer is not there, or not fit."""
    for name in ("no-tokenizer", "no-eos", "odd-template"):
        shutil.copytree(folders / "chat", folders / name)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folders / "no-tokenizer" / file).unlink()
    (folders / "no-eos" / "chat_template.jinja").unlink()
    config = folders / "no-eos" / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["eos_token"]
    config.write_text(json.dumps(settings))
    (folders / "odd-template" / "chat_template.jinja").write_text(
        "{% for message in messages if message['role'] == 'user' %}{{ message['content'] }}{% endfor %}"
    )


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _reward_model(tokenizer: PreTrainedTokenizerBase, **more: object) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{"num_labels": 1, "pad_token_id": tokenizer.pad_token_id, **more},
    )
    return GPT2ForSequenceClassification(config)
