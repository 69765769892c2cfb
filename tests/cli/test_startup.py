import inspect
import itertools
import json
import subprocess
import sys

import pytest

from chatpipe.cli.app import app
from chatpipe.recipe import Recipe
from chatpipe.recipe.schema import TRAINING_STAGES

COMMANDS = [
    "run",
    *TRAINING_STAGES,
    "sample",
    "rank",
    "rankings",
    "chat",
    "eval",
    "check",
    "data",
    "recipes",
    "schema",
    "env",
]
SUBCOMMANDS = [[command] for command in COMMANDS] + [["recipes", command] for command in ("ls", "show", "copy")]
SUBCOMMANDS += [["data", "show"], ["rankings", "export"], ["rankings", "stats"]]


def modules_after(code: str) -> set[str]:
    """The packages that a fresh Python has loaded after `code`."""
    ending = "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_starts_without_anything_heavy():
    heavy = {"torch", "transformers", "pydantic", "numpy", "trl", "datasets", "yaml"}
    assert not modules_after("import chatpipe.cli.app") & heavy


def test_a_recipe_is_checked_without_torch():
    loaded = modules_after("from chatpipe.recipe import load_recipe; load_recipe('pocket')")
    assert "pydantic" in loaded
    assert not loaded & {"torch", "transformers", "numpy"}


def test_every_command_is_listed_with_its_help(chatpipe):
    result = chatpipe("--help")
    assert result.code == 0
    assert len(result.out.splitlines()) <= 80
    for command in COMMANDS:
        [line] = [line for line in result.out.splitlines() if line.split()[:1] == [command]]
        assert len(line.split()) > 2, f"{command} has no help"
    assert "chatpipe run pocket" in result.out
    shown = {command.name for command in app.registered_commands if not command.hidden}
    registered = shown | {group.name for group in app.registered_groups}
    assert registered - {None} <= set(COMMANDS)


@pytest.mark.parametrize("words", SUBCOMMANDS, ids=" ".join)
def test_the_help_of_each_command_fits_a_screen_and_explains_each_option(chatpipe, words):
    result = chatpipe(*words, "--help")
    assert result.code == 0
    lines = result.out.splitlines()
    assert len(lines) <= 80
    assert any(line.strip() and not line.lstrip().startswith("Usage") for line in lines[:4])
    options = itertools.takewhile(lambda line: not line.startswith("  Example:"), lines)
    for i, line in enumerate(options):
        option = line.split()[0] if line.startswith("  --") else None
        if option:
            told = f"{line} {lines[i + 1] if i + 1 < len(lines) else ''}"
            assert len(told.split()) > 3, f"{option} of {words} has no help"


@pytest.mark.parametrize("stage", TRAINING_STAGES)
def test_the_help_of_a_stage_has_an_example_and_every_option_of_the_contract(chatpipe, stage):
    out = chatpipe(stage, "--help").out
    assert f"Example: chatpipe {stage} " in out
    options = ["--model", "--data", "--out", "--fresh", "--strict", "--processes", "--launch", "--dry-run", "--json"]
    for option in options + ["--reward"] * (stage == "ppo"):
        assert option in out


def test_nothing_at_all_shows_the_help(chatpipe):
    result = chatpipe()
    assert "Usage" in result.out + result.err
    assert result.code in (0, 2)


def test_schema_prints_json_schema_for_editors(chatpipe):
    result = chatpipe("schema")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == Recipe.model_json_schema()


def test_env_prints_versions_and_how_two_processes_would_be_launched(chatpipe):
    facts = json.loads(chatpipe("env", "--json").out)
    assert {"chatpipe", "python", "torch", "transformers"} <= set(facts["versions"])
    assert "--multi_gpu --num_processes 2" in facts["launch_of_two"]
    assert facts["processes"] >= 1
    out = chatpipe("env").out
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in facts)


def test_every_command_is_documented_by_its_own_first_line():
    for command in app.registered_commands:
        assert inspect.getdoc(command.callback)
