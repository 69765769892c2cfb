"""Two real processes: through our own launcher, and as the ranks of somebody else's."""

import json
import subprocess
import sys
import time

import psutil
import pytest
from own_files import as_messages, asked, write_rows

from forked import all_ended, environment_of_rank, free_port, start_anew

FEW_STEPS = ("pretrain.max_steps=12", "pretrain.logging_steps=3", "pretrain.save_steps=100")


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def as_ranks(command, world_size=2):
    """Runs a command as the ranks of one world, as torchrun does; returns each one's exit code, stdout and stderr.

    They are no forks: what Gloo's threads do while the interpreter ends is a part of it.
    """
    port = free_port()
    return all_ended([start_anew(command, **environment_of_rank(rank, world_size, port)) for rank in range(world_size)])


# ---- our own launcher ----


def test_pretraining_on_two_ranks_takes_the_steps_of_one(tiny_run, tmp_path, chatpipe):
    """Batches are shared by the ranks and cut into micro-batches, and neither changes anything."""
    command = ("pretrain", tiny_run.recipe, *FEW_STEPS, "keep_checkpoints=true", "--json")
    one, two = tmp_path / "one", tmp_path / "two"
    alone = chatpipe(*command, "--out", one, "--processes", 1).object
    told = chatpipe(*command, "--out", two, "--processes", 2, "pretrain.per_device_train_batch_size=4").object
    assert (alone["processes"], told["processes"]) == (1, 2)
    assert [line["step"] for line in logged(two)] == [1, 3, 6, 9, 12]
    for ours, theirs in zip(logged(two), logged(one), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert ours["num_input_tokens_seen"] == theirs["num_input_tokens_seen"]
    assert told["metrics"]["eval_loss"] == pytest.approx(alone["metrics"]["eval_loss"], abs=1e-4)
    point = {path.name for path in (two / "checkpoints" / "step-12").iterdir()}
    assert {"rank-0.json", "rank-1.json"} <= point
    assert len(list(tmp_path.rglob("chatpipe.json"))) == 2
    assert json.loads((two / "chatpipe.json").read_text())["processes"] == 2


def test_ppo_on_two_ranks_shares_the_episodes(tiny_run, tmp_path, chatpipe):
    out = tmp_path / "ppo"
    said = chatpipe("ppo", tiny_run.recipe, "ppo.total_episodes=64", "--processes", 2, "--out", out, "--json")
    assert said.object["processes"] == 2
    lines = logged(out)
    assert [line["episode"] for line in lines] == [32, 64]
    for line in lines:
        assert line["val/num_eos_tokens"] == pytest.approx(32 * line["response/eos_frac"])
        assert line["val/ratio_first"] == pytest.approx(1.0, abs=1e-5)
        assert line["loss"] == line["loss"]
    assert [path.relative_to(out).as_posix() for path in out.rglob("chatpipe.json")] == ["chatpipe.json"]
    assert not (out / "launch-error.json").exists()
    assert chatpipe("ppo", tiny_run.recipe, "ppo.total_episodes=64", "--out", out, "--json").object["skipped"]


def test_sampling_ranking_and_a_reward_model_are_shared_and_come_out_the_same(tiny_run, work, chatpipe):
    def made(processes):
        run = work / f"with-{processes}"
        run.mkdir()
        for name in ("pretrain", "sft"):
            (run / name).symlink_to(tiny_run.folder / name)
        command = ("rm", tiny_run.recipe, f"out={run}", f"rank.rater={tiny_run.folder}/rm", "rank.temperature=0.1")
        more = ("sample.prompts=41", "rm.num_train_epochs=1", "--processes", processes, "--json")
        told = chatpipe(*command, *more).object
        for step in ("sample", "rank"):
            assert json.loads((run / step / "chatpipe.json").read_text())["processes"] == processes
        files = (run / "sample" / "completions.jsonl", run / "rank" / "rankings.jsonl")
        return told, *([json.loads(line) for line in file.open()] for file in files)

    alone, answers, rankings = made(1)
    told, shared_answers, shared_rankings = made(2)
    assert 0 < len(answers) == len(shared_answers)
    for ours, theirs in zip(answers, shared_answers, strict=True):
        assert (ours["prompt"], ours["responses"]) == (theirs["prompt"], theirs["responses"])
    assert rankings == shared_rankings
    # The reward model is trained on them by both ranks.
    assert (alone["processes"], told["processes"], told["skipped"]) == (1, 2, False)
    assert logged(work / "with-2" / "rm")[-1]["step"] > 1
    assert 0 < told["metrics"]["eval_accuracy"] <= 1


def test_the_error_of_a_rank_is_the_parent_s(tiny_run, tmp_path, chatpipe):
    rows = [as_messages(one.question + one.wrong * 9, one.right) for one in asked()[:60]]
    data = write_rows(tmp_path / "long.jsonl", rows)
    command = ("sft", "--model", tiny_run.folder / "pretrain", "--data", data, "--out", tmp_path / "chat")
    alone = chatpipe(*command, "sft.max_length=32", "--json")
    launched = chatpipe(*command, "sft.max_length=32", "--json", "--processes", 2)
    assert launched.code == alone.code == 2
    assert launched.out == alone.out == ""
    assert launched.err == "error: " + alone.err.rpartition("error: ")[2]
    assert 1 < len(launched.err.splitlines()) <= 8
    assert "conversations are longer than 32 tokens" in launched.err


def test_ranks_save_and_end_when_their_parent_is_killed(tiny_run, tmp_path):
    """Otherwise they would continue and write into the folder in which the next command resumes."""
    out = tmp_path / "base"
    command = ("pretrain", tiny_run.recipe, "pretrain.max_steps=5000", "--out", out, "--processes", 2)
    parent = subprocess.Popen([sys.executable, "-m", "chatpipe", *map(str, command)], stderr=subprocess.DEVNULL)
    while not (out / "metrics.jsonl").exists():
        assert parent.poll() is None
        time.sleep(0.01)
    ranks = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    ended, still_there = psutil.wait_procs(ranks, timeout=60)
    assert not still_there
    assert len(ended) == 3  # accelerate's launcher and two ranks
    (point,) = (out / "checkpoints").glob("step-*[0-9]")
    assert (point / "manifest.json").exists()
    assert not (out / "chatpipe.json").exists()


# ---- the launcher of somebody else ----


def test_ranks_of_a_launcher_are_one_stage_and_launch_nothing(tiny_run, tmp_path, chatpipe, monkeypatch):
    out = tmp_path / "rm"
    command = ("rm", tiny_run.recipe, "rm.num_train_epochs=1", "--out", out, "--processes", 2, "--json")
    (code, said, _), (other_code, other_said, _) = as_ranks(command)
    assert (code, other_code) == (0, 0)
    told = json.loads(said)
    assert (told["processes"], told["skipped"]) == (2, False)
    assert other_said == ""
    assert not (out / "launch.log").exists()

    # What a rank finds out before it joins the others needs no others.
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        again = chatpipe(*command)
        assert again.code == 0
        assert [json.loads(line) for line in again.out.splitlines()] == (
            [{**told, "skipped": True}] if rank == "0" else []
        )
        changed = chatpipe(*command, "rm.learning_rate=0.1")
        assert changed.code == 2
        assert "rm.learning_rate was 0.0005, is 0.1 now" in changed.err


def test_a_world_of_another_size_is_refused(tiny_run, tmp_path, chatpipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    said = chatpipe("rm", tiny_run.recipe, "--out", tmp_path / "rm", "--processes", 3)
    assert said.code == 2
    assert "3 processes were asked for, but the launcher started 2." in said.err
    said = chatpipe("run", tiny_run.recipe, f"out={tmp_path}/run")
    assert said.code == 2
    assert "launch the stages one by one" in said.err
    assert not list(tmp_path.iterdir())


def test_a_batch_that_ranks_cannot_share_is_refused_before_they_start(tiny_run, tmp_path, chatpipe):
    said = chatpipe("rm", tiny_run.recipe, "--out", tmp_path / "rm", "--processes", 3)
    assert said.code == 2
    assert "rm.batch_size = 8 cannot be shared by 3 processes." in said.err
    assert not (tmp_path / "rm").exists()
