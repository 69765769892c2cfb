"""What the recipe or the files show is answered without torch, whose import alone takes longer than the answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import test_commands
import test_data_files
import test_model_folders
import test_recipes

from golden import GOLDEN, golden_lines

MODULES = (test_recipes, test_commands, test_data_files, test_model_folders)
EVERY_MISTAKE = [mistake for module in MODULES for mistake in module.CORPUS]

# Makes all mistakes one after the other, and prints for each how it ended and whether torch was loaded by then.
ONE_AFTER_THE_OTHER = """
import json, os, sys
from chatpipe.cli.app import main

for folder, words in json.load(sys.stdin):
    os.chdir(folder)
    sys.argv = ["chatpipe", *words]
    try:
        main()
    except SystemExit as end:
        print(json.dumps([words, int(end.code), "torch" in sys.modules]))
"""


def test_no_mistake_that_can_be_seen_beforehand_waits_for_torch(lay_out, work):
    # Which experiment trackers there are, only transformers knows, and it imports torch.
    told = [one for one in EVERY_MISTAKE if not one.begun and "tracker" not in one.name]
    commands = []
    for number, mistake in enumerate(told):
        lay_out(mistake, work / str(number))
        commands.append((str(work / str(number)), mistake.words))
    code = [sys.executable, "-c", ONE_AFTER_THE_OTHER]
    done = subprocess.run(code, input=json.dumps(commands), capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[words, 2, False] for _, words in commands]


def test_every_golden_text_is_that_of_one_mistake():
    names = [one.name for one in EVERY_MISTAKE if one.name in GOLDEN]
    assert sorted(names) == sorted(GOLDEN)


def test_the_console_script_prints_the_same(lay_out, work):
    [mistake] = [one for one in test_recipes.CORPUS if one.name == "a misspelt key in a file"]
    lay_out(mistake, work)
    script = Path(sys.executable).with_name("chatpipe")
    done = subprocess.run([script, *mistake.words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", golden_lines(mistake.name))
    debugging = {**os.environ, "CHATPIPE_DEBUG": "1"}
    debugged = subprocess.run([script, *mistake.words], capture_output=True, text=True, check=False, env=debugging)
    assert debugged.returncode == 2
    assert "Traceback" in debugged.stderr
