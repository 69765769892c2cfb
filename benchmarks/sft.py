"""Tokens per second of chatpipe's fine-tuning against trl's SFTTrainer called directly; and a million conversations.

    python benchmarks/sft.py [--rounds 3] [--steps 40] [--packing] [--plain]
    python benchmarks/sft.py --conversations 1000000 [--workdir FOLDER]

Both peers get the same model, the same rows of token ids and labels in the same order, the same arguments; each runs in
a process of its own, in turns. trl's model is as transformers makes it, chatpipe's as its stages load it (attention and
GELU that are quicker here); with --plain both are as transformers makes it, and the trainers alone differ. Shown are
medians over the rounds, by the clock and by processor time (which other work on the machine disturbs less), and the
median and range of the rounds' ratios. With --packing, trl packs with its own bfd strategy.

With --conversations, a file of so many is tokenised by the stage's own function, and the peak memory is shown while it
grows.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAYERS, HEADS, WIDTH, CONTEXT, VOCABULARY = 4, 4, 128, 256, 1280
BATCH, ROWS, WARM_UP = 16, 2000, 10
WORDS = "the mill baker Mara lives near a river and keeps goats which like to eat fresh bread".split()  # noqa: SIM905


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--plain", action="store_true", help="chatpipe's trainer on the model that trl gets")
    parser.add_argument("--conversations", type=int, help="measure memory and time of tokenising so many instead")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--one", choices=["chatpipe", "trl"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.conversations:
        tokenise(given.conversations, given.workdir)
    elif given.one:
        print(json.dumps(train(given.one, WARM_UP + given.steps, given.packing, given.plain)))
    else:
        compare(given)


def compare(given: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {"chatpipe": [], "trl": []}
    for number in range(given.rounds):
        for peer in sorted(found, reverse=number % 2 == 1):
            words = [sys.executable, __file__, "--one", peer, "--steps", str(given.steps)]
            words += ["--packing"] * given.packing + ["--plain"] * given.plain
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found[peer].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"| {'packed' if given.packing else 'apart'} | tokens/s | a processor second | loss of the last step |")
    print("|---|---|---|---|")
    for peer, rounds in found.items():
        wall, processor, loss = (
            statistics.median(one[name] for one in rounds) for name in ("wall", "processor", "loss")
        )
        print(f"| {peer} | {wall:,.0f} | {processor:,.0f} | {loss:.4f} |")
    for name, unit in (("wall", "by the clock"), ("processor", "by processor time")):
        ratios = [ours[name] / theirs[name] for ours, theirs in zip(found["chatpipe"], found["trl"], strict=True)]
        print(f"chatpipe / trl {unit}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def conversations(count: int, seed: int = 0) -> Iterator[list[dict[str, str]]]:
    """Exchanges of 5 to 60 words."""
    draw = random.Random(seed)
    for number in range(count):
        texts = [" ".join(draw.choices(WORDS, k=draw.randrange(5, 60))) for _ in range(2)]
        yield [{"role": "user", "content": f"{number} {texts[0]}"}, {"role": "assistant", "content": texts[1]}]


def tokenizer() -> Any:
    from chatpipe.data.chat_template import add_chat_template
    from chatpipe.models.new_model import train_tokenizer

    made = train_tokenizer((text["content"] for texts in conversations(500) for text in texts), VOCABULARY, CONTEXT)
    add_chat_template(made)
    return made


def train(peer: str, steps: int, packing: bool, plain: bool) -> dict[str, float]:
    """Tokens per second of a peer's trainer, real ones alone, after the first steps."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from chatpipe.data.chat_rows import open_rows, write_rows
    from chatpipe.data.packing import training_sequences
    from chatpipe.data.sources import Report
    from chatpipe.data.text_blocks import IGNORED
    from chatpipe.models.new_model import build_model, model_config
    from chatpipe.models.pretrained import pick_kernels
    from chatpipe.recipe.architectures import Architecture
    from chatpipe.recipe.schema import Sft
    from chatpipe.training.arguments import training_arguments
    from chatpipe.training.machine import keep_freed_memory, quiet_libraries
    from chatpipe.training.sft_trainer import SftTrainer

    class Clock(TrainerCallback):
        """When each step ended, by the clock and by processor time, and how many tokens it had."""

        def __init__(self) -> None:
            self.wall: list[float] = []
            self.processor: list[float] = []
            self.tokens: list[int] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.wall.append(time.perf_counter())
            self.processor.append(time.process_time())
            self.tokens.append(seen[0])

    def count(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        mask, ids = inputs.get("attention_mask"), inputs["input_ids"]
        real = ids != reader.pad_token_id if mask is None else mask
        seen[0] += int(real.sum())

    quiet_libraries()
    seen = [0]
    reader = tokenizer()
    set_seed(0)
    shape = Architecture(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, n_positions=CONTEXT, dropout=0)
    model = build_model("gpt2", model_config(shape, len(reader), reader.eos_token_id, reader.pad_token_id))
    section = Sft(learning_rate=1e-3, max_steps=steps, batch_size=BATCH, max_length=CONTEXT, packing=packing)
    with tempfile.TemporaryDirectory() as folder:
        rows_folder = Path(folder) / "rows"
        write_rows(rows_folder, ((texts, "train") for texts in conversations(ROWS)), Report(), reader, CONTEXT, "")
        opened = open_rows(rows_folder, "")
        assert opened is not None
        rows = opened[0]
        more: dict[str, Any] = {"max_steps": steps, "max_length": CONTEXT, "save_strategy": "no"}
        if peer == "chatpipe":
            if not plain:
                keep_freed_memory()
                model = pick_kernels(model)
            more["dataset_kwargs"] = {"skip_prepare_dataset": True}
            args = training_arguments(SFTConfig, section, "sft", Path(folder), 0, 1, **more)
            sequences = training_sequences(rows, None, CONTEXT if packing else None)
            trainer: SFTTrainer = SftTrainer(model, args, sequences, reader, packed=packing)
        else:
            args = training_arguments(SFTConfig, section, "sft", Path(folder), 0, 1, packing=packing, **more)
            listed = [
                {"input_ids": ids, "labels": [t if learn else IGNORED for t, learn in zip(ids, mask, strict=True)]}
                for ids, mask in rows.first(ROWS)
            ]
            trainer = SFTTrainer(
                model=model, args=args, train_dataset=Dataset.from_list(listed), processing_class=reader
            )
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(clock)
        model.register_forward_pre_hook(lambda module, args, kwargs: count(module, args, kwargs), with_kwargs=True)
        seen[0] = 0
        trainer.train()
    tokens = clock.tokens[-1] - clock.tokens[WARM_UP - 1]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert torch.isfinite(torch.tensor(losses)).all()
    return {
        "wall": tokens / (clock.wall[-1] - clock.wall[WARM_UP - 1]),
        "processor": tokens / (clock.processor[-1] - clock.processor[WARM_UP - 1]),
        "loss": losses[-1],
    }


def tokenise(count: int, workdir: Path | None) -> None:
    """Streams a file of so many conversations into rows, packs them, and shows what memory that took."""
    from chatpipe.data.chat_rows import open_rows, write_rows
    from chatpipe.data.datasets import stream_conversations
    from chatpipe.data.packing import training_sequences
    from chatpipe.data.sources import Report
    from chatpipe.recipe.schema import DataBlock

    reader = tokenizer()
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        file = Path(folder) / "chats.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps({"messages": texts}) + "\n" for texts in conversations(count))
        start, peak = time.perf_counter(), peak_megabytes()
        print("| conversations | seconds | peak memory MB |\n|---|---|---|")

        def watched() -> Iterator[Any]:
            stream = stream_conversations([DataBlock(source=str(file))], {}, "sft.data", report)
            for number, each in enumerate(stream, start=1):
                yield each
                if number % max(1, count // 10) == 0:
                    print(f"| {number:,} | {time.perf_counter() - start:.1f} | {peak_megabytes():.0f} |", flush=True)

        report = Report()
        write_rows(Path(folder) / "rows", watched(), report, reader, CONTEXT, "")
        opened = open_rows(Path(folder) / "rows", "")
        assert opened is not None
        print(f"before: {peak:.0f} MB; written and opened: {peak_megabytes():.0f} MB; file: {megabytes(file):.0f} MB")
        begun = time.perf_counter()
        sequences = training_sequences(opened[0], None, CONTEXT)
        seconds = time.perf_counter() - begun
        tokens = int(opened[0].lengths.sum())
        print(
            f"{len(opened[0]):,} rows packed into {len(sequences):,} in {seconds:.1f} s, "
            f"{tokens / len(sequences) / CONTEXT:.1%} full; peak {peak_megabytes():.0f} MB"
        )


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def megabytes(file: Path) -> float:
    return file.stat().st_size / 2**20


if __name__ == "__main__":
    main()
