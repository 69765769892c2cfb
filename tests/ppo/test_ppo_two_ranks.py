import pytest
import torch
import two_ranks

from chatpipe.data.sequences import Sequences
from chatpipe.ppo.experience import Experience
from forked import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two gloo processes measured."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(two_ranks.take_part, folder)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def joined(ranks) -> Experience:
    def cat(kind, name):
        return torch.cat([rank[kind][name] for rank in ranks])

    sequences = Sequences(**{name: cat("sequences", name) for name in ranks[0]["sequences"]})
    return Experience(sequences, **{name: cat("floats", name) for name in two_ranks.FLOATS})


def test_two_ranks_take_the_step_of_one(ranks, tmp_path):
    """Ranks with different numbers of tokens, two micro-batches each and text mixed in: the gradient of one rank."""
    experience = joined(ranks)
    tokens = [len(rank["floats"]["logprobs"]) for rank in ranks]
    assert tokens[0] != tokens[1]
    trainer = two_ranks.make(tmp_path)
    two_ranks.move(trainer.model)
    loss, gradient = two_ranks.gradient(trainer, trainer.model, experience)
    assert (ranks[0]["loss"] + ranks[1]["loss"]).item() / 2 == pytest.approx(loss.item(), rel=0, abs=1e-10)
    for rank in ranks:
        assert torch.allclose(rank["gradient"], gradient, rtol=0, atol=1e-10)


def test_advantages_are_whitened_over_both(ranks):
    advantages = joined(ranks).advantages
    assert advantages.mean().item() == pytest.approx(0, abs=1e-10)
    assert advantages.var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert abs(ranks[0]["floats"]["advantages"].mean().item()) > 1e-3


def test_ranks_sample_different_completions_to_different_prompts_and_stay_equal(ranks):
    assert ranks[0]["sequences"]["ids"].tolist() != ranks[1]["sequences"]["ids"].tolist()
    assert ranks[0]["weights"].equal(ranks[1]["weights"])


def test_metrics_are_those_of_both(ranks):
    first, second = (rank["lines"] for rank in ranks)
    assert len(first) == 2
    experience = joined(ranks)
    assert first[0]["objective/scores_raw"] == pytest.approx(experience.scores.mean().item())
    assert first[0]["response/length"] == experience.num_tokens / 8
    for one, other in zip(first, second, strict=True):
        for name in one:
            if name.startswith(("objective/", "policy/", "val/", "returns/", "response/", "loss", "rewards/")):
                assert one[name] == other[name], name
    assert ranks[0]["evaluated"] == ranks[1]["evaluated"]


def test_both_end_an_update_at_the_same_step(ranks):
    """One rank that continued alone would wait for the other for ever."""
    for rank in ranks:
        assert [line["val/skipped_steps"] for line in rank["lines"]] == [3, 3]
        assert rank["lines"][-1]["optimizer_steps"] == 8


def test_an_adapter_learns_the_same_on_both(ranks):
    one, other = (rank["adapter"] for rank in ranks)
    assert all("lora_" in name for name in one)
    assert any(weight.abs().max() > 1e-3 for name, weight in one.items() if "lora_B" in name)  # it began at 0
    for name in one:
        assert one[name].equal(other[name]), name
    lines = ranks[0]["adapted_lines"]
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert lines[1]["objective/kl"] > 1e-3
    assert [line["val/ratio_first"] for line in lines] == pytest.approx([1, 1], abs=1e-6)


def test_completions_come_in_the_order_of_the_data_set_one_batch_a_rank_where_sampled(ranks):
    for rank in ranks:
        assert [row["query"] for row in rank["completed"]] == ["w3", "w4 w5", "w6"]
        assert [row["query"] for row in rank["sampled"]] == ["w3", "w4 w5"]
