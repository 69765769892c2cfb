import os
import signal
import subprocess
import sys
from contextlib import closing
from functools import cache
from itertools import count

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chatpipe.data import encoding
from chatpipe.data.documents import Piece
from chatpipe.data.encoding import Encoder, cuts_cleanly, encode_stream
from chatpipe.models.new_model import character_tokenizer, train_tokenizer

TEXT = "Mara is a baker.\nShe lives near the mill; he doesn't.\n\nTomas has 12 dogs.\n" * 8
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer([TEXT], 400, 64)


def document(text: str) -> Piece:
    return Piece(text, "train", ends=True)


def ids_of(encoder: Encoder, *pieces: Piece) -> list[int]:
    return encoder.encode(pieces).ids.tolist()


def test_a_document_ends_with_end_of_text_and_a_piece_of_one_does_not(bpe):
    encoder = Encoder.of(bpe)
    encoded = encoder.encode([Piece("Mara is", "train", False), Piece(" a bäker.", "train", True), document("x")])
    assert bpe.decode(encoded.ids) == "Mara is a bäker.<|endoftext|>x<|endoftext|>"
    assert (encoded.pieces, encoded.documents, encoded.num_bytes) == (3, 2, len("Mara is a bäker.x".encode()))


def test_a_special_token_in_a_text_is_plain_text(bpe):
    ids = ids_of(Encoder.of(bpe), document("a<|endoftext|>b<|assistant|>"))
    assert ids.count(bpe.eos_token_id) == 1
    assert not set(ids[:-1]) & set(bpe.all_special_ids)
    assert bpe.decode(ids[:-1]) == "a<|endoftext|>b<|assistant|>"


@given(st.text("aé1 \n\t.'中<", max_size=200))
@settings(deadline=None)
def test_cutting_long_texts_changes_no_token(text):
    encoder = Encoder.of(bpe_of_all())
    whole = bpe_of_all()(text, add_special_tokens=False)["input_ids"]
    assert ids_of(encoder, document(text)) == [*whole, encoder.eos_token_id]


@given(st.text("aé1 \n\t.'中<", max_size=200))
@settings(deadline=None)
def test_nor_with_the_words_of_other_tokenizers(text):
    for pattern in (LLAMA_3, QWEN_2):
        tokenizer = bpe_of_all(pattern)
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert cuts_cleanly(tokenizer.backend_tokenizer)
        assert ids_of(Encoder.of(tokenizer), document(text)) == [*whole, tokenizer.eos_token_id]


@cache
def bpe_of_all(pattern: str | None = None):
    """A tokenizer that has merged about everything it may within the words of a pattern, of GPT-2's by default."""
    texts = ["aé1 \n.'中< aa 11\n\n .é '1\t\n.\n\na" * 9, TEXT]
    if pattern is None:
        return train_tokenizer(texts, 700, 64)
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


def test_words_that_were_forgotten_are_encoded_again(bpe, monkeypatch):
    monkeypatch.setattr(encoding, "MAX_KNOWN_WORDS", 3)
    monkeypatch.setattr(encoding, "MAX_KNOWN_LENGTH", 4)
    encoder, whole = Encoder.of(bpe), bpe(TEXT, add_special_tokens=False)["input_ids"]
    for _ in range(3):
        assert ids_of(encoder, document(TEXT)) == [*whole, encoder.eos_token_id]


def backend(pre_tokenizer=None, normalizer=None, merges=()) -> Tokenizer:
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, list(merges)))
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    return made


def test_which_tokenizers_may_have_their_texts_cut(bpe):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    llama_3 = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), to_bytes])
    assert cuts_cleanly(bpe.backend_tokenizer)
    assert cuts_cleanly(backend(byte_level, normalizers.NFC()))
    assert cuts_cleanly(backend(llama_3))
    assert cuts_cleanly(character_tokenizer(["ab"], 300, 64).backend_tokenizer)
    assert cuts_cleanly(backend(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_2), "isolated"), to_bytes])))
    assert not cuts_cleanly(backend(pre_tokenizers.Metaspace()))
    assert not cuts_cleanly(backend(pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "merged_with_previous")])))
    assert not cuts_cleanly(backend(pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert not cuts_cleanly(backend(byte_level, normalizers.Prepend("_")))
    spaced = backend(byte_level)
    spaced.add_tokens(["good morning"])
    assert not cuts_cleanly(spaced)
    assert not cuts_cleanly(backend(merges=[("a", "b")]))  # a word of any length: merges may cross every cut


def test_a_tokenizer_whose_texts_cannot_be_cut_reads_them_whole():
    made = PreTrainedTokenizerFast(tokenizer_object=backend(merges=[("a", "b")]), eos_token="<eos>")
    assert ids_of(Encoder.of(made), document("ab" * 50)) == [2] * 50 + [made.eos_token_id]


@pytest.mark.parametrize(
    ("token", "cuts"),
    [
        (AddedToken("b", normalized=False), True),
        (AddedToken(" b", normalized=False), True),
        (AddedToken(".b", lstrip=True, normalized=False), True),
        (AddedToken("b", single_word=True, normalized=False), True),
        (AddedToken("\nb", normalized=False), False),
        (AddedToken("b", lstrip=True, normalized=False), False),
        (AddedToken(" b", single_word=True, normalized=False), False),
        (AddedToken("\n", single_word=True, normalized=False), False),
    ],
)
def test_added_tokens_are_found_as_in_the_whole_text(token, cuts):
    """Texts are cut up only where no added token can lie across a cut, or be found because of one."""
    made = train_tokenizer([TEXT], 400, 64)
    made.add_tokens([token])
    assert cuts_cleanly(made.backend_tokenizer) == cuts
    text = "x\nb .b x b\n\nb \nb.\nx"
    assert ids_of(Encoder.of(made), document(text)) == [*made(text, add_special_tokens=False)["input_ids"], 1]


def test_large_vocabularies_take_four_bytes_a_token():
    large = train_tokenizer(["a few words"], 300, 64)
    assert Encoder.of(large).dtype == "<u2"
    large.add_tokens([f"token{i}" for i in range(2**16)])
    ids = Encoder.of(large).encode([document("token65535 token0")]).ids
    assert ids.dtype == np.dtype("<u4")
    assert large.decode(ids) == "token65535 token0<|endoftext|>"


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1000)


def test_several_processes_give_what_one_gives_in_the_same_order(bpe, small_batches):
    pieces = [document(f"{i} {TEXT}") for i in range(40)]
    encoder = Encoder.of(bpe)
    one, two = ([batch.ids.tolist() for batch in encode_stream(encoder, pieces, workers)] for workers in (1, 2))
    assert one == two
    assert sum(one, []) == ids_of(encoder, *pieces)


def test_no_more_text_is_taken_than_is_on_its_way(bpe, small_batches):
    taken = count()

    def pieces():
        while True:
            next(taken)
            yield document(TEXT)

    with closing(encode_stream(Encoder.of(bpe), pieces(), workers=2)) as stream:
        for _ in range(10):
            next(stream)
    pieces_a_batch = -(-1000 // len(TEXT))
    assert next(taken) <= (10 + 2 * 2 + 3) * pieces_a_batch


def test_processes_start_only_behind_what_is_encoded_before_them(bpe, small_batches):
    def processes() -> set[psutil.Process]:
        return set(psutil.Process().children())

    pieces, before = [document(TEXT)] * 20, processes()
    with closing(encode_stream(Encoder.of(bpe), pieces, workers=2, before_workers=3)) as stream:
        for _ in range(3):
            next(stream)
            assert not processes() - before
        next(stream)
        assert processes() - before


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(
        "from itertools import repeat\n"
        "from chatpipe.data.documents import Piece\n"
        "from chatpipe.data.encoding import Encoder, encode_stream\n"
        "from chatpipe.models.new_model import train_tokenizer\n"
        "if __name__ == '__main__':\n"
        "    encoder = Encoder.of(train_tokenizer([], 300, 64))\n"
        "    for number, _ in enumerate(encode_stream(encoder, repeat(Piece('word ' * 60_000, 'train', True)), 2)):\n"
        "        print(number, flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    for line in parent.stdout:
        if int(line) == 3:
            break
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, still_there = psutil.wait_procs(workers, timeout=30)
    assert not still_there


def test_a_worker_loads_no_torch():
    code = "import sys, chatpipe.data.encoding; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
