"""Tokens per second of chatpipe's pretraining against others', same shape, same text, in turns.

    python benchmarks/pretrain.py [--shape shakespeare|20m] [--rounds 2] [--steps 40] [--nanogpt FOLDER]

Peers: a plain transformers Trainer on a GPT2LMHeadModel with transformers' own defaults, which installs from the
package index, and nanoGPT's own train.py where a checkout of https://github.com/karpathy/nanoGPT is given (no package
has it).
Each runs in a process of its own. Shown are medians over the steps after the first ten, by the clock and by processor
time (which other work on the machine disturbs less), the share of the machine's measured matmul peak, and the shares of
a step that pass in waiting for its samples, and in all before the model is called: data and the loop.
"""

import argparse
import json
import pickle
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

# layers, heads, width, context, vocabulary, batch; the first is nanoGPT's CPU setting (its README: "I only have a
# macbook")
SHAPES = {"shakespeare": (4, 4, 128, 64, 65, 12), "20m": (6, 8, 512, 256, 4096, 8)}
WARM_UP = 10
TOKENS = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="shakespeare")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--one", choices=["chatpipe", "transformers"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(trainer_steps(given.one, SHAPES[given.shape], WARM_UP + given.steps)))
        return
    peers = ["chatpipe", "transformers", *(["nanoGPT"] if given.nanogpt else [])]
    found: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    for _ in range(given.rounds):
        for peer in peers:
            found[peer].append(nanogpt_steps(given) if peer == "nanoGPT" else in_own_process(peer, given))
    show(given.shape, found)


def in_own_process(peer: str, given: argparse.Namespace) -> dict[str, Any]:
    words = [sys.executable, __file__, "--one", peer, "--shape", given.shape, "--steps", str(given.steps)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def trainer_steps(peer: str, shape: tuple[int, ...], steps: int) -> dict[str, Any]:
    """Seconds of each step of a Trainer: chatpipe's as `chatpipe pretrain` sets it up, or transformers' as it comes."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from chatpipe.models.new_model import build_model, model_config
    from chatpipe.models.pretrained import pick_kernels
    from chatpipe.recipe.architectures import Architecture, flops_per_token
    from chatpipe.recipe.schema import Pretrain
    from chatpipe.training.arguments import multiplies_bf16, pretrain_arguments, training_arguments
    from chatpipe.training.machine import keep_freed_memory, peak_flops, quiet_libraries
    from chatpipe.training.pretrain_trainer import PretrainTrainer

    layers, heads, width, context, vocabulary, batch = shape
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = multiplies_bf16(device)

    class Blocks(torch.utils.data.Dataset):
        tokens = torch.randint(vocabulary, (TOKENS,), generator=torch.Generator().manual_seed(0))

        def __len__(self) -> int:
            return TOKENS // context

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            ids = self.tokens[index * context : (index + 1) * context]
            return {"input_ids": ids, "labels": ids}

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []
            self.processor: list[float] = []
            self.calls: list[float] = []
            self.fetches: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())
            self.processor.append(time.process_time())

    quiet_libraries()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if peer == "chatpipe":
            keep_freed_memory()
            architecture = Architecture(n_layer=layers, n_head=heads, n_embd=width, n_positions=context)
            model = build_model("gpt2", model_config(architecture, vocabulary, 0, 0))
            model = pick_kernels(model)
            section = Pretrain(
                architecture=architecture, block_size=context, batch_size=batch, max_steps=steps, bf16="auto"
            )
            more = {**pretrain_arguments(section), "save_strategy": "no"}
            args = training_arguments(TrainingArguments, section, "pretrain", Path(folder), 0, 1, **more)
            trainer: Trainer = PretrainTrainer(model, args, stored(Path(folder) / "tokens", Blocks.tokens, context))
        else:
            config = GPT2Config(
                vocab_size=vocabulary, n_positions=context, n_embd=width, n_layer=layers, n_head=heads,
                resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0,
            )  # fmt: skip
            model = GPT2LMHeadModel(config)
            args = TrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, save_strategy="no",
                report_to="none", disable_tqdm=True, use_cpu=device.type == "cpu", bf16=bf16, logging_steps=10,
            )  # fmt: skip
            trainer = Trainer(model=model, args=args, train_dataset=Blocks())
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        fetch = trainer.get_batch_samples

        def timed_fetch(*given: Any, **more: Any) -> Any:
            start = time.perf_counter()
            found = fetch(*given, **more)
            clock.fetches.append(time.perf_counter() - start)
            return found

        trainer.get_batch_samples = timed_fetch
        trainer.add_callback(clock)
        model.register_forward_pre_hook(lambda *_: clock.calls.append(time.perf_counter()))
        trainer.train()
    ends, calls = clock.ends, clock.calls
    seconds = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    waits = [call - before for before, call in zip(ends[WARM_UP - 1 :], calls[WARM_UP:], strict=False)]
    return {
        "seconds": statistics.median(seconds),
        "processor": (clock.processor[-1] - clock.processor[WARM_UP - 1]) / len(seconds),
        "data": statistics.median(clock.fetches[WARM_UP:]) / statistics.median(seconds),
        "waiting": statistics.median(waits) / statistics.median(seconds),
        "flops": flops_per_token(model.num_parameters(), layers, width, context),
        "peak": peak_flops(torch.bfloat16 if bf16 else torch.float32),
    }


def stored(folder: Path, tokens: Any, context: int) -> Any:
    """The tokens as chatpipe pretrain reads them: out of the files of a token store, in its order."""
    import numpy as np

    from chatpipe.data.durable import MANIFEST
    from chatpipe.data.text_blocks import TrainingText
    from chatpipe.data.token_store import StoreManifest, TokenStore

    folder.mkdir()
    tokens.numpy().astype(np.uint16).tofile(folder / "shard")
    shards = {"shard": {"bytes": len(tokens), "documents": 1}}
    (folder / MANIFEST).write_text(json.dumps(asdict(StoreManifest("random", "uint16", True, shards))))
    return TrainingText([TokenStore(folder)], [1.0], context, seed=0, samples=100 * len(tokens) // context)


def nanogpt_steps(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step of nanoGPT's own train.py, as it prints them, on as many random tokens."""
    warm_up, _ = run_nanogpt(given, WARM_UP)
    in_all, times = run_nanogpt(given, WARM_UP + given.steps)
    return {"seconds": statistics.median(times[WARM_UP:]), "processor": (in_all - warm_up) / given.steps}


def run_nanogpt(given: argparse.Namespace, steps: int) -> tuple[float, list[float]]:
    """Processor seconds of the whole process, and seconds of each step by the clock."""
    import numpy as np

    layers, heads, width, context, vocabulary, batch = SHAPES[given.shape]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocabulary}))
        tokens = np.random.default_rng(0).integers(vocabulary, size=TOKENS, dtype=np.uint16)
        for name in ("train.bin", "val.bin"):
            tokens.tofile(data / name)
        settings = {
            "dataset": folder, "device": "cpu", "dtype": "float32",
            "compile": False, "eval_iters": 1, "log_interval": 1,
            "block_size": context, "batch_size": batch, "n_layer": layers, "n_head": heads, "n_embd": width,
            "dropout": 0.0, "gradient_accumulation_steps": 1, "max_iters": steps, "bias": True,
            "eval_interval": 10**6, "out_dir": folder, "lr_decay_iters": 2000,
        }  # fmt: skip
        words = [sys.executable, "train.py"]
        words += [f"--{key}={value}" for key, value in settings.items()]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(words, cwd=given.nanogpt, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, [float(found) / 1000 for found in re.findall(r"time ([\d.]+)ms", done.stdout)]


def show(name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    *_, context, _, batch = SHAPES[name]
    ours = found["chatpipe"]
    columns = [
        "tokens/s",
        "of chatpipe's",
        "a processor second",
        "of chatpipe's",
        "of matmul peak",
        "for data",
        "before the model",
    ]
    print(f"| {name} | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for peer, rounds in found.items():
        seconds = statistics.median(one["seconds"] for one in rounds)
        speed = batch * context / seconds
        peak = max((one["peak"] for one in ours if one["peak"]), default=None)
        share = f"{speed * ours[0]['flops'] / peak:.0%}" if peak else "unknown"
        shares = (f"{statistics.median(one[what] for one in rounds):.1%}" for what in ("data", "waiting"))
        waiting = " | ".join(shares) if "waiting" in rounds[0] else "- | -"
        ratio = statistics.median(one["seconds"] for one in ours) / seconds
        processor = statistics.median(one["processor"] for one in rounds)
        of_ours = statistics.median(one["processor"] for one in ours) / processor
        cells = f"{speed:,.0f} | {ratio:.2f} | {batch * context / processor:,.0f} | {of_ours:.2f}"
        print(f"| {peer} | {cells} | {share} | {waiting} |")


if __name__ == "__main__":
    main()
