"""A trainer of a tiny new model, and what ends it early."""

from pathlib import Path
from typing import Any

from tiny_tokens import CONTEXT, VOCABULARY, Tokens
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from chatpipe.models.new_model import build_model, model_config
from chatpipe.recipe.architectures import Architecture
from chatpipe.training.pretrain_trainer import PretrainTrainer


def tiny_trainer(
    folder: Path,
    family: str = "gpt2",
    dataset: Dataset | None = None,
    own: Any = None,
    dropout: float = 0.1,
    **arguments: Any,
) -> PretrainTrainer:
    """The same weights each time."""
    set_seed(0)
    architecture = Architecture(family=family, n_layer=2, n_head=2, n_embd=16, n_positions=CONTEXT, dropout=dropout)
    model = build_model(family, model_config(architecture, VOCABULARY, eos_token_id=1, pad_token_id=0))
    settings = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "seed": 7,
    }
    args = TrainingArguments(**{**settings, **arguments})
    trainer = PretrainTrainer(model, args, dataset or Tokens(), eval_dataset=Tokens(4), **(own or {}))
    trainer.remove_callback(PrinterCallback)
    return trainer


class Crash(Exception):
    pass


class CrashAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Crash
