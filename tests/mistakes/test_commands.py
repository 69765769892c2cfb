"""Wrong commands: no such recipe, no such stage, a folder in which something else lies."""

import pytest

from mistakes import Mistake

FILES = [
    Mistake(
        "a packaged recipe that there is not",
        "chatpipe run poket",
        """
        error: There is no recipe called poket.
        Did you mean pocket? A file of your own is given with its .yaml.
        """,
    ),
    Mistake(
        "a recipe file with a near name",
        "chatpipe run mien.yaml",
        """
        error: There is no recipe file mien.yaml.
        Did you mean mine.yaml? `chatpipe recipes ls` lists the packaged ones.
        """,
        {"mine.yaml": "seed: 0\n"},
    ),
    Mistake(
        "a recipe file without its ending",
        "chatpipe run mine",
        """
        error: There is no recipe called mine.
        Give your file with its ending: mine.yaml.
        """,
        {"mine.yaml": "seed: 0\n"},
    ),
    Mistake(
        "a recipe file like none that there is",
        "chatpipe sft recipes/chat.yaml",
        """
        error: There is no recipe file recipes/chat.yaml.
        `chatpipe recipes ls` lists the packaged ones.
        """,
    ),
    Mistake(
        "a single round of a run",
        "chatpipe run pocket out=run round=2",
        """
        error: round = 2 is for one stage alone, such as `chatpipe ppo RECIPE round=2`.
        A run takes all its rounds: rounds=N.
        """,
    ),
    Mistake(
        "a rater that is not there",
        "chatpipe run pocket out=run rank.rater=nobody:rates",
        """
        error: rank.rater = nobody:rates cannot be imported: there is no file of a module nobody.
        Write it as module:function, seen from this folder.
        """,
    ),
    Mistake(
        "no recipe at all",
        "chatpipe run",
        """
        error: Which recipe?
        Try `chatpipe run pocket`; `chatpipe recipes ls` lists them.
        """,
    ),
    Mistake(
        "not YAML",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml:2: this is not YAML: expected ',' or ']', but got ':'.
        See `chatpipe recipes show pocket`.
        """,
        {"mine.yaml": "seed: [0\nsft: }\n"},
    ),
    Mistake(
        "tabs",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml:2: this is not YAML: found character '\\t' that cannot start any token.
        See `chatpipe recipes show pocket`.
        """,
        {"mine.yaml": "sft:\n\tmax_length: 64\n"},
    ),
    Mistake(
        "a colon in a value",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml:1: this is not YAML: mapping values are not allowed here.
        See `chatpipe recipes show pocket`.
        """,
        {"mine.yaml": "out: runs: mine\n"},
    ),
    Mistake(
        "an empty file",
        "chatpipe run mine.yaml",
        """
        error: The recipe mine.yaml is empty.
        Start from a packaged one: `chatpipe recipes copy pocket`.
        """,
        {"mine.yaml": ""},
    ),
    Mistake(
        "a sentence",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml:1: a recipe consists of `key: value` lines.
        See `chatpipe recipes show pocket`.
        """,
        {"mine.yaml": "Make me a model.\n"},
    ),
    Mistake(
        "a list",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml:1: a recipe consists of `key: value` lines.
        See `chatpipe recipes show pocket`.
        """,
        {"mine.yaml": "- seed: 0\n- sft\n"},
    ),
    Mistake(
        "a key that stands twice",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml:3: seed stands here twice; first at mine.yaml:1.
        Remove one of them.
        """,
        {"mine.yaml": "seed: 0\nsft:\nseed: 1\n"},
    ),
    Mistake(
        "a section that stands twice",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml:3: ppo stands here twice; first at mine.yaml:1.
        Remove one of them.
        """,
        {"mine.yaml": "ppo:\n  lam: 1\nppo:\n  gamma: 1\n"},
    ),
    Mistake(
        "a file that is not text",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml is not a text file.
        Save it as UTF-8; a recipe is YAML.
        """,
        {"mine.yaml": b"seed: \xff\xfe"},
    ),
]

WORDS = [
    Mistake(
        "a recipe that leaves the data to you",
        "chatpipe run small-real",
        """
        error: pretrain.data is not given.
        Give a file: pretrain.data=FILE, or in the recipe.
        """,
    ),
    Mistake(
        "nobody to talk to",
        "chatpipe chat ./nowhere",
        """
        error: MODEL = ./nowhere: there is no such folder.
        Give a model folder or a hub id.
        """,
    ),
    Mistake(
        "a stage that there is not",
        "chatpipe finetune pocket",
        """
        Usage: chatpipe [OPTIONS] COMMAND [ARGS]...
        Try 'chatpipe --help' for help.

        Error: No such command 'finetune'.
        """,
    ),
    Mistake(
        "a misspelt stage",
        "chatpipe pretran pocket",
        """
        Usage: chatpipe [OPTIONS] COMMAND [ARGS]...
        Try 'chatpipe --help' for help.

        Error: No such command 'pretran'. Did you mean 'pretrain'?
        """,
    ),
    Mistake(
        "an option that there is not",
        "chatpipe ppo pocket --learning-rate 3",
        """
        Usage: chatpipe ppo [OPTIONS] [[RECIPE] [KEY=VALUE ...]]...
        Try 'chatpipe ppo --help' for help.

        Error: No such option: --learning-rate
        """,
    ),
    Mistake(
        "no number of processes",
        "chatpipe ppo pocket --processes none",
        """
        Usage: chatpipe ppo [OPTIONS] [[RECIPE] [KEY=VALUE ...]]...
        Try 'chatpipe ppo --help' for help.

        Error: Invalid value for '--processes': Input should be a valid integer, unable to parse string as an integer
        """,
    ),
    Mistake(
        "words behind the recipe",
        "chatpipe run pocket please",
        """
        error: 'please' is not understood: after the recipe come KEY=VALUE pairs.
        Example: ppo.kl_coef=0.1
        """,
    ),
    Mistake(
        "nowhere to write to",
        "chatpipe sft --model gpt2 --data chats.jsonl",
        """
        error: Where should sft write to?
        Give a recipe, or a folder with --out.
        """,
    ),
    Mistake(
        "no data",
        "chatpipe sft --model gpt2 --out tuned",
        """
        error: sft.data is not given.
        Give a file: sft.data=FILE, or in the recipe.
        """,
    ),
    Mistake(
        "a stage before its parent",
        "chatpipe sft pocket",
        """
        error: sft starts from what pretrain makes, but there is no runs/pocket/pretrain yet.
        Run `chatpipe pretrain` first, or give a model with --model.
        """,
    ),
    Mistake(
        "ppo before its reward model",
        "chatpipe ppo pocket --model gpt2",
        """
        error: ppo starts from what rm makes, but there is no runs/pocket/rm yet.
        Run `chatpipe rm` first, or give a model with --reward.
        """,
    ),
    Mistake(
        "a launch profile that there is not",
        "chatpipe run pocket --launch nothere.yaml --processes 2",
        """
        error: launch = nothere.yaml cannot be read: No such file or directory.
        Give what `accelerate config --config_file FILE` wrote.
        """,
    ),
    Mistake(
        "a launch profile that is none",
        "chatpipe pretrain pocket --launch words.yaml --processes 2",
        """
        error: launch = words.yaml is not an accelerate config file: it has no distributed_type.
        Give what `accelerate config --config_file FILE` wrote.
        """,
        {"words.yaml": "a sentence"},
    ),
    Mistake(
        "DeepSpeed",
        "chatpipe pretrain pocket --processes 2 -- --use_deepspeed",
        """
        error: DeepSpeed is not supported: its resume points are not complete.
        Larger models use FSDP: `-- --use_fsdp --fsdp_version 2`, or such a --launch profile.
        """,
    ),
]

FOLDERS = [
    Mistake(
        "an output folder of a variable that is not set",
        "chatpipe sft --model gpt2 --data pocketworld --out ''",
        """
        error: --out is empty.
        Give a folder, or leave it out.
        """,
    ),
    Mistake(
        "a run's folder of a variable that is not set",
        "chatpipe run pocket out=",
        """
        error: out = None: input should be a valid string.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a folder below a file",
        "chatpipe sft --model gpt2 --data pocketworld --out notes.txt/tuned",
        """
        error: notes.txt is a file.
        Choose a folder with out= or --out.
        """,
        {"notes.txt": "mine"},
    ),
    Mistake(
        "a run over something else, which it is to delete",
        "chatpipe run pocket out=thesis --fresh",
        """
        error: out = thesis holds something that chatpipe did not make.
        Choose another folder: out=.
        """,
        {"thesis/chapter-1.md": "years of work"},
    ),
    Mistake(
        "a stage over something else",
        "chatpipe pretrain pocket --out thesis",
        """
        error: thesis holds something that chatpipe did not make.
        Choose another folder with out= or --out.
        """,
        {"thesis/chapter-1.md": "years of work"},
    ),
    Mistake(
        "a folder that is a file",
        "chatpipe run pocket out=notes.txt",
        """
        error: notes.txt is a file.
        Choose a folder with out= or --out.
        """,
        {"notes.txt": "mine"},
    ),
    Mistake(
        "a stage's folder that is a file",
        "chatpipe pretrain pocket --out notes.txt",
        """
        error: notes.txt is a file.
        Choose a folder with out= or --out.
        """,
        {"notes.txt": "mine"},
    ),
    Mistake(
        "a folder of something else",
        "chatpipe run pocket out=thesis",
        """
        error: out = thesis holds something that chatpipe did not make.
        Choose another folder: out=.
        """,
        {"thesis/chapter-1.md": "years of work"},
    ),
    Mistake(
        "a folder of something else that is to be deleted",
        "chatpipe pretrain pocket --out thesis --fresh",
        """
        error: thesis holds something that chatpipe did not make; it is not deleted.
        Choose another folder.
        """,
        {"thesis/chapter-1.md": "years of work"},
    ),
    Mistake(
        "a stage's folder in the run that is something else",
        "chatpipe pretrain pocket out=thesis",
        """
        error: thesis/pretrain holds something that chatpipe did not make.
        Choose another folder with out= or --out.
        """,
        {"thesis/pretrain/chapter-1.md": "years of work"},
    ),
    Mistake(
        "another run",
        "chatpipe pretrain --data a.txt out=run seed=4",
        """
        error: run holds another run:
        seed was 3, is 4 now
        Choose another folder with out=, or `chatpipe run ... --fresh` (the old run is deleted).
        """,
        {"run/recipe.yaml": "seed: 3\n", "a.txt": "A line of text.\n"},
    ),
    Mistake(
        "a run whose recipe is damaged",
        "chatpipe run pocket out=run",
        """
        error: run/recipe.yaml:1: this is not YAML: expected the node content, but found '<stream end>'.
        See `chatpipe recipes show pocket`.
        """,
        {"run/recipe.yaml": "seed: ["},
    ),
    Mistake(
        "a folder that holds the stage's own data",
        "chatpipe pretrain --data texts/a.txt --out texts",
        """
        error: texts cannot be the folder of pretrain: it holds texts/a.txt, which pretrain reads.
        Choose another folder with out= or --out.
        """,
        {"texts/a.txt": "A line of text.\n"},
    ),
    Mistake(
        "the folder into which the run writes its rankings",
        "chatpipe rm pocket out=run rm.data=run/rankings --model gpt2",
        """
        error: rm.data = run/rankings is, or holds, run/rankings/round-1.jsonl, into which this run writes its rankings.
        Copy what you need to another place and give the copy, or leave rm.data out.
        """,
        {"run/rankings/round-1.jsonl": "{}\n"},
    ),
]

RANKINGS = [
    Mistake(
        "statistics of a store that there is not",
        "chatpipe rankings stats r.db",
        """
        error: There is no store r.db.
        Make one: chatpipe rank FILE --store STORE.
        """,
    ),
    Mistake(
        "statistics of what is no store",
        "chatpipe rankings stats r.jsonl --json",
        """
        error: r.jsonl is no store of rankings.
        Give the file that chatpipe rank made (--store STORE).
        """,
        {"r.jsonl": '{"prompt": "Question?", "responses": ["a", "b"], "ranks": [1, 2]}\n'},
    ),
    Mistake(
        "an export of what is no store",
        "chatpipe rankings export r.jsonl -o out.jsonl",
        """
        error: r.jsonl is no store of rankings.
        Give the file that chatpipe rank made (--store STORE).
        """,
        {"r.jsonl": '{"prompt": "Question?", "responses": ["a", "b"], "ranks": [1, 2]}\n'},
    ),
    Mistake(
        "an export from a folder",
        "chatpipe rankings export runs -o out.jsonl --pairs",
        """
        error: There is no store runs.
        Make one: chatpipe rank FILE --store STORE.
        """,
        {"runs/": ""},
    ),
]

CORPUS = [*FILES, *WORDS, *FOLDERS, *RANKINGS]


@pytest.mark.parametrize("mistake", CORPUS, ids=lambda mistake: mistake.name)
def test_a_wrong_command(mistake, check):
    check(mistake)


PRETRAIN = (
    "chatpipe pretrain --data a.txt --out base pretrain.tokenizer.vocab_size=300 pretrain.block_size=16 "
    "pretrain.batch_size=2 pretrain.architecture.n_layer=1 pretrain.bf16=false"
)


def test_a_recipe_that_changed_after_the_stage_was_made(chatpipe, work, check):
    text = {"a.txt": "".join(f"Line {i} of the text.\n" for i in range(40))}
    before = Mistake("nothing wrong", f"{PRETRAIN} pretrain.max_steps=1", "", text)
    (work / "a.txt").write_text(text["a.txt"])
    assert chatpipe(*before.words).code == 0
    changed = """
        error: base holds another pretrain:
        pretrain.learning_rate was 0.0006, is 0.001 now
        pretrain.max_steps was 1, is 2 now
        `chatpipe pretrain ... --fresh` makes it anew (the old one is deleted), or use another folder.
        """
    check(Mistake("another rate", f"{PRETRAIN} pretrain.max_steps=2 pretrain.learning_rate=1e-3", changed, text))
