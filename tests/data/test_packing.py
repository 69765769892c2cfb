"""What a trainer reads: which tokens in which order, and documents that do not see each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from chatpipe.data.documents import RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.text_blocks import BlockCollator, TrainingText, ValidationText, document_positions
from chatpipe.data.token_store import TokenStore, build_token_store
from chatpipe.evaluation.text import text_loss
from chatpipe.recipe.schema import DataBlock

EOS, VOCABULARY = 1, 40


@pytest.fixture
def stores(tmp_path, write, base_tokenizer) -> list[TokenStore]:
    found = []
    for name, count in (("a", 120), ("b", 40)):
        source = write(f"{name}.jsonl", [{"text": f"{name}{i} " + "Mara bakes. " * (i % 5)} for i in range(count)])
        text = RawText(DataBlock(source=source), {}, "k")
        found.append(build_token_store(tmp_path / name, text, Encoder.of(base_tokenizer), workers=1))
    return found


def ids_of(text: TrainingText) -> list[list[int]]:
    return [text[sample]["input_ids"].tolist() for sample in range(len(text))]


# ---- blocks ----


@pytest.mark.parametrize("block_size", [1, 7, 64, 5000])
def test_an_epoch_leaves_out_no_token(stores, block_size):
    store = stores[0]
    text = TrainingText([store], [1.0], block_size, seed=0)
    tokens = store.read(0, len(store)).tolist()
    blocks = [tokens[start : start + block_size] for start in range(0, len(tokens), block_size)]
    around = tokens * (block_size // len(tokens) + 2)
    blocks[-1] = (blocks[-1] + around)[:block_size]
    assert sorted(ids_of(text)) == sorted(blocks)


def test_a_block_is_its_own_label_since_the_model_shifts(stores):
    block = TrainingText(stores, [1.0, 1.0], 16, seed=0)[5]
    assert block["input_ids"].dtype == torch.int64
    assert torch.equal(block["input_ids"], block["labels"])
    batch = BlockCollator()([block, block])
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].shape == (2, 16)


def test_a_run_continues_into_the_next_epochs(stores):
    text = TrainingText(stores, [1.0, 0.5], 32, seed=0, samples=500)
    assert len(text) == 500
    epoch = text.order.samples_per_epoch
    assert epoch < 250
    assert ids_of(text)[:epoch] != ids_of(text)[epoch : 2 * epoch]
    assert ids_of(text) == ids_of(TrainingText(stores, [1.0, 0.5], 32, seed=0, samples=500))


# ---- the same samples on any number of processes, and from any step on ----


def samples_of_steps(ranks: int, micro_batch: int, batch_size: int, steps: range) -> list[list[int]]:
    """Sample numbers of each optimizer step, as accelerate hands them out: micro-batches go round the ranks."""
    micro_batches = list(BatchSampler(SequentialSampler(range(12 * batch_size)), micro_batch, drop_last=False))
    accumulation = batch_size // ranks // micro_batch
    taken = []
    for step in steps:
        of_ranks = [
            micro_batches[rank::ranks][step * accumulation : (step + 1) * accumulation] for rank in range(ranks)
        ]
        taken.append(sorted(number for of_rank in of_ranks for micro in of_rank for number in micro))
    return taken


def test_a_step_reads_the_same_samples_on_1_2_and_4_processes_and_after_a_resume_on_others():
    expected = [list(range(step * 16, (step + 1) * 16)) for step in range(12)]
    for ranks, micro_batch in ((1, 16), (1, 4), (2, 8), (2, 2), (4, 4), (4, 1)):
        assert samples_of_steps(ranks, micro_batch, 16, range(12)) == expected
        assert samples_of_steps(ranks, micro_batch, 16, range(7, 12)) == expected[7:]


# ---- documents that do not see each other ----


def tiny(name: str, attention: str):
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "attn_implementation": attention}
    if name == "gpt2":
        config = GPT2Config(**shape, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        return GPT2LMHeadModel(config).eval()
    shape |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8)).eval()


MODELS = [(name, attention) for name in ("gpt2", "llama", "qwen3") for attention in ("eager", "sdpa")]
PACKED = [
    [5, 6, 7, EOS, 8, 9, EOS, 10, 11, 12, 13, EOS],
    [EOS, EOS, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29],  # an empty document, and one that continues in another block
]
# A document begins with the end-of-text token before it.
SEPARATE = [[[5, 6, 7], [EOS, 8, 9], [EOS, 10, 11, 12, 13], [EOS]], [[EOS], [EOS, *range(20, 30)]]]


def batch_of(rows: list[list[int]], isolate_at: int | None) -> dict:
    return BlockCollator(isolate_at)([{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in rows])


@pytest.mark.parametrize(("name", "attention"), MODELS)
@torch.no_grad()
def test_isolated_documents_have_the_logits_that_they_have_alone(name, attention):
    model = tiny(name, attention)
    packed = model(**batch_of(PACKED, EOS)).logits
    assert batch_of(PACKED, None).keys() == {"input_ids", "labels"}
    together = model(**batch_of(PACKED, None)).logits
    for row, documents in enumerate(SEPARATE):
        alone = torch.cat([model(torch.tensor([document]), use_cache=False).logits[0] for document in documents])
        torch.testing.assert_close(packed[row], alone, atol=1e-5, rtol=0)
        assert (together[row] - alone).abs().max() > 1e-3  # concatenated ones do see each other


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_the_loss_of_isolated_documents_has_every_token_each_from_its_own_document(name):
    model = tiny(name, "eager")
    loss = model(**batch_of(PACKED[:1], EOS)).loss
    nats = []
    for document, following in zip(SEPARATE[0], [*SEPARATE[0][1:], None], strict=True):
        targets = [*document[1:], *([following[0]] if following else [])]
        logprobs = model(torch.tensor([document]), use_cache=False).logits[0].log_softmax(-1)
        nats += [-logprobs[place, target] for place, target in enumerate(targets)]
    assert len(nats) == len(PACKED[0]) - 1
    torch.testing.assert_close(loss, torch.stack(nats).mean(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_validation_text_is_evaluated_as_training_reads_it():
    model = tiny("gpt2", "eager")
    tokens = torch.tensor(PACKED[0])
    isolated = ValidationText(tokens.numpy(), num_bytes=20, block_size=12, isolate_at=EOS)
    # From the end of the text before on: EOS, then all tokens but the last, which ends the text.
    documents = [[EOS, 5, 6, 7], [EOS, 8, 9], [EOS, 10, 11, 12, 13]]
    nats = 0.0
    for document in documents:
        logprobs = model(torch.tensor([document]), use_cache=False).logits[0].log_softmax(-1)
        nats -= sum(logprobs[i, target].item() for i, target in enumerate([*document[1:], EOS]))
    assert text_loss(model, isolated).nats_per_token == pytest.approx(nats / 12, abs=1e-5)
    together = ValidationText(tokens.numpy(), num_bytes=20, block_size=12)
    assert text_loss(model, together).nats_per_token != pytest.approx(nats / 12, abs=1e-4)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=4))
def test_positions_count_from_each_end_of_text_on(rows):
    expected = []
    for row in rows:
        places: list[int] = []
        for token in row:
            places.append(0 if token == EOS or not places else places[-1] + 1)
        expected.append(places)
    assert document_positions(torch.tensor(rows), EOS).tolist() == expected
