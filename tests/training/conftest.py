from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_trainer import tiny_trainer
from transformers import PreTrainedTokenizerFast, PrinterCallback, set_seed
from trl import SFTConfig

from chatpipe.data.chat_rows import Rows, RowsNote, open_rows, write_rows
from chatpipe.data.chat_template import add_chat_template
from chatpipe.data.packing import training_sequences
from chatpipe.data.sources import Report
from chatpipe.models.new_model import build_model, model_config, train_tokenizer
from chatpipe.recipe.architectures import Architecture
from chatpipe.training.lora import Adapter, lora_config
from chatpipe.training.pretrain_trainer import PretrainTrainer
from chatpipe.training.sft_trainer import SftTrainer
from tiny_chats import CONTEXT, conversations


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    made = train_tokenizer(["Mara is a baker. Who is Mara? Tomas has a dog."], 300, CONTEXT)
    add_chat_template(made)
    return made


@pytest.fixture(scope="session")
def written(tmp_path_factory, tokenizer) -> tuple[Rows, Rows, RowsNote]:
    """Sixty conversations of different length, a tenth for validation."""
    folder = tmp_path_factory.mktemp("written") / "rows"
    write_rows(folder, conversations(60), Report(), tokenizer, CONTEXT, "here")
    found = open_rows(folder, "here")
    assert found is not None
    return found


@pytest.fixture
def make_sft_trainer(tmp_path, tokenizer, written) -> Callable[..., SftTrainer]:
    """A trainer of a tiny new model: the same weights each time."""

    def make_sft_trainer(
        folder: Path = tmp_path, family: str = "gpt2", packed: bool = False, lora: bool = False, own: Any = None, **more
    ) -> SftTrainer:
        set_seed(0)
        shape = Architecture(family=family, n_layer=2, n_head=2, n_embd=16, n_positions=CONTEXT, dropout=0)
        model = build_model(family, model_config(shape, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id))
        settings = {
            "output_dir": str(folder),
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 3,
            "save_steps": 4,
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "save_total_limit": None,
            "remove_unused_columns": False,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
        trainer = SftTrainer(
            model,
            SFTConfig(**(settings | more)),
            training_sequences(written[0], None, CONTEXT if packed else None),
            tokenizer,
            packed=packed,
            adapter=Adapter(model, lora_config(4, 8, "all-linear")) if lora else None,
            **(own or {}),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make_sft_trainer


@pytest.fixture
def make_trainer(tmp_path) -> Callable[..., PretrainTrainer]:
    """A trainer of pretraining with a tiny new model: the same weights each time."""

    def make_trainer(folder: Path = tmp_path, **how: Any) -> PretrainTrainer:
        return tiny_trainer(folder, **how)

    return make_trainer
