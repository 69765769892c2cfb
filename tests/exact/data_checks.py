"""What must hold exactly of packed rows and of the token store, each as one function that a mutant can fail."""

import hashlib
import json
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from chatpipe.data import encoding, token_store
from chatpipe.data.chat_rows import open_rows, write_rows
from chatpipe.data.chat_template import add_chat_template, encode_conversation
from chatpipe.data.documents import Piece, RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.packing import PackCollator, training_sequences
from chatpipe.data.sources import Report
from chatpipe.data.text_blocks import BlockCollator, TrainingText
from chatpipe.data.token_store import TokenStore, build_token_store
from chatpipe.models.new_model import character_tokenizer, train_tokenizer
from chatpipe.recipe.schema import DataBlock

PACK_TO = 48
EOS = 1

# ---- packed rows do not see each other ----


def model() -> LlamaForCausalLM:
    """In float64, so that equal means equal to 1e-10; with large weights, so that attention matters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        max_position_embeddings=64,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).double().eval()


def loss_alone(of: LlamaForCausalLM, ids: list[int], labels: list[int]) -> torch.Tensor:
    """The summed loss of one row that is read by itself; a token at the row's start is predicted by nothing."""
    logprobs = of(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    learned = [place for place in range(1, len(ids)) if labels[place] >= 0]
    return -sum(logprobs[place - 1, labels[place]] for place in learned)


def write_conversations(folder: Path):
    """Thirty conversations as rows, and what each must come to: its ids and its labels."""
    tokenizer = train_tokenizer(["Mara is a baker. Who is Mara? Tomas has a dog."], 300, PACK_TO)
    add_chat_template(tokenizer)
    chats = [
        [{"role": "user", "content": f"Who is {i}?"}, {"role": "assistant", "content": "Mara." + " She is." * (i % 5)}]
        for i in range(30)
    ]
    write_rows(folder, ((chat, "train") for chat in chats), Report(), tokenizer, PACK_TO, "here")
    expected = []
    for chat in chats:
        ids, learned = encode_conversation(tokenizer, chat)
        expected.append((ids, [token if learn else -100 for token, learn in zip(ids, learned, strict=True)]))
    found = open_rows(folder, "here")
    assert found is not None
    return found[0], expected


@torch.no_grad()
def check_packed_loss(folder: Path) -> None:
    """The loss of the packs is the loss of the rows, each read by itself."""
    rows, expected = write_conversations(folder / "rows")
    sequences = training_sequences(rows, None, PACK_TO)
    assert max(len(sequence["seq_lengths"]) for sequence in sequences) > 1
    batch = PackCollator(0)(list(sequences))
    of = model()
    labels = batch.pop("labels")
    logprobs = of(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)
    targets = labels[:, 1:]
    packed = -logprobs.gather(2, targets.clamp(min=0)[..., None])[..., 0][targets >= 0].sum()
    alone = sum(loss_alone(of, ids, row_labels) for ids, row_labels in expected)
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=0)


def check_packs(folder: Path) -> None:
    """Every row is in one pack, whole and once; no pack has more than `PACK_TO` tokens."""
    rows, expected = write_conversations(folder / "rows")
    found = []
    for sequence in training_sequences(rows, None, PACK_TO):
        assert len(sequence["input_ids"]) == len(sequence["labels"]) == sum(sequence["seq_lengths"]) <= PACK_TO
        ends = np.cumsum(sequence["seq_lengths"])[:-1]
        cells = zip(np.split(sequence["input_ids"], ends), np.split(sequence["labels"], ends), strict=True)
        found += [(ids.tolist(), labels.tolist()) for ids, labels in cells]
    assert sorted(found) == sorted(expected)


@torch.no_grad()
def check_isolated_documents(folder: Path) -> None:
    """Each document in a block has the logits that it has alone; it starts with the end-of-text before it."""
    blocks = [[5, 6, 7, EOS, 8, 9, EOS, 10, 11, 12, 13, EOS], [EOS, EOS, *range(20, 30)]]
    documents = [[[5, 6, 7], [EOS, 8, 9], [EOS, 10, 11, 12, 13], [EOS]], [[EOS], [EOS, *range(20, 30)]]]
    of = model()
    batch = BlockCollator(EOS)([{"input_ids": torch.tensor(block), "labels": torch.tensor(block)} for block in blocks])
    del batch["labels"]
    packed = of(**batch).logits
    for row, parts in enumerate(documents):
        alone = torch.cat([of(torch.tensor([part]), use_cache=False).logits[0] for part in parts])
        torch.testing.assert_close(packed[row], alone, rtol=0, atol=1e-10)


# ---- the token store ----

DOCUMENTS = [f"Document {i}. " + "Mara is a baker – naïve Größe. " * (i % 7) for i in range(200)]


def is_for_training(text: str) -> bool:
    """The definition of the split, written once more: a tenth by SHA-256 is for validation."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >= 0.1 * 2**32


def built(folder: Path, text: RawText | None = None, name: str = "store"):
    """A store of `DOCUMENTS` in shards of some 400 tokens, and the ids that it must hold."""
    tokenizer = train_tokenizer([DOCUMENTS[6]], 300, 64)
    source = folder / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    text = text or RawText(DataBlock(source=str(source)), {}, "k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "BATCH_CHARACTERS", 1500)
        patch.setattr(token_store, "CHECKED_CHARACTERS", 1500)
        store = build_token_store(folder / name, text, Encoder.of(tokenizer), workers=1, shard_tokens=400)
    expected: list[int] = []
    for document in filter(is_for_training, DOCUMENTS):
        expected += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    return store, expected


def check_tokens(folder: Path) -> None:
    """A store holds the ids of every training document in order, each with end-of-text behind it, and no others."""
    store, expected = built(folder)
    assert store.read(0, len(store)).tolist() == expected


def check_reading(folder: Path) -> None:
    """Any window over the shards reads the same as from one array; behind the last token comes the first."""
    build = built(folder)[0]
    store = TokenStore(build._folder)
    shards = sorted(build._folder.glob("shard-*"))
    whole = np.concatenate([np.fromfile(shard, "<u2") for shard in shards]).astype(np.int64)
    assert len(shards) > 5
    assert len(store) == len(whole)
    around = np.concatenate([whole, whole])
    for start in range(0, len(whole), 37):
        assert store.read(start, 90).tolist() == around[start : start + 90].tolist()


def check_epochs(folder: Path) -> None:
    """Each epoch reads every block once; the last one is filled up from the store's beginning."""
    store, expected = built(folder)
    size = 64
    assert len(expected) % size
    around = expected + expected[:size]
    blocks = sorted(around[start : start + size] for start in range(0, len(expected), size))
    text = TrainingText([store], [1.0], size, seed=3, samples=2 * len(blocks))
    epochs = [[text[epoch * len(blocks) + i]["input_ids"].tolist() for i in range(len(blocks))] for epoch in (0, 1)]
    assert text.order.samples_per_epoch == len(blocks)
    assert sorted(epochs[0]) == sorted(epochs[1]) == blocks
    assert epochs[0] != epochs[1]


def check_large_vocabulary(folder: Path) -> None:
    """Ids above 65,535 stay what they are."""
    letters = "".join(map(chr, [*range(0x4E00, 0x9000), *range(0xAC00, 0xD700), *range(0x20000, 0x2A000)]))
    tokenizer = character_tokenizer([letters], 10**6, 64)
    assert len(tokenizer) > 2**16 + 100
    encoded = Encoder.of(tokenizer).encode([Piece(letters[-500:], "train", ends=True)])
    assert encoded.ids.tolist() == [*tokenizer(letters[-500:])["input_ids"], tokenizer.eos_token_id]


class Interrupted(Exception):
    """Ends a build in the middle."""


class BreaksOff(RawText):
    """Text whose reading stops behind 100 pieces."""

    def pieces(self):
        yield from islice(super().pieces(), 100)
        raise Interrupted


def check_resumed_build(folder: Path) -> None:
    """A build that was interrupted goes on to the tokens of one that was not."""
    (folder / "a.jsonl").write_text("")
    with suppress(Interrupted):
        built(folder, BreaksOff(DataBlock(source=str(folder / "a.jsonl")), {}, "k"))
    assert len(list((folder / "store").glob("shard-*.bin"))) > 2
    store, expected = built(folder)
    assert store.read(0, len(store)).tolist() == expected
