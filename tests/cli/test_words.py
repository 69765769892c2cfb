import json

import pytest

from chatpipe.cli.options import Given, flags, tell_apart
from chatpipe.errors import UsageError

UNFORESEEN = "pretrain.tokenizer.pretrained=gpt2"
"""With a tokenizer of the hub, a dry run does not train for seconds to predict the time."""


@pytest.mark.parametrize(
    ("words", "recipe", "overrides", "accelerate"),
    [
        (None, None, [], []),
        ([], None, [], []),
        (["pocket"], "pocket", [], []),
        (["./a.yaml", "seed=1", "ppo.lam=0.9"], "./a.yaml", ["seed=1", "ppo.lam=0.9"], []),
        (["seed=1"], None, ["seed=1"], []),
        (["out="], None, ["out="], []),
        (["pocket", "out=a=b"], "pocket", ["out=a=b"], []),
        (["pocket", "--mixed_precision", "bf16"], "pocket", [], ["--mixed_precision", "bf16"]),
        (
            ["pocket", "seed=1", "--main_process_port", "0", "x=y"],
            "pocket",
            ["seed=1"],
            ["--main_process_port", "0", "x=y"],
        ),
        (["--num_machines", "2"], None, [], ["--num_machines", "2"]),
        (["seed=1", "-q"], None, ["seed=1"], ["-q"]),
        (["lr=3.yaml", "seed=1"], None, ["lr=3.yaml", "seed=1"], []),
    ],
)
def test_recipe_overrides_and_accelerate_flags_are_distinguished(words, recipe, overrides, accelerate):
    assert tell_apart(words) == Given(recipe, overrides, accelerate)


def test_a_file_with_an_equals_sign_in_its_name_is_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3.yaml").write_text("seed: 1\n")
    assert tell_apart(["lr=3.yaml", "seed=1"]) == Given("lr=3.yaml", ["seed=1"], [])
    assert tell_apart(["seed=1", "out=lr=3.yaml"]) == Given(None, ["seed=1", "out=lr=3.yaml"], [])


@pytest.mark.parametrize("words", [["pocket", "words"], ["pocket", "seed=1", "small-real"], ["seed=1", "pocket"]])
def test_a_word_that_is_neither_recipe_nor_override_is_refused(words):
    wrong = next(word for word in reversed(words) if "=" not in word)
    with pytest.raises(UsageError, match=f"'{wrong}' is not understood") as caught:
        tell_apart(words)
    assert "ppo.kl_coef=0.1" in caught.value.hint


def test_options_that_were_not_given_set_nothing():
    assert flags(sft__model="gpt2", sft__data=None, processes=2, launch=None) == {"sft.model": "gpt2", "processes": 2}
    assert flags(seed=0) == {"seed": 0}


def test_words_behind_two_dashes_go_to_accelerate(chatpipe):
    words = (
        "pocket",
        "seed=4",
        "pretrain.batch_size=8",
        UNFORESEEN,
        "--processes",
        "2",
        "--dry-run",
        "--json",
        "--",
        "--mixed_precision",
        "bf16",
    )
    result = chatpipe("pretrain", *words)
    assert result.code == 0, result.err
    shown = json.loads(result.out)
    assert shown["recipe"]["seed"] == {"value": 4, "origin": "command line"}
    [plan] = shown["stages"]
    assert plan["processes"] == 2
    assert plan["command"].startswith("accelerate launch --multi_gpu --num_processes 2 ")
    assert "--mixed_precision bf16 --module chatpipe step pretrain" in plan["command"]
    assert "--mixed_precision no" not in plan["command"]


def test_flags_that_one_process_does_not_use_are_named(chatpipe):
    words = ("pretrain", "pocket", UNFORESEEN, "--processes", "1", "--dry-run")
    assert chatpipe(*words).err == ""
    assert "accelerate's flags are not used" in chatpipe(*words, "--", "--mixed_precision", "bf16").err
