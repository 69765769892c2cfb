import json

import numpy as np
import pytest
import torch

from chatpipe.data.token_store import TokenStore, build_token_store
from chatpipe.models.tokenizer import train_tokenizer

DOCUMENTS = ["Mara is a baker.", "Tomas has a dog called Rex.", "Größe zählt – naïve.", "x"]


@pytest.fixture
def store(tmp_path, base_tokenizer) -> TokenStore:
    return build_token_store(tmp_path / "train.bin", DOCUMENTS, base_tokenizer, 8)


def tokens_of(store: TokenStore) -> list[int]:
    return np.asarray(store.tokens).tolist()


def test_every_document_is_there_with_an_end_behind_it(store, base_tokenizer):
    assert base_tokenizer.decode(tokens_of(store)) == "".join(f"{text}<|endoftext|>" for text in DOCUMENTS)
    assert tokens_of(store).count(base_tokenizer.eos_token_id) == len(DOCUMENTS)


def test_bytes_are_those_of_the_text_in_utf8(store):
    assert store.num_bytes == sum(len(text.encode("utf-8")) for text in DOCUMENTS)


@pytest.mark.parametrize("block_size", [1, 7, 8, 16, 1000])
def test_blocks_leave_out_no_token(tmp_path, base_tokenizer, block_size):
    store = build_token_store(tmp_path / "train.bin", DOCUMENTS, base_tokenizer, block_size)
    tokens, size = tokens_of(store), store.block_size
    blocks = [store[i] for i in range(len(store))]
    assert all(len(block["input_ids"]) == size for block in blocks)
    assert sum((block["input_ids"].tolist() for block in blocks[:-1]), []) == tokens[: size * (len(blocks) - 1)]
    assert blocks[-1]["input_ids"].tolist() == tokens[-size:]
    assert (len(blocks) - 1) * size < len(tokens) <= len(blocks) * size


def test_a_block_is_its_own_label_since_the_model_shifts(store):
    block = store[1]
    assert block["input_ids"].dtype == torch.int64
    assert torch.equal(block["input_ids"], block["labels"])


def test_a_stored_text_is_not_tokenised_again(tmp_path, base_tokenizer, store):
    path = tmp_path / "train.bin"
    path.write_bytes(path.read_bytes()[::-1])  # a mark that building anew would wipe out
    again = build_token_store(path, DOCUMENTS, base_tokenizer, 8)
    assert tokens_of(again) != tokens_of(build_token_store(tmp_path / "other.bin", DOCUMENTS, base_tokenizer, 8))


def test_changed_documents_or_another_tokenizer_are_tokenised_anew(tmp_path, base_tokenizer, store):
    path = tmp_path / "train.bin"
    changed = [*DOCUMENTS, "One more."]
    assert len(build_token_store(path, changed, base_tokenizer, 8).tokens) > len(store.tokens)
    other = train_tokenizer(["Mara is a baker. " * 9], 290, 64)
    assert other.decode(tokens_of(build_token_store(path, changed, other, 8))).startswith(
        "Mara is a baker.<|endoftext|>"
    )


def test_moving_the_border_between_documents_is_a_change(tmp_path, base_tokenizer):
    path = tmp_path / "train.bin"
    first = tokens_of(build_token_store(path, ["ab", "c"], base_tokenizer, 8))
    assert tokens_of(build_token_store(path, ["a", "bc"], base_tokenizer, 8)) != first


class Interrupted(list):
    """Documents that can be read once for the fingerprint, but not all of them for tokenising."""

    def __getitem__(self, index):
        if index.start > 0:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_a_store_that_was_interrupted_is_built_anew(tmp_path, base_tokenizer, store):
    path, before = tmp_path / "train.bin", tokens_of(store)
    with pytest.raises(KeyboardInterrupt):
        build_token_store(path, Interrupted(["something else"] * 1001), base_tokenizer, 8)
    assert tokens_of(build_token_store(path, DOCUMENTS, base_tokenizer, 8)) == before


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path, store):
    assert store.tokens.dtype == np.uint16
    large = train_tokenizer(["a few words"], 300, 64)
    large.add_tokens([f"token{i}" for i in range(2**16)])
    wide = build_token_store(tmp_path / "wide.bin", ["token65535 token0"], large, 8)
    assert wide.tokens.dtype == np.uint32
    assert large.decode(tokens_of(wide)) == "token65535 token0<|endoftext|>"
    assert json.loads((tmp_path / "wide.json").read_text())["dtype"] == "uint32"
