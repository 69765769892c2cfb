import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chatpipe.data import encoding, text_files, token_store
from chatpipe.data.documents import RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.token_store import TokenStore, build_token_store, find_token_store, store_fingerprint
from chatpipe.data.worlds import Worlds
from chatpipe.errors import Interrupted, UsageError
from chatpipe.models.new_model import train_tokenizer
from chatpipe.recipe.schema import DataBlock, Recipe

DOCUMENTS = [f"Document {i}. " + "Mara is a baker – naïve Größe. " * (i % 7) for i in range(300)]


@pytest.fixture
def encoder(base_tokenizer) -> Encoder:
    return Encoder.of(base_tokenizer)


@pytest.fixture
def source(write) -> str:
    return write("a.jsonl", [{"text": text} for text in DOCUMENTS])


def raw(source: str, **more: object) -> RawText:
    return RawText(DataBlock(source=source, **more), {}, "pretrain.data")


def tokens_of(store: TokenStore) -> list[int]:
    return store.read(0, len(store)).tolist()


def shards_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1500)
    monkeypatch.setattr(token_store, "SMALL_BATCHES", 2)
    monkeypatch.setattr(token_store, "CHECKED_CHARACTERS", 1500)


# ---- its content ----


def test_every_document_is_there_with_an_end_behind_it(tmp_path, encoder, source, base_tokenizer):
    store = build_token_store(tmp_path / "store", raw(source), encoder)
    train = [piece.text for piece in raw(source).pieces() if piece.split == "train"]
    assert base_tokenizer.decode(tokens_of(store)) == "".join(f"{text}<|endoftext|>" for text in train)
    assert store.documents == len(train) == tokens_of(store).count(base_tokenizer.eos_token_id)
    assert store.num_bytes == sum(len(text.encode()) for text in train)
    assert len(DOCUMENTS) * 0.85 < len(train) < len(DOCUMENTS)


def test_shards_and_processes_change_nothing(tmp_path, encoder, source):
    one = build_token_store(tmp_path / "one", raw(source), encoder, workers=1)
    many = build_token_store(tmp_path / "many", raw(source), encoder, workers=2, shard_tokens=400)
    assert len(shards_of(tmp_path / "one")) == 1
    assert len(shards_of(tmp_path / "many")) > 5
    assert tokens_of(one) == tokens_of(many)
    assert (one.num_bytes, one.documents) == (many.num_bytes, many.documents)


def test_tokens_are_read_over_the_edges_of_shards_and_begin_again_behind_the_last(tmp_path, encoder, source):
    store = build_token_store(tmp_path / "store", raw(source), encoder, shard_tokens=400)
    tokens = tokens_of(store)
    for start, count in ((0, 7), (390, 900), (len(tokens) - 5, 5), (1, len(tokens) - 1)):
        assert store.read(start, count).tolist() == tokens[start : start + count]
    assert store.read(len(tokens) - 3, 8).tolist() == tokens[-3:] + tokens[:5]
    assert store.read(0, 2 * len(tokens) + 1).tolist() == tokens * 2 + tokens[:1]
    assert store.read(0, 3).dtype == np.int64


def test_a_long_document_is_whole_with_one_end(tmp_path, encoder, write, monkeypatch, base_tokenizer):
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 500)
    text = "".join(f"Line {i} of a long book.\n" for i in range(900))
    store = build_token_store(tmp_path / "store", raw(write("a.txt", text)), encoder, shard_tokens=1000)
    decoded = base_tokenizer.decode(tokens_of(store))
    assert decoded.endswith("<|endoftext|>")
    assert text.startswith(decoded.removesuffix("<|endoftext|>"))
    assert tokens_of(store) == base_tokenizer(decoded)["input_ids"]


def test_what_was_left_out_is_in_the_store(tmp_path, encoder, write):
    rows = [json.dumps({"text": text}) for text in DOCUMENTS]
    store = build_token_store(tmp_path / "store", raw(write("b.jsonl", "\n".join([*rows, "oops"]))), encoder)
    assert store.skipped == {"this line is not JSON": 1}


# ---- built once, and on from where it broke off ----


class Stopped(Exception):
    """What ends a build in the middle."""


class BreaksOff(RawText):
    """Text whose reading stops behind some pieces."""

    def __init__(self, block: DataBlock, worlds: Worlds, key: str, how: type[BaseException] = Stopped) -> None:
        super().__init__(block, worlds, key)
        self.how = how

    def pieces(self):
        yield from islice(super().pieces(), 150)
        raise self.how


def test_a_store_is_built_once(tmp_path, encoder, source):
    folder = tmp_path / "store"
    first = tokens_of(build_token_store(folder, raw(source), encoder))
    text = BreaksOff(DataBlock(source=source), {}, "pretrain.data")
    assert tokens_of(build_token_store(folder, text, encoder)) == first


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_build_continues_behind_its_last_shard(tmp_path, encoder, source, workers):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    build_token_store(whole, raw(source), encoder, workers, shard_tokens=400)
    text = BreaksOff(DataBlock(source=source), {}, "pretrain.data")
    with pytest.raises(Stopped):
        build_token_store(broken, text, encoder, workers, shard_tokens=400)
    (broken / "shard-00099.bin.partial").write_bytes(b"torn")
    kept = json.loads((broken / "manifest.json").read_text())["files"]
    assert 2 < len(kept) < len(shards_of(whole))
    before = {name: (broken / name).stat().st_mtime_ns for name in kept}
    build_token_store(broken, raw(source), encoder, workers, shard_tokens=400)
    assert {name: (broken / name).stat().st_mtime_ns for name in kept} == before
    assert (broken / "manifest.json").read_text() == (whole / "manifest.json").read_text()
    for name, data in shards_of(whole).items():
        assert (broken / name).read_bytes() == data


def test_ctrl_c_names_what_is_kept(tmp_path, encoder, source):
    text = BreaksOff(DataBlock(source=source), {}, "pretrain.data", KeyboardInterrupt)
    with pytest.raises(Interrupted, match="finished shards are kept") as caught:
        build_token_store(tmp_path / "store", text, encoder, shard_tokens=400)
    kept = json.loads((tmp_path / "store" / "manifest.json").read_text())["files"]
    assert f"{len(kept)} finished shards" in caught.value.message


def test_a_build_that_is_killed_continues_and_ends_as_one_that_was_not(tmp_path, encoder, source):
    script = (
        "import sys, os, signal\n"
        "from chatpipe.data import encoding, token_store\n"
        "from chatpipe.data.documents import RawText\n"
        "from chatpipe.recipe.schema import DataBlock\n"
        "encoding.BATCH_CHARACTERS = token_store.CHECKED_CHARACTERS = 1500\n"
        "finish = token_store._ShardWriter.finish\n"
        "def killed(self, manifest):\n"
        "    if len(manifest.files) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    finish(self, manifest)\n"
        "token_store._ShardWriter.finish = killed\n"
        "text = RawText(DataBlock(source=sys.argv[1]), {}, 'pretrain.data')\n"
        "encoder = encoding.Encoder(*eval(sys.stdin.read()))\n"
        "from pathlib import Path\n"
        "token_store.build_token_store(Path(sys.argv[2]), text, encoder, workers=1, shard_tokens=400)\n"
    )
    folder = tmp_path / "store"
    told = repr((encoder.tokenizer, encoder.eos_token_id, encoder.dtype, encoder.by_words))
    done = subprocess.run([sys.executable, "-c", script, source, folder], input=told, text=True, check=False)
    assert done.returncode == -9
    store = build_token_store(folder, raw(source), encoder, shard_tokens=400)
    assert tokens_of(store) == tokens_of(build_token_store(tmp_path / "whole", raw(source), encoder))


def test_other_text_settings_or_tokenizers_are_tokenised_again(tmp_path, encoder, source, write):
    folder = tmp_path / "store"
    first = tokens_of(build_token_store(folder, raw(source), encoder))
    assert len(build_token_store(folder, raw(source, limit=20), encoder)) < len(first) / 4
    other = train_tokenizer(["Mara is a baker. " * 9], 290, 64)
    assert other.decode(tokens_of(build_token_store(folder, raw(source), Encoder.of(other)))).startswith("Document ")
    write("a.jsonl", [{"text": "One more."}, *({"text": text} for text in DOCUMENTS)])
    changed = tokens_of(build_token_store(folder, raw(source), encoder))
    assert changed != first
    assert len(changed) > len(first)


def test_a_store_of_the_same_text_is_found_among_others_when_it_is_complete(tmp_path, encoder, source):
    folders = [tmp_path / name for name in ("other", "broken", "same")]
    assert find_token_store(folders, raw(source), encoder) is None
    build_token_store(folders[0], raw(source, limit=20), encoder)
    text = BreaksOff(DataBlock(source=source), {}, "pretrain.data")
    with pytest.raises(Stopped):
        build_token_store(folders[1], text, encoder, shard_tokens=400)
    assert find_token_store(folders, raw(source), encoder) is None
    built = build_token_store(folders[2], raw(source), encoder)
    found = find_token_store(folders, raw(source), encoder)
    assert found is not None
    assert tokens_of(found) == tokens_of(built)


def test_what_changes_no_token_is_no_other_store(encoder, source):
    assert store_fingerprint(raw(source), encoder) == store_fingerprint(raw(source, weight=2.0), encoder)
    one, two = (
        RawText(DataBlock(source="pocketworld"), Recipe(pocketworld={"seed": seed}).worlds, "k") for seed in (0, 1)
    )
    assert store_fingerprint(one, encoder) != store_fingerprint(two, encoder)


def of_whole_names() -> PreTrainedTokenizerFast:
    """A tokenizer with a space inside one word, `New York`: trying pairs of characters cannot find it."""
    made = Tokenizer(models.BPE())
    pattern = pre_tokenizers.Split(Regex(r"New York| ?\w+|\s+(?=\s)|\s+|[^\s\w]+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([pattern, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["New York. " * 50], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


@pytest.mark.parametrize("named", [True, False])
def test_the_text_itself_shows_whether_looking_up_words_changes_an_id(tmp_path, write, capsys, named):
    tokenizer = of_whole_names()
    texts = [f"{'New York' if named else 'York'} is far away. It was day {i}." for i in range(100)]
    source = write("names.jsonl", [{"text": text} for text in texts])
    encoder = Encoder.of(tokenizer)
    assert encoder.by_words
    store = build_token_store(tmp_path / "store", raw(source), encoder)
    assert ("needs whole texts" in capsys.readouterr().err) is named
    expected: list[int] = []
    for piece in raw(source).pieces():
        if piece.split == "train":
            expected += [*tokenizer(piece.text)["input_ids"], tokenizer.eos_token_id]
    assert tokens_of(store) == expected


# ---- damage ----


def refusal(folder, source: str, encoder: Encoder) -> str:
    with pytest.raises(UsageError) as caught:
        build_token_store(folder, raw(source), encoder, shard_tokens=400)
    assert caught.value.message.startswith(f"The token store {folder} was changed after it was built: ")
    assert caught.value.hint == f"Delete {folder}: the same command then builds it again."
    return caught.value.message


@pytest.mark.parametrize("complete", [True, False])
def test_a_store_whose_files_were_changed_is_refused(tmp_path, encoder, source, complete):
    folder = tmp_path / "store"
    text = (RawText if complete else BreaksOff)(DataBlock(source=source), {}, "pretrain.data")
    with contextlib.suppress(Stopped):
        build_token_store(folder, text, encoder, shard_tokens=400)
    shard, data = folder / "shard-00001.bin", (folder / "shard-00001.bin").read_bytes()
    shard.write_bytes(data[:7] + bytes([data[7] ^ 1]) + data[8:])
    assert "shard-00001.bin is damaged" in refusal(folder, source, encoder)
    shard.write_bytes(data[:-2])
    assert f"has {len(data) - 2} bytes instead of {len(data)}" in refusal(folder, source, encoder)
    shard.unlink()
    assert "shard-00001.bin is missing" in refusal(folder, source, encoder)
    (folder / "manifest.json").write_text('{"fingerprint": "')
    assert "manifest.json cannot be read" in refusal(folder, source, encoder)


def test_a_full_disk_is_reported_and_finished_shards_are_kept(tmp_path, encoder, source):
    folder, whole = tmp_path / "store", tmp_path / "whole"
    build_token_store(whole, raw(source), encoder, shard_tokens=400)
    size = max(map(len, shards_of(whole).values()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size, before[1]))  # a file may grow no further, as on a full disk
    try:
        with pytest.raises(UsageError) as caught:
            build_token_store(folder, raw(source), encoder, shard_tokens=10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.message == f"The token store {folder} cannot be written: {os.strerror(errno.EFBIG)}."
    assert "finished shards are kept" in caught.value.hint
    store = build_token_store(folder, raw(source), encoder, shard_tokens=400)
    assert tokens_of(store) == tokens_of(TokenStore(whole))


# ---- memory ----

MEASURED = """
import re, sys
from pathlib import Path
from chatpipe.data.documents import RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.token_store import build_token_store
from chatpipe.models.new_model import character_tokenizer
from chatpipe.recipe.schema import DataBlock, Recipe

encoder = Encoder.of(character_tokenizer(["a bcdefghijklmnopqrstuvwxyz"], 100, 64))
for source in sys.argv[2:]:
    text = RawText(DataBlock(source=source), {}, "k")
    store = build_token_store(Path(sys.argv[1], Path(source).name), text, encoder, workers=1)
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    print(int(peak) / 2**10, store.num_bytes / 2**20)
"""


def test_memory_does_not_grow_with_the_text(tmp_path):
    row = json.dumps({"text": "words of a document " * 200}) + "\n"
    line = "words of a long book\n"
    sizes = {"small.jsonl": (row, 4), "small.txt": (line, 4), "large.jsonl": (row, 20), "large.txt": (line, 20)}
    for name, (line, megabytes) in sizes.items():
        (tmp_path / name).write_text(line * (megabytes * 2**20 // len(line)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "stores", *(tmp_path / name for name in sizes)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    _, (small, _), (rows, megabytes), (book, _) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert megabytes > 18
    assert rows - small < 12
    assert book - small < 12
