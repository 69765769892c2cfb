"""The reward model: what its head starts as, which token it is read at, and its centring."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    XLNetConfig,
)

from chatpipe.data.sequences import pad_right
from chatpipe.errors import TrainingError, UsageError
from chatpipe.models.new_model import train_tokenizer
from chatpipe.models.pretrained import load_reward_model, prepare_model
from chatpipe.models.properties import COUNT_FROM_PADDING, longest_sequence, positions_of
from chatpipe.reward.reward_model import batch_scores, centre_rewards, new_reward_model, score_sequences

KINDS = ("gpt2", "llama", "qwen3")
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def some_sequences(count=12, longest=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(2, 64, (length - 1,), generator=generator).tolist() + [1] for length in lengths]


@pytest.fixture(scope="module", params=KINDS)
def model(request, bodies):
    return new_reward_model(bodies[request.param], pad_token_id=0, seed=0).eval()


@pytest.fixture
def gpt2(bodies):
    return new_reward_model(bodies["gpt2"], pad_token_id=0, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_body_keeps_its_weights(kind, bodies, model):
    input_ids = torch.tensor(some_sequences(1))
    causal = prepare_model(AutoModelForCausalLM.from_pretrained(bodies[kind])).eval().base_model
    reward = new_reward_model(bodies[kind], pad_token_id=0, seed=0).eval().base_model
    assert torch.equal(reward(input_ids).last_hidden_state, causal(input_ids).last_hidden_state)


def test_head_starts_with_scores_of_size_one(tmp_path):
    wide = GPT2Config(vocab_size=8, n_positions=8, n_embd=1024, n_inner=8, n_layer=1, n_head=2, **SPECIAL)
    GPT2LMHeadModel(wide).save_pretrained(tmp_path)
    weight = new_reward_model(str(tmp_path), pad_token_id=0, seed=3).score.weight
    assert weight.std().item() == pytest.approx(1025**-0.5, rel=0.1)
    assert abs(weight.mean().item()) < 4 * 1025**-0.5 / 32
    assert torch.equal(weight, new_reward_model(str(tmp_path), pad_token_id=0, seed=3).score.weight)
    assert not torch.equal(weight, new_reward_model(str(tmp_path), pad_token_id=0, seed=4).score.weight)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_two_readings_agree_in_training_mode_also_after_a_reload(kind, bodies, tmp_path):
    new_reward_model(bodies[kind], pad_token_id=0, seed=0).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).train()
    input_ids = torch.tensor([[5, 6, 7, 8, 1]])
    assert torch.equal(model(input_ids).logits, model(input_ids).logits)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == 0


def test_nothing_is_printed_about_new_weights(bodies, capfd):
    new_reward_model(bodies["gpt2"], pad_token_id=0, seed=0)
    output = capfd.readouterr()
    assert "score" not in output.out + output.err


@torch.inference_mode()
def test_agrees_with_the_stock_forward(model):
    sequences = some_sequences()
    centre_rewards(model, sequences[:5])
    input_ids, mask = pad_right(sequences, 0)
    stock = model(input_ids, attention_mask=mask).logits[:, 0]
    ours = score_sequences(model, sequences)
    torch.testing.assert_close(ours + model.config.chatpipe_reward_offset, stock, atol=1e-5, rtol=0)
    model.config.chatpipe_reward_offset = 0.0


@pytest.mark.parametrize("unpadded", [True, False])
def test_neighbours_and_padding_do_not_change_a_score(model, unpadded, monkeypatch):
    monkeypatch.setattr("chatpipe.reward.reward_model.reads_unpadded", lambda body: unpadded)
    monkeypatch.setattr("chatpipe.models.unpadded.reads_unpadded", lambda body: unpadded)
    sequences = some_sequences()
    alone = torch.cat([score_sequences(model, [sequence]) for sequence in sequences])
    for tokens_at_once in (30, 100, 1000):
        done = []
        together = score_sequences(model, sequences, tokens_at_once=tokens_at_once, on_scored=done.append)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
        assert done == sorted(done)
        assert done[-1] == len(sequences)
    input_ids, mask = pad_right(sequences, fill=9)
    with torch.no_grad():
        torch.testing.assert_close(batch_scores(model, input_ids, mask), alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_read_where_transformers_reads_also_where_the_pad_token_ends_a_turn(gpt2):
    """transformers #35352: it looks for the last token that is not pad, so with pad == EOS the one before the end.

    Any other pad token is one like any other where it was sampled.
    """
    sequences = [[5, 6, 7, 1], [8, 9, 1]]
    at_the_end = score_sequences(gpt2, sequences)
    gpt2.config.pad_token_id = 1
    input_ids, mask = pad_right(sequences, 1)
    scores = score_sequences(gpt2, sequences)
    torch.testing.assert_close(scores, gpt2(input_ids, attention_mask=mask).logits[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, score_sequences(gpt2, [[5, 6, 7], [8, 9]]), atol=1e-5, rtol=0)
    for pad in (None, 0):
        gpt2.config.pad_token_id = pad
        assert torch.equal(score_sequences(gpt2, sequences), at_the_end)
    sampled = [[5, 6, 7, 0], [8, 9, 0]]
    assert not torch.allclose(score_sequences(gpt2, sampled), score_sequences(gpt2, [[5, 6, 7], [8, 9]]))


def test_score_of_every_token_is_that_of_the_sequence_ending_there(gpt2):
    sequence = some_sequences(1)[0]
    ends = [sequence[: end + 1] for end in range(len(sequence))]
    with torch.inference_mode():
        at_tokens = gpt2.score(gpt2.transformer(torch.tensor([sequence])).last_hidden_state)[0, :, 0]
    torch.testing.assert_close(score_sequences(gpt2, ends), at_tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "model_max_length", "longest"),
    [
        (GPT2Config(n_positions=48), 1000, 48),
        (GPT2Config(n_positions=48), 32, 32),
        (RobertaConfig(max_position_embeddings=514), 1000, 512),  # its positions begin at 2
        (RobertaConfig(max_position_embeddings=514), 32, 32),
        (XLNetConfig(), 512, 512),  # has no table of positions
    ],
    ids=["positions", "tokenizer", "roberta", "tokenizer of roberta", "none"],
)
def test_longest_sequence_is_what_model_and_tokenizer_allow(config, model_max_length, longest):
    tokenizer = train_tokenizer(["a b c"], vocab_size=272, model_max_length=model_max_length)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert longest_sequence(model, tokenizer) == longest


@pytest.mark.parametrize("kind", COUNT_FROM_PADDING)
def test_a_model_whose_positions_begin_behind_its_padding_reads_the_max_length(kind, tmp_path):
    tokenizer = train_tokenizer(["a b c"], vocab_size=272, model_max_length=10**30)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"attention_window": 8} if kind == "longformer" else {}
    if kind == "xmod":
        more = {"default_language": "en_XX"}
    config = AutoConfig.for_model(
        kind, vocab_size=272, max_position_embeddings=24, pad_token_id=1, num_labels=1, **small, **more
    )
    model = AutoModelForSequenceClassification.from_config(config)
    longest = longest_sequence(model, tokenizer)
    config.save_pretrained(tmp_path)
    assert longest == positions_of(tmp_path) == 22
    assert score_sequences(model, [[5] * longest]).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        score_sequences(model, [[5] * (longest + 1)])


def test_scores_are_float32_under_autocast(gpt2):
    input_ids, mask = pad_right(some_sequences(), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        scores = batch_scores(gpt2, input_ids, mask)
    assert scores.dtype == torch.float32
    assert (scores != scores.bfloat16()).any()


def test_scoring_leaves_training_mode_alone_and_takes_no_sequences(gpt2):
    assert score_sequences(gpt2.train(), []).shape == (0,)
    assert gpt2.training


def test_centring_survives_a_reload_and_keeps_the_order(gpt2, tmp_path):
    demonstrations, others = some_sequences(seed=1), some_sequences(seed=2)
    before = score_sequences(gpt2, others)
    offset = centre_rewards(gpt2, demonstrations)
    assert abs(offset) > 0.01
    gpt2.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert score_sequences(again, demonstrations).mean().abs() < 1e-6
    torch.testing.assert_close(score_sequences(again, others), before - offset)
    assert centre_rewards(again, demonstrations) == pytest.approx(offset, abs=1e-6)


def test_what_gives_no_finite_scores_is_not_centred(gpt2):
    with torch.no_grad():
        gpt2.score.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="cannot be centred: 12 demonstrations score nan on average"):
        centre_rewards(gpt2, some_sequences())
    assert not hasattr(gpt2.config, "chatpipe_reward_offset")


def test_a_reward_model_that_is_trained_further_keeps_its_head_and_its_offset(bodies, tmp_path):
    """Also one whose head has a bias, as an encoder's, and in half precision."""
    for kind in bodies:
        before = new_reward_model(bodies[kind], pad_token_id=0, seed=0)
        centre_rewards(before, some_sequences()[:5])
        before.bfloat16().save_pretrained(tmp_path / kind)
        again = new_reward_model(str(tmp_path / kind), pad_token_id=0, seed=9)
        assert again.dtype == torch.float32
        saved = load_reward_model(tmp_path / kind)
        torch.testing.assert_close(score_sequences(again, some_sequences()), score_sequences(saved, some_sequences()))


def test_a_reward_model_without_its_head_is_refused(bodies, tmp_path):
    new_reward_model(bodies["gpt2"], pad_token_id=0, seed=0).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    rest = {name: weight for name, weight in load_file(path).items() if name != "score.weight"}
    save_file(rest, path, {"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks the weight score\.weight"):
        new_reward_model(str(tmp_path), pad_token_id=0, seed=0)
