"""How quickly the token store is built, against `encode_batch` of `tokenizers` on the same texts.

    python benchmarks/token_store.py FILE [FILE ...] [--megabytes N] [--rounds 3] [--vocabulary 8192]

The text is the documents of the files (txt by blank lines, jsonl by rows), shuffled; with --megabytes repeated to that
size, which favours ours: it remembers the words that it has seen. The two run in turns, on one thread and on as many as
there are cores (ours: in as many processes from 64 MB on). The peer has all texts in memory and keeps its result there;
ours reads a file, checks, hashes and writes to the disk as well. `encode_batch_fast` is the same without offsets.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer

from chatpipe.data.documents import RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.token_store import build_token_store
from chatpipe.models.new_model import train_tokenizer
from chatpipe.recipe.schema import DataBlock

OURS, PEERS = "ours", ("encode_batch", "encode_batch_fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--megabytes", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--measure", choices=[OURS, *PEERS], help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, Path(options.files[0]), options.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(options, Path(folder))
        print(f"{'processes':>9} {'ours':>11}   against (MB/s; ratio of the medians; of each round)")
        for workers in (1, len(os.sched_getaffinity(0))):
            compare(corpus, workers, options.rounds)


def write_corpus(options: argparse.Namespace, folder: Path) -> Path:
    """One jsonl file of the asked size and a tokenizer trained on it, in `folder`."""
    documents = [text for file in options.files for text in documents_of(file)]
    rng, size, corpus = random.Random(0), 0, folder / "corpus.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        while size == 0 or size < options.megabytes * 10**6:
            rng.shuffle(documents)
            for text in documents:
                # A number, so that no document is another's copy, and the split by content is one.
                file.write(json.dumps({"text": f"{text} {rng.random()}"}, ensure_ascii=False) + "\n")
                size += len(text.encode())
    tokenizer = train_tokenizer(documents, options.vocabulary, 1024)
    tokenizer.save_pretrained(folder / "tokenizer")
    mean = size / 10**3 / sum(1 for _ in corpus.open(encoding="utf-8"))
    print(f"{size / 10**6:.0f} MB, {mean:.1f} kB a document, {len(tokenizer):,} entries")
    return corpus


def documents_of(file: str) -> list[str]:
    document = "blank_line" if "shakespeare" in file else "line"
    first = Path(file).read_text(encoding="utf-8").split("\n", 1)[0]
    row = json.loads(first) if file.endswith(".jsonl") else {"text": ""}
    columns = {} if "text" in row else {"text": list(row)}
    text = RawText(DataBlock(source=file, document=document, columns=columns), {}, "files")
    return [piece.text for piece in text.pieces()]


def compare(corpus: Path, workers: int, rounds: int) -> None:
    speeds: dict[str, list[float]] = {who: [] for who in (OURS, *PEERS)}
    for _ in range(rounds):
        for who in speeds:
            command = [sys.executable, __file__, str(corpus), "--measure", who, "--workers", str(workers)]
            environment = {
                **os.environ,
                "RAYON_NUM_THREADS": str(workers),
                "TOKENIZERS_PARALLELISM": str(workers > 1).lower(),
            }
            printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            speeds[who].append(float(printed))
    ours = statistics.median(speeds[OURS])
    print(f"{workers:>9} {ours:>6.2f} MB/s", end="")
    for peer in PEERS:
        theirs = statistics.median(speeds[peer])
        each = " ".join(f"{mine / its:.2f}" for mine, its in zip(speeds[OURS], speeds[peer], strict=True))
        print(f"   {peer} {theirs:.2f}; {ours / theirs:.2f}; {each}", end="")
    print(flush=True)


def measure(who: str, corpus: Path, workers: int) -> None:
    """Prints megabytes of text a second; what is measured begins when the text is on the disk (ours) or in memory."""
    backend = Tokenizer.from_file(str(corpus.parent / "tokenizer" / "tokenizer.json"))
    text = RawText(DataBlock(source=str(corpus)), {}, "corpus")
    if who == OURS:
        encoder = Encoder(backend.to_str(), backend.token_to_id("<|endoftext|>"), "<u2", by_words=True)
        folder = Path(tempfile.mkdtemp(dir=corpus.parent))
        start = time.perf_counter()
        size = build_token_store(folder / "store", text, encoder, workers).num_bytes
        seconds = time.perf_counter() - start
        shutil.rmtree(folder)
    else:
        texts = [piece.text for piece in text.pieces() if piece.split == "train"]
        size = sum(len(one.encode()) for one in texts)
        start = time.perf_counter()
        getattr(backend, who)(texts, add_special_tokens=False)
        seconds = time.perf_counter() - start
    print(size / 10**6 / seconds)


if __name__ == "__main__":
    main()
