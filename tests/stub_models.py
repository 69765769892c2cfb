"""Folders that look like models, as far as it shows without torch."""

import json
import struct
from pathlib import Path


def write_stub_model(folder: Path | str, architecture: str = "GPT2LMHeadModel", weights: str = "weights") -> None:
    """A whole model folder without a single weight; other `weights` make it another model."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "id2label": {"0": "score"}}))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"__metadata__": {"weights": weights}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
