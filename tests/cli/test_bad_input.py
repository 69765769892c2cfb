"""Whatever a user can get wrong: exit 2, at most eight lines with the place and the remedy, and nothing written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatpipe.pipeline import write_recipe
from chatpipe.recipe import load_recipe


@pytest.fixture
def models(make_model) -> None:
    """A chat model and a reward model."""
    make_model("chat", "GPT2LMHeadModel")
    make_model("reward", "GPT2ForSequenceClassification")


def test_a_misspelt_key_on_the_command_line(refused):
    told = refused("ppo", "pocket", "ppo.learning_ratee=1e-5")
    assert told.startswith("error: there is no key ppo.learning_ratee; did you mean ppo.learning_rate?\n")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ppo:\n  lam: 1\n  learning_ratee: 1e-5\n", ("mine.yaml:3: ", "ppo.learning_ratee", "ppo.learning_rate?")),
        ("rm:\n  batch_size: many\n", ("mine.yaml:2: rm.batch_size = 'many'", "integer")),
        ("seed: 0\nsft:\nseed: 1\n", ("mine.yaml:3: seed stands here twice; first at mine.yaml:1.", "Remove")),
        ("seed: [0\nsft: }\n", ("mine.yaml:2: this is not YAML", "recipes show pocket")),
        ("", ("The recipe mine.yaml is empty.", "recipes copy pocket")),
        ("a sentence\n", ("mine.yaml:1: a recipe consists of `key: value` lines",)),
    ],
)
@pytest.mark.parametrize("command", ["run", "ppo"])
def test_a_recipe_file_that_is_wrong(refused, work, command, text, parts):
    (work / "mine.yaml").write_text(text)
    told = refused(command, "mine.yaml")
    for part in parts:
        assert part in told


def test_a_recipe_that_does_not_exist(refused):
    assert "There is no recipe called poket.\nDid you mean pocket?" in refused("run", "poket")
    assert "There is no recipe file my.yaml." in refused("sft", "my.yaml")
    assert "Which recipe?\nTry `chatpipe run pocket`" in refused("run")


def test_words_that_are_neither_recipe_nor_override(refused):
    told = refused("run", "pocket", "please")
    assert "'please' is not understood: after the recipe come KEY=VALUE pairs.\nExample: ppo.kl_coef=0.1" in told


def test_an_option_that_does_not_exist(refused):
    assert "No such option: --learning-rate" in refused("ppo", "pocket", "--learning-rate", "3")
    assert "--processes" in refused("ppo", "pocket", "--processes", "none")


def test_a_stage_that_is_not_told_where_to_write(refused, chats):
    told = refused("sft", "--model", "gpt2", "--data", chats)
    assert "Where should sft write to?\nGive a recipe, or a folder with --out." in told


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("no.jsonl", None, ("sft.data: there is no file no.jsonl.", "path")),
        ("folder", "", ("sft.data: folder holds no file of a kind that can be read: .txt, .csv, .json,",)),
        ("empty.jsonl", "", ("sft.data: empty.jsonl is empty.",)),
        ("blank.jsonl", "\n\n", ("sft.data: blank.jsonl holds no rows.",)),
        (
            "bad.jsonl",
            '{"messages": []}\n{"messages": [}\n',
            ("2 of 2 rows", "this line is not JSON (first at bad.jsonl:2", "column 15"),
        ),
        ("bad.json", '[\n{"a": 1},\n{"a" 2}]', ("bad.json:3: this is not JSON",)),
        ("own.jsonl", '{"q": "x", "a": "y"}\n', ("own.jsonl:1: sft.data does not know what these fields mean: a, q.",)),
        (
            "text.jsonl",
            '{"text": "x"}\n',
            ("sft.data: text.jsonl is text, which cannot be read as conversations", "pretrain.data reads"),
        ),
        ("table.pdf", "a,b\n", ("sft.data: table.pdf is not one of the files that can be read: .txt, .csv,",)),
        ("table.csv", "a,b\n", ("sft.data: table.csv holds no rows.",)),
    ],
)
def test_data_that_cannot_be_read(refused, work, models, name, content, parts):
    if name == "folder":
        (work / name).mkdir()
    elif content is not None:
        (work / name).write_text(content)
    told = refused("sft", "--model", "chat", "--data", name, "--out", "tuned")
    run_told = refused("run", "pocket", f"sft.data={name}", "out=run")
    for part in parts:
        assert part in told
        assert part in run_told


def test_data_that_is_not_given(refused, models):
    assert "sft.data is not given.\nGive a file: sft.data=FILE" in refused("sft", "--model", "chat", "--out", "tuned")
    assert "pretrain.data is not given." in refused("run", "small-real")


def test_rankings_of_the_built_in_world(refused):
    told = refused("run", "pocket", "rm.data=pocketworld", "out=run")
    assert "rm.data: the built-in world has no rankings of its own.\nLeave rm.data out" in told


def test_a_folder_that_is_no_model(refused, work, chats):
    (work / "folder").mkdir()
    told = refused("sft", "--model", "folder", "--data", chats, "--out", "tuned")
    assert "sft.model = folder is not a model folder: it has no config.json." in told
    told = refused("sft", "--model", "./nowhere", "--data", chats, "--out", "tuned")
    assert "sft.model = ./nowhere: there is no such folder." in told
    assert "MODEL = ./nowhere: there is no such folder." in refused("chat", "./nowhere")


def test_a_model_without_weights(refused, work, chats):
    (work / "half").mkdir()
    (work / "half" / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    told = refused("sft", "--model", "half", "--data", chats, "--out", "tuned")
    assert "sft.model = half is not a whole model folder: it has no weights." in told


def test_a_model_of_the_wrong_kind(refused, chats, models):
    told = refused("ppo", "--model", "reward", "--reward", "reward", "--data", chats, "--out", "tuned")
    assert "ppo.model = reward is a reward model, but a causal language model is needed there." in told
    told = refused("ppo", "--model", "chat", "--reward", "chat", "--data", chats, "--out", "tuned")
    assert "ppo.reward_model = chat is a causal language model, but a reward model is needed there." in told
    assert "chatpipe rm" in told
    assert "MODEL = reward is a reward model" in refused("chat", "reward")


def test_a_stage_before_its_parent(refused):
    told = refused("sft", "pocket")
    assert "sft starts from what pretrain makes, but there is no runs/pocket/pretrain yet." in told
    assert "Run `chatpipe pretrain` first, or give a model with --model." in told
    assert "there is no runs/pocket/rm yet" in refused("ppo", "pocket", "--model", "gpt2")


def test_an_out_folder_that_holds_something_else(refused, work):
    (work / "thesis").mkdir()
    (work / "thesis" / "chapter-1.md").write_text("years of work")
    told = refused("run", "pocket", "out=thesis")
    assert "out = thesis holds something that chatpipe did not make." in told
    assert "did not make" in refused("run", "pocket", "out=thesis", "--fresh")
    assert "did not make" in refused("pretrain", "pocket", "--out", "thesis")
    assert "it is not deleted" in refused("pretrain", "pocket", "--out", "thesis", "--fresh")


def test_an_out_folder_that_is_a_file(refused, chats):
    assert f"out = {chats} is a file." in refused("run", "pocket", f"out={chats}")
    assert f"{chats} is a file." in refused("pretrain", "pocket", "--out", chats)


def test_an_out_folder_that_holds_another_run(refused, work):
    write_recipe(load_recipe("pocket", ["seed=3"]).recipe, work / "runs" / "pocket" / "recipe.yaml")
    told = refused("run", "pocket", "seed=4")
    assert "runs/pocket holds another run:\nseed was 3, is 4 now\n" in told
    assert "out=" in told
    assert "--fresh" in told


def test_a_recipe_file_in_the_run_that_is_damaged(refused, work):
    (work / "run").mkdir()
    (work / "run" / "recipe.yaml").write_text("seed: [")
    assert "run/recipe.yaml:1: this is not YAML" in refused("run", "pocket", "out=run")


def test_too_little_data_is_answered_without_torch(work, listing, models):
    (work / "few.jsonl").write_text('{"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}\n' * 3)
    before = listing()
    done = in_a_process_of_its_own("rm", "--model", "chat", "--data", "few.jsonl", "--out", "reward")
    assert (done.returncode, done.stdout) == (2, "loaded:\n")
    assert "rm.data = few.jsonl holds too little: 3 rows to train on, 0 held out." in done.stderr
    assert listing() == before


def test_a_character_that_is_none_is_named_with_its_line(refused, work, models):
    turn = '[{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "%s"}]'
    (work / "half.jsonl").write_text("".join('{"messages": %s}\n' % (turn % text) for text in ("Yes.", "\\ud800")))
    told = refused("sft", "--model", "chat", "--data", "half.jsonl", "--out", "tuned")
    assert "1 row: a text holds half a character, a lone surrogate (first at half.jsonl:2)" in told


def test_a_model_that_is_neither_here_nor_in_the_cache(refused):
    told = refused("chat", "no-such-model-1")
    assert "no-such-model-1 is neither a folder nor in the cache of the hub, and HF_HUB_OFFLINE forbids" in told
    assert "unset HF_HUB_OFFLINE" in told


def test_weights_that_were_cut_off(refused, work, chats, make_model):
    make_model("cut", "GPT2LMHeadModel")
    (work / "cut" / "model.safetensors").write_bytes(b"\x02\0\0")
    told = refused("sft", "--model", "cut", "--data", chats, "--out", "tuned", "--processes", "1", "--dry-run")
    assert "cut/model.safetensors is not a whole safetensors file." in told


def test_a_launch_profile_that_does_not_exist_or_is_none(refused, work):
    told = refused("run", "pocket", "--launch", "nothere.yaml", "--processes", "2")
    assert "launch = nothere.yaml cannot be read: No such file or directory." in told
    (work / "words.yaml").write_text("a sentence")
    told = refused("pretrain", "pocket", "--launch", "words.yaml", "--processes", "2")
    assert "launch = words.yaml is not an accelerate config file" in told


@pytest.mark.parametrize(("words", "part"), [(("--use_deepspeed",), "DeepSpeed is not"), (("--use-fsdp",), "no GPU")])
def test_ways_of_training_that_there_are_not_here(refused, words, part, monkeypatch):
    monkeypatch.setattr("chatpipe.training.launch._may_have_gpu", lambda: False)
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


def test_a_batch_that_the_processes_cannot_share(refused):
    told = refused("run", "pocket", "pretrain.batch_size=32", "--processes", "3")
    assert "pretrain.batch_size = 32 cannot be shared by 3 processes.\nMake it a multiple of 3." in told
    words = ("ppo.batch_size=64", "ppo.per_device_train_batch_size=7", "--processes", "1")
    told = refused("run", "pocket", *words)
    assert "ppo.per_device_train_batch_size = 7 does not divide the 64 sequences" in told


def in_a_process_of_its_own(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line, and prints the heavy packages that it loaded behind what it says."""
    code = (
        "import sys, chatpipe.cli.app as app\n"
        "try:\n    app.main()\n"
        "finally:\n    print('loaded:', *sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


def test_a_wrong_recipe_or_wrong_data_is_answered_without_torch(work, listing, chats, models):
    (work / "bad.jsonl").write_text('{"messages": []}\n{oops}\n')
    before = listing()
    for words, part in (
        (("ppo", "pocket", "ppo.learning_ratee=1e-5"), "did you mean ppo.learning_rate?"),
        (
            ("sft", "--model", "chat", "--data", "bad.jsonl", "--out", "tuned"),
            "this line is not JSON (first at bad.jsonl:2",
        ),
        (("ppo", "--model", "reward", "--reward", "chat", "--data", chats, "--out", "x"), "ppo.model = reward is a"),
        (("run", "pocket", "pretrain.batch_size=32", "--processes", "3"), "cannot be shared by 3 processes"),
    ):
        done = in_a_process_of_its_own(*words)
        assert (done.returncode, done.stdout) == (2, "loaded:\n")
        assert part in done.stderr
        assert len(done.stderr.splitlines()) <= 8
    assert listing() == before


def test_the_console_script_exits_with_the_code_of_the_contract(work, listing):
    script = Path(sys.executable).with_name("chatpipe")
    done = subprocess.run([script, "run", "poket"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: There is no recipe called poket.\n")
    environment = {**os.environ, "CHATPIPE_DEBUG": "1"}
    debugged = subprocess.run([script, "run", "poket"], capture_output=True, text=True, check=False, env=environment)
    assert debugged.returncode == 2
    assert "Traceback" in debugged.stderr
    assert listing() == {}


def test_a_rank_leaves_its_error_for_the_parent_that_launched_it(chatpipe, work, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("CHATPIPE_ERROR_FILE", str(work / "error.json"))
    result = chatpipe("sft", "pocket", "sft.max_lenght=3")
    assert (result.code, result.err) == (2, "")
    told = json.loads((work / "error.json").read_text())
    assert "did you mean sft.max_length?" in told["message"]
    assert told["exit_code"] == 2


def test_one_stage_leaves_a_folder_that_is_not_its_run_s_as_it_was(refused, work):
    (work / "thesis" / "pretrain").mkdir(parents=True)
    (work / "thesis" / "pretrain" / "chapter-1.md").write_text("years of work")
    assert "did not make" in refused("pretrain", "pocket", "out=thesis")


@pytest.mark.parametrize(
    "override, parts",
    [
        (
            "pretrain.block_size=256",
            ("pretrain.block_size = 256, but the model reads 128 tokens at most.", "n_positions"),
        ),
        ("pretrain.architecture.n_head=3", ("n_embd = 128 cannot be shared by n_head = 3 heads",)),
        ("pretrain.architecture.preset=gpt3", ("there is no preset 'gpt3'; there are gpt2-1m",)),
        ("pretrain.objective=masked", ("pretrain.objective = masked, but", "family = gpt2 learns the causal one")),
        ("pretrain.architecture.family=modernbert", ("pretrain.objective = causal, but", "learns the masked one")),
        ("pretrain.optimizer=sgd", ("pretrain.optimizer = 'sgd'", "'adamw' or 'muon'")),
        ("pretrain.decay_steps=10", ("decay_steps and lr_scheduler_type: warmup_stable_decay belong together",)),
    ],
)
def test_a_new_model_that_could_not_be(refused, override, parts):
    told = refused("pretrain", "pocket", override)
    for part in parts:
        assert part in told


def test_a_run_cannot_fine_tune_an_encoder(refused):
    told = refused(
        "run", "pocket", "pretrain.objective=masked", "pretrain.architecture={preset: encoder-1m}", "sft.model=null"
    )
    assert "sft starts from a causal language model; pretrain.objective = masked makes an encoder." in told


def test_a_tokenizer_larger_than_the_model_s_vocabulary(chatpipe, work):
    (work / "text.txt").write_text("A line of text.\n" * 400)
    told = chatpipe("pretrain", "--data", "text.txt", "--out", "base", "pretrain.architecture={vocab_size: 100}")
    assert told.code == 2
    assert "tokens, but pretrain.architecture.vocab_size = 100" in told.err
    assert not (work / "base" / "config.json").exists()


def test_what_does_not_fit_into_memory_is_refused_before_it_is_tried(refused):
    told = refused("pretrain", "gpt2-124m", "pretrain.per_device_train_batch_size=512", "--dry-run", "--processes", "1")
    assert "GiB of memory, but this" in told
    assert "logits" in told
    assert "pretrain.per_device_train_batch_size to" in told
