"""Each stage on the command line: a check stops it, and with its key off the same command continues."""

import json
import shutil

import pytest
from own_files import FEW_PROMPTS, LEARN, as_messages, asked, write_rows

TINY = (
    "pretrain.architecture={n_layer: 1, n_head: 2, n_embd: 32, n_positions: 64}",
    "pretrain.tokenizer.vocab_size=300",
    "pretrain.block_size=32",
    "pretrain.batch_size=8",
    "pretrain.max_steps=2",
)


def pretrain(tmp_path, run):
    """Documents of one file, parted by what other software takes for end of text."""
    text = "<|endoftext|>".join(f"{one.question} {one.right}" for one in asked())
    (tmp_path / "one.txt").write_text(text)
    told = "1 of 1 texts have '<|endoftext|>'"
    return ("--data", tmp_path / "one.txt", *TINY), "special_tokens_in_text", f"pretrain.data: {told}"


def sft(tmp_path, run):
    """What is asked in test is asked in training too, in another case."""
    rows = [as_messages(text, one.right) for one in asked() for text in (one.question, one.question.upper())]
    data = write_rows(tmp_path / "chats.jsonl", rows)
    command = ("--model", run.folder / "pretrain", "--data", data, *LEARN["sft"], *FEW_PROMPTS, "sft.max_steps=2")
    return command, "validation_seen", "texts are in the training data too"


def rm(tmp_path, run):
    """One column read as both answers, in a tenth of the rows."""
    rows = [
        {"prompt": one.question, "chosen": one.right, "rejected": one.right if i % 10 == 0 else one.wrong}
        for i, one in enumerate(asked())
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    command = ("--model", run.folder / "sft", "--data", data, *LEARN["rm"], "rm.num_train_epochs=0.1")
    return command, "chosen_is_rejected", "chosen and rejected are the same tokens."


def ppo(tmp_path, run):
    """A reward model whose own metrics show that it has learned nothing."""
    shutil.copytree(run.folder / "rm", tmp_path / "weak")
    manifest = json.loads((tmp_path / "weak" / "chatpipe.json").read_text())
    manifest["metrics"].update(eval_accuracy=0.5, accuracy_low=0.4, eval_pairs=80)
    (tmp_path / "weak" / "chatpipe.json").write_text(json.dumps(manifest))
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": one.question} for one in asked()])
    models = ("--model", run.folder / "sft", "--reward", tmp_path / "weak")
    told = (
        f"ppo.reward_model: {tmp_path}/weak is no better than chance: 50% of 80 validation pairs right (at least 40%)."
    )
    return (*models, "--data", data, *LEARN["ppo"], *FEW_PROMPTS, "ppo.total_episodes=32"), "reward_at_chance", told


@pytest.mark.parametrize("stage", [pretrain, sft, rm, ppo], ids=lambda stage: stage.__name__)
def test_a_check_stops_a_stage_and_its_key_lets_it_continue(stage, tmp_path, tiny_run, chatpipe):
    name = stage.__name__
    options, check, told = stage(tmp_path, tiny_run)
    command = (name, "--out", tmp_path / name, *options)
    said = chatpipe(*command)
    read, _, error = said.err.rpartition("error: ")
    assert read.count("\n") <= 1, "one line before the error: what the data was read as"
    lines = f"error: {error}".splitlines()
    assert said.code == 2
    assert len(lines) == 4
    assert lines[0].startswith(f"error: {name} ")
    assert lines[1].startswith(f"checks.{check}: ")
    assert told in lines[1]
    assert f"checks.{check}=false" in lines[3]
    assert not (tmp_path / name / "metrics.jsonl").exists()
    assert chatpipe(*command, f"checks.{check}=false", "--json").object["skipped"] is False
    # What is done is done, whatever the checks: they change nothing of what came out.
    assert chatpipe(*command, "--json").object["skipped"] is True
