import math

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from chatpipe.data.encoding import Encoder
from chatpipe.data.text_blocks import ValidationText
from chatpipe.errors import UsageError
from chatpipe.evaluation.chat import chat_loss, evaluate_chat, question_gain, swap_answers
from chatpipe.evaluation.text import evaluate_text, text_loss
from chatpipe.generation import SamplingParams

EOS = 1


@pytest.fixture
def store(texts, tokenizer):
    return ValidationText.of(texts, Encoder.of(tokenizer), block_size=7)


def test_uniform_model_needs_log_vocabulary_nats_for_every_token(store, texts, model, tokenizer):
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    score = text_loss(model, store)
    assert len(store.tokens) % store.block_size != 0  # the remainder counts too
    assert score.nats_per_token == pytest.approx(math.log(model.config.vocab_size))
    assert evaluate_text(model, tokenizer, store)["perplexity"] == pytest.approx(model.config.vocab_size, rel=1e-5)
    text_bytes = sum(len(text.encode()) for text in texts)
    assert score.bits_per_byte == pytest.approx(len(store.tokens) * math.log2(model.config.vocab_size) / text_bytes)


def test_tokens_without_text_cost_no_bits(store, texts, model, tokenizer):
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    score = text_loss(model, store, special_ids=tokenizer.all_special_ids)
    of_text = len(store.tokens) - len(texts)  # without an end-of-text token behind each document
    text_bytes = sum(len(text.encode()) for text in texts)
    assert score.bits_per_byte == pytest.approx(of_text * math.log2(model.config.vocab_size) / text_bytes)
    assert score.nats_per_token == pytest.approx(math.log(model.config.vocab_size))


def test_each_token_is_predicted_once_from_those_before_it_in_its_block(store, model, monkeypatch):
    model.eval()
    tokens = [int(token) for token in store.tokens]
    inputs = [tokens[-1], *tokens[:-1]]
    nats = 0.0
    for start in range(0, len(tokens), store.block_size):
        logits = model(torch.tensor([inputs[start : start + store.block_size]])).logits[0]
        nats += F.cross_entropy(logits, torch.tensor(tokens[start : start + store.block_size]), reduction="sum").item()
    for rows in (1, 3, 100):
        monkeypatch.setattr("chatpipe.evaluation.text.rows_at_once", lambda *_, rows=rows: rows)
        assert text_loss(model, store).nats_per_token == pytest.approx(nats / len(tokens), abs=1e-5)


def test_dropout_is_off_while_measuring_and_on_again_afterwards(store, model):
    model.train()
    assert text_loss(model, store) == text_loss(model, store)
    assert model.training


ROWS = [
    ([5, 6, 7, 8, EOS], [0, 0, 0, 1, 1]),
    ([5, 9, EOS], [0, 1, 1]),
    ([5, 9, EOS, 6, 7, 10, EOS], [0, 1, 1, 0, 0, 1, 1]),
]


def test_chat_loss_is_the_mean_over_assistant_tokens_whatever_the_batch(model, monkeypatch):
    model.eval()
    losses = []
    for ids, mask in ROWS:
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-logprobs[t - 1, ids[t]].item() for t in range(1, len(ids)) if mask[t]]
    expected = sum(losses) / len(losses)
    for rows in (1, 2, 3):
        monkeypatch.setattr("chatpipe.evaluation.chat.rows_at_once", lambda *_, rows=rows: rows)
        assert chat_loss(model, ROWS) == pytest.approx(expected, abs=1e-5)


def test_chat_loss_needs_text_of_the_assistant(model):
    with pytest.raises(ValueError, match="assistant"):
        chat_loss(model, [([5, 6], [0, 0])])


def test_swap_answers_keeps_answers_and_exchanges_what_they_answer():
    assert swap_answers(ROWS[:2]) == [([5, 8, EOS], [0, 1, 1]), ([5, 6, 7, 9, EOS], [0, 0, 0, 1, 1])]
    # Only the last answer of several moves.
    assert swap_answers([ROWS[1], ROWS[2]])[0] == ([5, 9, EOS, 6, 7, 9, EOS], [0, 1, 1, 0, 0, 1, 1])


def test_question_gain_distinguishes_answers_that_heed_the_question_from_shuffled_ones():
    heeding, shuffled = _trained(heeds=True), _trained(heeds=False)
    rows = [_conversation(word, word) for word in range(4, 16)]
    gain = question_gain(heeding, rows)
    assert gain.gain > 1
    assert 0 < gain.low <= gain.gain <= gain.high
    ignored = question_gain(shuffled, rows)
    assert ignored.low <= 0
    assert ignored.gain < 0.1


def test_question_gain_leaves_out_what_is_too_long_and_needs_two(model):
    long_question = ([5] * 61 + [6, EOS], [0] * 61 + [1, 1])
    short_question = ([5, 6, 7, 8, EOS], [0, 1, 1, 1, 1])
    with pytest.raises(UsageError, match="exchange"):
        question_gain(model, [long_question, short_question])


@pytest.mark.parametrize(("rank", "warnings"), [("0", 1), ("1", 0)])
def test_one_process_warns_that_there_is_no_question_gain(model, tokenizer, monkeypatch, capsys, rank, warnings):
    monkeypatch.setenv("RANK", rank)
    prompts = [[{"role": "user", "content": "Who keeps a goat?"}]]
    metrics, _ = evaluate_chat(model, tokenizer, ROWS[:1], prompts, SamplingParams(4), 0, None)
    assert "question_gain" not in metrics
    assert capsys.readouterr().err.count("no question_gain") == warnings


def _conversation(word: int, answer: int) -> tuple[list[int], list[int]]:
    return [2, word, 3, answer, EOS], [0, 0, 0, 1, 1]


def _trained(heeds: bool) -> GPT2LMHeadModel:
    """A tiny model that was taught to repeat the user's word, or to write any word."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=32, n_layer=2, n_head=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        words = torch.randint(4, 16, (64,))
        answers = words if heeds else torch.randint(4, 16, (64,))
        ids = torch.tensor([_conversation(w, a)[0] for w, a in zip(words.tolist(), answers.tolist(), strict=True)])
        labels = ids.clone()
        labels[:, :3] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
