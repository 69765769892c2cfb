"""The rm stage on files of its own: what it is measured by and what it is centred on, recomputed from what it saved."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chatpipe.data.chat_template import add_chat_template
from chatpipe.data.datasets import load_conversations, load_rankings
from chatpipe.data.rankings import Ranking
from chatpipe.data.worlds import world_named
from chatpipe.errors import TrainingError, UsageError
from chatpipe.evaluation.baselines import WordCounts
from chatpipe.evaluation.pair_accuracy import pair_metrics
from chatpipe.models.new_model import train_tokenizer
from chatpipe.models.pretrained import load_reward_model, load_tokenizer
from chatpipe.recipe import load_recipe
from chatpipe.recipe.schema import DataBlock
from chatpipe.reward.reward_model import reward_offset, score_sequences
from chatpipe.reward.training_data import encode_answers
from chatpipe.run.steps import step_of
from chatpipe.stages.rm import _true_order, rankings_oracle

TINY = ("rm.num_train_epochs=1", "rm.learning_rate=1e-3", "rm.batch_size=16", "rm.max_length=48", "rm.bf16=false")
THINGS = ("cat", "dog", "cow", "hen", "pig", "owl")


def rows_of(path):
    return [DataBlock(source=str(path))], {}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def body(work):
    """The folder of a tiny chat model that has learned nothing."""
    tokenizer = train_tokenizer([f"Which one is {i}? a {thing}" for i, thing in enumerate(THINGS)], 300, 64)
    add_chat_template(tokenizer)
    torch.manual_seed(0)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, **special)
    GPT2LMHeadModel(config).save_pretrained(work / "body")
    tokenizer.save_pretrained(work / "body")
    return work / "body"


@pytest.fixture
def pairs(work):
    """Pairs without a rule: what is learned from some is no help with others."""
    rng = torch.Generator().manual_seed(0)
    rows = []
    for number in range(240):
        better, worse = torch.randperm(len(THINGS), generator=rng)[:2].tolist()
        rows.append({"prompt": f"Which one is {number}?", "chosen": THINGS[better], "rejected": THINGS[worse]})
    return write_rows(work / "pairs.jsonl", rows)


@pytest.fixture
def chats(work):
    """Conversations, fewer than rewards are centred on at most."""
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"a {i % 7}"}]}
        for i in range(200)
    ]
    return write_rows(work / "chats.jsonl", rows)


def offset_on(folder, demonstrations):
    """What centres the saved model on these sequences."""
    model = load_reward_model(folder)
    model.config.chatpipe_reward_offset = 0.0
    return score_sequences(model, demonstrations).mean().item()


def test_it_is_centred_on_the_fine_tuning_data_without_its_validation_split(chatpipe, work, body, pairs, chats):
    said = chatpipe("rm", "--model", body, "--data", pairs, "--out", "rm", f"sft.data={chats}", *TINY, "--json").object
    loaded = load_conversations(*rows_of(chats), "sft.data")
    tokenizer = load_tokenizer(work / "rm")

    def encoded(conversations):
        return [encode_answers(tokenizer, one[:-1], [one[-1]["content"]], 48)[0] for one in conversations]

    assert said["metrics"]["reward_offset"] == pytest.approx(offset_on(work / "rm", encoded(loaded.train)), abs=1e-5)
    with_validation = offset_on(work / "rm", encoded(loaded.train + loaded.validation))
    assert abs(said["metrics"]["reward_offset"] - with_validation) > 1e-4


def test_where_no_conversation_fits_it_is_centred_on_the_best_answers(chatpipe, work, body, pairs):
    long = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "a cat " * 40}]
    chats = write_rows(
        work / "chats.jsonl", [{"messages": [{**long[0], "content": f"{i}?"}, long[1]]} for i in range(60)]
    )
    said = chatpipe("rm", "--model", body, "--data", pairs, "--out", "rm", f"sft.data={chats}", *TINY, "--json").object
    train = load_rankings(*rows_of(pairs), "rm.data").train
    tokenizer = load_tokenizer(work / "rm")
    best = [encode_answers(tokenizer, one.prompt, one.responses, 48)[0] for one in train]
    assert said["metrics"]["reward_offset"] == pytest.approx(offset_on(work / "rm", best), abs=1e-5)


def test_a_reward_model_is_trained_further(chatpipe, work, body, pairs):
    """TRL's RewardTrainer starts from one, too: its head is kept, and its folder stays as it is."""
    first = chatpipe("rm", "--model", body, "--data", pairs, "--out", "rm", *TINY)
    assert first.code == 0, first.err
    before = (work / "rm" / "model.safetensors").read_bytes()
    said = chatpipe("rm", "--model", "rm", "--data", pairs, "--out", "again", *TINY, "rm.learning_rate=1e-9", "--json")
    assert said.code == 0, said.err
    assert (work / "rm" / "model.safetensors").read_bytes() == before
    old, new = load_reward_model("rm"), load_reward_model("again")
    torch.testing.assert_close(new.score.weight, old.score.weight, atol=1e-5, rtol=0)
    assert reward_offset(new) == pytest.approx(reward_offset(old), abs=1e-3)
    refused = chatpipe("sft", "--model", "rm", "--data", pairs, "--out", "sft")
    assert refused.code == 2
    assert "is a reward model" in refused.err


def test_word_counts_are_learned_from_what_is_trained_on_alone(chatpipe, work, body, pairs):
    said = chatpipe("rm", "--model", body, "--data", pairs, "--out", "rm", *TINY, "--json").object
    rankings = load_rankings(*rows_of(pairs), "rm.data")

    def baseline(learned_from):
        words = WordCounts.learn(learned_from).scores(rankings.validation)
        return pair_metrics(rankings.validation, words, words=words)["words_baseline"]

    assert said["metrics"]["words_baseline"] == baseline(rankings.train)
    assert baseline(rankings.validation) > baseline(rankings.train) + 0.05


def test_the_model_is_saved_before_anything_is_evaluated(body, pairs, work, chatpipe, monkeypatch):
    """A later failure costs no training: the same command continues from the last resume point."""

    def fail(*_, **__):
        raise TrainingError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("chatpipe.stages.rm.evaluate_ranker", fail)
        failed = chatpipe("rm", "--model", body, "--data", pairs, "--out", work / "rm", *TINY)
    assert failed.code == 1
    assert load_reward_model(work / "rm").config.chatpipe_reward_offset != 0
    assert not (work / "rm" / "chatpipe.json").exists()
    assert chatpipe("rm", "--model", body, "--data", pairs, "--out", work / "rm", *TINY).code == 0


def test_rankings_that_the_oracle_ties_are_refused_before_training(tmp_path):
    """The annotators prefer something, but the evaluation goes by the oracle's order."""
    recipe = load_recipe("pocket", [f"out={tmp_path}"]).recipe
    step = step_of(recipe, "rm")
    oracle = rankings_oracle(step)
    [prompt, *_] = world_named("pocketworld", recipe.worlds).prompts("validation")
    tied = Ranking(prompt, ["Bananas.", "Bananas."], [1, 2])
    assert oracle.rate(prompt, "Bananas.").score == oracle.rate(prompt, "Bananas.").score
    with pytest.raises(UsageError) as refused:
        _true_order(step, [tied], max_length=64)
    assert "sample.prompts" in refused.value.hint
    scores = _true_order(step, [tied, Ranking(prompt, ["Bananas.", "I do not know."], [1, 1])], max_length=64)
    assert scores[0][0] == scores[0][1]
    assert scores[1][0] != scores[1][1]
