"""The first steps of each architecture, short enough for a CPU: what `make test` compares with `losses.json`.

Written anew, after a change that is meant to change them, by: python tests/golden/golden_losses.py
"""

import json
import os
import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainingArguments, set_seed

from chatpipe.data.text_blocks import Masking
from chatpipe.models.new_model import build_model, model_config
from chatpipe.models.pretrained import pick_kernels
from chatpipe.recipe.architectures import Architecture
from chatpipe.training.pretrain_trainer import PretrainTrainer

LOSSES = Path(__file__).with_name("losses.json")
CASES = {
    "gpt2": {"family": "gpt2"},
    "gpt2, muon": {"family": "gpt2", "muon": True},
    "qwen3": {"family": "qwen3", "n_kv_head": 2},
    "llama": {"family": "llama"},
    "modernbert, masked": {"family": "modernbert"},
}
STEPS, CONTEXT = 20, 32
TEXT = "The miller of the old mill by the river asks the baker for bread, and the baker asks him for flour. "


class Text(Dataset):
    """Windows of one sentence, written again and again, as bytes."""

    def __init__(self) -> None:
        self.bytes = torch.tensor(list((TEXT * 60).encode()))

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = 3 + self.bytes[7 * index % 1000 :][:CONTEXT]
        return {"input_ids": ids, "labels": ids}


def losses_of(family: str, muon: bool = False, **keys: int) -> list[float]:
    """The loss of each step."""
    set_seed(0)
    architecture = Architecture(
        family=family, n_layer=2, n_head=4, n_embd=32, n_positions=CONTEXT, vocab_size=260, **keys
    )
    model = build_model(family, model_config(architecture, 260, eos_token_id=1, pad_token_id=0))
    model = pick_kernels(model)  # as chatpipe trains
    masking = Masking(mask_id=2, special_ids=(0, 1, 2), tokens=260, probability=0.15)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=3,
            weight_decay=0.1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            seed=0,
        )
        trainer = PretrainTrainer(
            model, args, Text(), muon=muon, masking=masking if architecture.objective == "masked" else None
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [round(row["loss"], 5) for row in trainer.state.log_history if "loss" in row]


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    LOSSES.write_text(json.dumps({name: losses_of(**case) for name, case in CASES.items()}, indent=1) + "\n")
