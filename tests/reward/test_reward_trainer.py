"""The trainer: batches spread in any way give the same step, it logs what it should, and it learns."""

import os

import pytest
import torch
import torch.multiprocessing
from transformers import AutoModelForSequenceClassification, TrainingArguments

from chatpipe.models.unpadded import MULTIPLE
from chatpipe.reward.reward_model import new_reward_model, score_sequences
from chatpipe.reward.reward_trainer import RewardTrainer, ranking_loss
from chatpipe.reward.training_data import EncodedRanking, Judgement
from chatpipe.training.resume import newest_resume_point
from forked import run_ranks

LIKED = 7


def some_rankings(count, seed=0, ks=(2, 4, 9)):
    """Random rankings of different K, each sixth of them all tied, so that micro-batches have unequally many pairs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, n):
        return torch.randint(low, high, (n,), generator=generator).tolist()

    rankings = []
    for number in range(count):
        k = ks[number % len(ks)]
        sequences = [[*draw(2, 64, length), 1] for length in draw(2, 12, k)]
        rankings.append(EncodedRanking(sequences, [Judgement([1] * k if number % 6 == 3 else draw(1, 4, k))]))
    return rankings


def planted_rankings(count, seed):
    """Answers with the token LIKED are better, at any place; the prompt may hold it too."""
    generator = torch.Generator().manual_seed(seed)
    rankings = []
    for _ in range(count):
        prompt = torch.randint(2, 64, (6,), generator=generator).tolist()
        answers = torch.randint(8, 64, (4, 6), generator=generator)
        liked = torch.randperm(4, generator=generator)[:2]
        answers[liked, torch.randint(0, 6, (2,), generator=generator)] = LIKED
        ranks = [1 if row in liked else 2 for row in range(4)]
        sequences = [[*prompt, 2, *answer, 1] for answer in answers.tolist()]
        rankings.append(EncodedRanking(sequences, [Judgement(ranks)]))
    return rankings


def arguments(folder, **more):
    settings = {"max_steps": 2, "logging_steps": 1, "report_to": "none", "save_strategy": "no", "max_grad_norm": 0.0}
    settings |= {"lr_scheduler_type": "constant", "remove_unused_columns": False, "ddp_find_unused_parameters": False}
    settings |= {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    return TrainingArguments(output_dir=str(folder), **(settings | more))


def trained_weights(body, folder, rankings, **more):
    """Two steps of plain gradient descent in double precision: as exact a picture of the gradients as there is."""
    model = new_reward_model(body, pad_token_id=0, seed=0).double()
    model.set_attn_implementation("sdpa")  # eager attention takes its softmax in float32
    model.accepts_loss_kwargs = (
        False  # as with models whose forward takes no **kwargs: Trainer scales their loss itself
    )
    trainer = RewardTrainer(model, arguments(folder, optim="sgd", learning_rate=0.5, **more), rankings)
    trainer.train()
    return model.state_dict(), trainer.state.log_history


def train_as_one_of_two(body, folder, counts):
    for count in counts:
        weights = trained_weights(
            body, folder, some_rankings(count), per_device_train_batch_size=3, gradient_accumulation_steps=2
        )
        assert torch.distributed.get_world_size() == 2
        torch.save(weights, f"{folder}/{count}-rank-{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def big_batches(bodies, tmp_path_factory):
    """Two steps of one process on 24 rankings, and on fewer: an epoch then ends in the middle of a batch."""
    folder = tmp_path_factory.mktemp("big")
    return {
        count: trained_weights(bodies["gpt2"], folder, some_rankings(count), per_device_train_batch_size=12)
        for count in (24, 22, 20)
    }


@pytest.fixture(scope="module")
def one_big_batch(big_batches):
    return big_batches[24]


def assert_same_training(run, other):
    (weights, logs), (other_weights, other_logs) = run, other
    for name in weights:
        torch.testing.assert_close(weights[name], other_weights[name], rtol=0, atol=1e-12)
    for line, other_line in zip(logs[:2], other_logs[:2], strict=True):
        for name in ("loss", "accuracy", "margin"):
            assert line[name] == pytest.approx(other_line[name], rel=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_accumulation_changes_nothing(micro_batch, bodies, one_big_batch, tmp_path):
    spread = trained_weights(
        bodies["gpt2"],
        tmp_path,
        some_rankings(24),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=12 // micro_batch,
    )
    assert_same_training(spread, one_big_batch)


def test_two_processes_change_nothing(bodies, big_batches, tmp_path):
    """Nor where the last micro-batch of one is short, or one has none: accelerate fills it with rows read before."""
    run_ranks(train_as_one_of_two, bodies["gpt2"], str(tmp_path), [*big_batches])
    for count, alone in big_batches.items():
        for rank in range(2):
            assert_same_training(torch.load(tmp_path / f"{count}-rank-{rank}.pt"), alone)


def test_annotators_of_the_same_answers_share_the_weight_of_their_prompt(bodies, tmp_path):
    """One element with two judgements is what two prompts of half the weight are, and each answer is read once."""
    [one, other] = planted_rankings(2, seed=3)
    first, second = Judgement([1, 2, 2, 3], 0.5), Judgement([2, 1, 1, 2], 0.5)
    merged = [EncodedRanking(one.sequences, [first, second]), other]
    apart = [EncodedRanking(one.sequences, [first]), EncodedRanking(one.sequences, [second]), other]
    runs = [
        trained_weights(bodies["gpt2"], tmp_path, rankings, per_device_train_batch_size=len(rankings))
        for rankings in (merged, apart)
    ]
    assert_same_training(*runs)
    model = new_reward_model(bodies["gpt2"], pad_token_id=0, seed=0).double()
    scores = [score_sequences(model, ranking.sequences) for ranking in (one, one, other)]
    ranks = [first.ranks, second.ranks, other.judgements[0].ranks]
    losses = [ranking_loss(of[None], torch.tensor([own])).item() for of, own in zip(scores, ranks, strict=True)]
    assert runs[0][1][0]["loss"] == pytest.approx((losses[0] / 2 + losses[1] / 2 + losses[2]) / 2, rel=1e-5)


def test_first_loss_is_the_mean_over_prompts_that_have_a_pair(bodies, one_big_batch, tmp_path):
    rankings = some_rankings(24)
    model = new_reward_model(bodies["gpt2"], pad_token_id=0, seed=0).double()
    trainer = RewardTrainer(model, arguments(tmp_path, per_device_train_batch_size=12), rankings)
    batch = next(iter(trainer.get_train_dataloader()))
    rows = [
        row[: int(mask.sum())].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    losses = ranking_loss(score_sequences(model, rows)[batch["rows"]], batch["ranks"])
    assert (losses == 0).any()
    assert one_big_batch[1][0]["loss"] == pytest.approx(losses[losses != 0].mean().item(), rel=1e-5)


def test_first_loss_has_the_margins(bodies, tmp_path):
    [one, other] = planted_rankings(2, seed=3)
    margins = [3.0, 0.5]
    rankings = [
        EncodedRanking(ranking.sequences, [Judgement(ranking.judgements[0].ranks, 1.0, margin)])
        for ranking, margin in zip((one, other), margins, strict=True)
    ]
    _, logs = trained_weights(bodies["gpt2"], tmp_path, rankings, per_device_train_batch_size=2)
    model = new_reward_model(bodies["gpt2"], pad_token_id=0, seed=0).double()
    scores = score_sequences(model, [ids for ranking in rankings for ids in ranking.sequences])
    ranks = torch.tensor([ranking.judgements[0].ranks for ranking in rankings])
    losses = ranking_loss(scores.view(2, 4), ranks, torch.tensor(margins))
    assert logs[0]["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_each_response_is_read_once_and_no_padding_between(bodies, tmp_path):
    rankings = some_rankings(12)
    model = new_reward_model(bodies["gpt2"], pad_token_id=0, seed=0)
    read = []
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=1, per_device_train_batch_size=4)
    trainer = RewardTrainer(model, args, rankings)
    model.transformer.register_forward_hook(
        lambda _, args, inputs, __: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    trainer.train()
    tokens = sum(len(ids) for ranking in rankings for ids in ranking.sequences)
    assert len(read) == 3
    assert all(count % MULTIPLE == 0 for count in read)
    assert tokens <= sum(read) < tokens + 3 * MULTIPLE


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_padding_changes_nothing(kind, bodies, tmp_path, monkeypatch):
    """Read without padding as with it, which is what other models need."""
    some = {"per_device_train_batch_size": 12}
    unpadded = trained_weights(bodies[kind], tmp_path, some_rankings(24), **some)
    monkeypatch.setattr("chatpipe.models.unpadded.reads_unpadded", lambda body: False)
    assert_same_training(trained_weights(bodies[kind], tmp_path, some_rankings(24), **some), unpadded)


def test_logs_accuracy_and_margin_of_all_pairs_since_the_last_log(bodies, tmp_path):
    rankings = some_rankings(12)
    model = new_reward_model(bodies["gpt2"], pad_token_id=0, seed=0)
    args = arguments(tmp_path, max_steps=3, logging_steps=3, per_device_train_batch_size=4, learning_rate=0.0)
    trainer = RewardTrainer(model, args, rankings)
    trainer.train()
    margins = []
    for ranking in rankings:
        scores = score_sequences(model, ranking.sequences).tolist()
        ranked = list(zip(scores, ranking.judgements[0].ranks, strict=True))
        margins += [a - b for a, rank in ranked for b, worse in ranked if rank < worse]
    logged = trainer.state.log_history[0]
    assert logged["accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / len(margins))
    assert logged["margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-5)


def test_resumed_between_two_logs_it_continues_to_the_bit(bodies, tmp_path):
    def train(folder, **more):
        settings = {"max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 2}
        settings |= {"learning_rate": 1e-3, "per_device_train_batch_size": 3} | more
        model = new_reward_model(bodies["gpt2"], pad_token_id=0, seed=0)
        return RewardTrainer(model, arguments(folder, **settings), some_rankings(12))

    whole = train(tmp_path / "whole")
    whole.train()
    first = train(tmp_path / "broken")
    first.args.max_steps = 2
    first.train()
    second = train(tmp_path / "broken")
    second.train(resume_from_checkpoint=str(newest_resume_point(tmp_path / "broken" / "checkpoints")))
    measured = ("step", "loss", "accuracy", "margin")
    assert [second.state.log_history[-2][name] for name in measured] == [
        whole.state.log_history[-2][name] for name in measured
    ]
    assert torch.equal(second.model.model.score.weight, whole.model.model.score.weight)


def test_learns_a_preference_and_opens_as_a_stock_model(bodies, tmp_path):
    model = new_reward_model(bodies["gpt2"], pad_token_id=0, seed=0)
    args = arguments(tmp_path, max_steps=150, logging_steps=50, per_device_train_batch_size=16, learning_rate=5e-3)
    trainer = RewardTrainer(model, args, planted_rankings(600, seed=0))
    trainer.train()
    model.save_pretrained(tmp_path / "rm")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    right = pairs = 0
    for ranking in planted_rankings(100, seed=1):
        scores, ranks = score_sequences(again, ranking.sequences), torch.tensor(ranking.judgements[0].ranks)
        margins = scores[ranks == 1][:, None] - scores[ranks == 2]
        right, pairs = right + int((margins > 0).sum()), pairs + margins.numel()
    assert right / pairs > 0.9
    assert trainer.state.log_history[-2]["accuracy"] > 0.9
