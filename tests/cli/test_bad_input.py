"""Mistakes that show only under a launcher, in a dry run or on another machine; tests/mistakes has all the others."""

import json
import subprocess
import sys

import pytest

from chatpipe.recipe import load_recipe
from chatpipe.run.chain import write_recipe


def test_an_out_folder_that_holds_another_run(refused, work):
    write_recipe(load_recipe("pocket", ["seed=3"]).recipe, work / "runs" / "pocket" / "recipe.yaml")
    told = refused("run", "pocket", "seed=4")
    assert "runs/pocket holds another run:\nseed was 3, is 4 now\n" in told
    assert "out=" in told
    assert "--fresh" in told


def test_a_model_that_is_neither_here_nor_in_the_cache(refused):
    told = refused("chat", "no-such-model-1")
    assert "no-such-model-1 is neither a folder nor in the cache of the hub, and HF_HUB_OFFLINE forbids" in told
    assert "unset HF_HUB_OFFLINE" in told


@pytest.mark.parametrize(("words", "part"), [(("--use_deepspeed",), "DeepSpeed is not"), (("--use-fsdp",), "no GPU")])
def test_ways_of_training_that_there_are_not_here(refused, words, part, monkeypatch):
    monkeypatch.setattr("chatpipe.run.launch._may_have_gpu", lambda: False)
    assert part in refused("pretrain", "pocket", "--processes", "2", "--", *words)
    assert part in refused("run", "pocket", "--processes", "2", "--dry-run", "--", *words)


def test_a_folder_is_refused_before_torch_counts_gpus_and_in_a_dry_run_too(work, listing):
    (work / "thesis").mkdir()
    (work / "thesis" / "chapter-1.md").write_text("years of work")
    before = listing()
    for words in (("run", "pocket", "out=thesis"), ("pretrain", "pocket", "--out", "thesis")):
        for more in ((), ("--dry-run",)):
            done = in_a_process_of_its_own(*words, *more)
            assert (done.returncode, done.stdout) == (2, "loaded:\n")
            assert "did not make" in done.stderr
    assert listing() == before


def test_a_dry_run_promises_no_batch_that_the_run_refuses(refused):
    words = ("pretrain.batch_size=32", "--processes", "3", "--dry-run")
    assert "pretrain.batch_size = 32 cannot be shared by 3 processes." in refused("run", "pocket", *words)
    assert "pretrain.batch_size = 32 cannot be shared by 3 processes." in refused("pretrain", "pocket", *words)


def in_a_process_of_its_own(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line, and prints the heavy packages that it loaded after its output."""
    code = (
        "import sys, chatpipe.cli.app as app\n"
        "try:\n    app.main()\n"
        "finally:\n    print('loaded:', *sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


def test_a_rank_leaves_its_error_for_the_parent_that_launched_it(chatpipe, work, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("CHATPIPE_ERROR_FILE", str(work / "error.json"))
    result = chatpipe("sft", "pocket", "sft.max_lenght=3")
    assert (result.code, result.err) == (2, "")
    told = json.loads((work / "error.json").read_text())
    assert "did you mean sft.max_length?" in told["message"]
    assert told["exit_code"] == 2


def test_what_does_not_fit_into_memory_is_refused_before_it_is_tried(refused):
    told = refused("pretrain", "gpt2-124m", "pretrain.per_device_train_batch_size=512", "--dry-run", "--processes", "1")
    assert "GiB of memory, but this" in told
    assert "logits" in told
    assert "pretrain.per_device_train_batch_size to" in told
