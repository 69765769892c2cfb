"""What is neither a user's mistake nor an error of ours: exit 1, short, with the place and what to do."""

import pytest
import torch

from chatpipe.recipe import load_recipe
from chatpipe.run.chain import out_of_memory
from chatpipe.run.steps import step_of


@pytest.mark.parametrize(
    ("problem", "first", "hint"),
    [
        (PermissionError(13, "no", "runs/x"), "error: Permission denied: runs/x", "another folder with out= or --out"),
        (OSError(30, "no", "runs/x"), "error: Read-only file system: runs/x", "another folder with out= or --out"),
        (OSError(28, "no"), "error: No space left on device (in ", "Make room"),
        (Exception("I/O error: no (os error 28)"), "error: No space left on device (in ", "Make room"),
        (MemoryError("Unable to allocate 8 GiB"), "error: out of memory: Unable to allocate 8 GiB", "a smaller model"),
        (KeyError("x\n" * 900), "error: a bug of chatpipe: KeyError: ", "CHATPIPE_DEBUG=1 shows the traceback"),
    ],
)
def test_what_nobody_foresaw_is_short_and_fails(chatpipe, monkeypatch, problem, first, hint):
    def fail() -> None:
        raise problem

    monkeypatch.setattr("chatpipe.recipe.packaged_recipes", fail)
    result = chatpipe("recipes", "ls")
    assert result.code == 1
    assert result.err.startswith(first)
    assert hint in result.err
    assert len(result.err.splitlines()) <= 8
    assert len(result.err) < 1000
    monkeypatch.setenv("CHATPIPE_DEBUG", "1")
    assert f"{type(problem).__name__}: " in chatpipe("recipes", "ls").err.split("Traceback", 1)[1]


def test_a_package_that_is_not_installed_is_named(chatpipe, monkeypatch):
    def fail() -> None:
        import no_such_package.inner  # noqa: F401

    monkeypatch.setattr("chatpipe.recipe.packaged_recipes", fail)
    result = chatpipe("recipes", "ls")
    assert result.code == 2
    assert "the package no_such_package is not installed" in result.err
    assert "pip install no_such_package" in result.err
    assert "a bug" not in result.err


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_a_stage_out_of_memory_names_the_keys_that_help(chatpipe, monkeypatch, make_model, chats, problem):
    def run(step: object) -> None:
        raise problem

    monkeypatch.setattr("chatpipe.stages.sft.run", run)
    model = make_model("base", "GPT2LMHeadModel")
    words = ("sft", "--model", model, "--data", chats, "--out", "tuned", "--processes", "1", "sft.bf16=false")
    said = chatpipe(*words)
    assert said.code == 1
    assert said.err.startswith("error: sft needs more memory than there is: ")
    assert "a bug" not in said.err
    for key in ("per_device_train_batch_size=1", "gradient_checkpointing=true", "bf16=true", "max_length", "lora={}"):
        assert f"sft.{key}" in said.err
    said = chatpipe(*words, "sft.per_device_train_batch_size=1", "sft.lora={}")
    assert "sft.per_device_train_batch_size" not in said.err
    assert "sft.lora" not in said.err


@pytest.mark.parametrize(
    ("where", "words", "remedy"),
    [
        ("generation.chat_loop.chat", ["chat", "MODEL"], "--max-new-tokens"),
        ("evaluation.evaluate_model.evaluate_model", ["eval", "MODEL", "--data", "CHATS"], "evaluation.max_new_tokens"),
        (
            "ranking.completions.make_completions",
            ["sample", "MODEL", "--prompts", "CHATS", "-o", "answers.jsonl"],
            "--max-new-tokens",
        ),
    ],
)
def test_a_command_out_of_memory_names_what_helps(chatpipe, monkeypatch, make_model, chats, where, words, remedy):
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(f"chatpipe.{where}", fail)
    given = {"MODEL": make_model("base", "GPT2LMHeadModel"), "CHATS": chats}
    said = chatpipe(*(given.get(word, word) for word in words))
    assert said.code == 1
    assert "more memory than there is: OutOfMemoryError: CUDA out of memory" in said.err
    assert remedy in said.err


@pytest.mark.parametrize(("stage", "key"), [("sample", "sample.max_new_tokens"), ("rank", "rank.rater")])
def test_a_step_that_trains_nothing_names_its_own_keys(stage, key):
    step = step_of(load_recipe("pocket").recipe, stage)
    problem = out_of_memory(step, MemoryError("no more"))
    assert problem.message == f"{stage} needs more memory than there is: MemoryError: no more"
    assert key in problem.hint


def test_an_interruption_outside_of_training_names_how_to_continue(chatpipe, monkeypatch):
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chatpipe.recipe.packaged_recipes", stopped)
    result = chatpipe("recipes", "ls")
    assert (result.code, result.out) == (130, "")
    assert result.err == "error: Stopped.\nThe same command keeps what is complete and continues.\n"


def test_a_stage_asks_beforehand_whether_its_folder_can_be_written_to(chatpipe, monkeypatch, make_model, chats):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # whoever runs the tests may be allowed everything
    said = chatpipe("sft", "--model", make_model("base", "GPT2LMHeadModel"), "--data", chats, "--out", "tuned/chat")
    assert said.code == 2
    assert "cannot be written to" in said.err
    assert "--out" in said.err


def test_a_folder_that_cannot_be_written_to(chatpipe):
    result = chatpipe("recipes", "copy", "pocket", "/proc/pocket.yaml")
    assert result.code == 1
    assert "/proc/pocket.yaml" in result.err
    assert "Traceback" not in result.err
