"""Wrong commands: no such recipe, no such stage, a folder in which something else lies."""

import pytest

from mistakes import Mistake

FILES = [
    Mistake(
        "a packaged recipe that there is not",
        "chatpipe run poket",
        "poket",
    ),
    Mistake(
        "a recipe file with a near name",
        "chatpipe run mien.yaml",
        "mine.yaml, mien.yaml -> mine.yaml, chatpipe recipes ls",
        {"mine.yaml": "seed: 0\n"},
    ),
    Mistake(
        "a recipe file without its ending",
        "chatpipe run mine",
        "mine.yaml, mine -> mine.yaml",
        {"mine.yaml": "seed: 0\n"},
    ),
    Mistake(
        "a recipe file like none that there is",
        "chatpipe sft recipes/chat.yaml",
        "recipes/chat.yaml -> chatpipe recipes ls",
    ),
    Mistake(
        "a single round of a run",
        "chatpipe run pocket out=run round=2",
        "round, 2, chatpipe ppo RECIPE round=2 -> rounds=N",
    ),
    Mistake(
        "a rater that is not there",
        "chatpipe run pocket out=run rank.rater=nobody:rates",
        "rank.rater, nobody:rates",
    ),
    Mistake(
        "a rater with the ending of its file",
        "chatpipe run pocket out=run rank.rater=mine.py:score",
        "rank.rater, mine.py:score -> mine:score",
        {"mine.py": "def score(prompts, completions): ...\n"},
    ),
    Mistake(
        "no recipe at all",
        "chatpipe run",
        " -> chatpipe run pocket, smol-rlhf, chatpipe recipes ls, --model, --data, --out",
    ),
    Mistake(
        "values without a recipe",
        "chatpipe run sft.model=model sft.data=chats.jsonl",
        "sft.model=model -> chatpipe run pocket, chatpipe recipes ls, --model",
    ),
    Mistake(
        "values to check without a recipe",
        "chatpipe check sft.model=model sft.data=chats.jsonl",
        "sft.model=model -> chatpipe check pocket, chatpipe recipes ls, --dry-run",
    ),
    Mistake(
        "data in place of a recipe",
        "chatpipe sft chats.jsonl --model model --out tuned",
        "chats.jsonl, .yaml -> --data chats.jsonl",
        {"chats.jsonl": "{}\n"},
    ),
    Mistake(
        "not YAML",
        "chatpipe run mine.yaml",
        "mine.yaml:2 -> chatpipe recipes show pocket",
        {"mine.yaml": "seed: [0\nsft: }\n"},
    ),
    Mistake(
        "tabs",
        "chatpipe run mine.yaml",
        "mine.yaml:2, \\t -> chatpipe recipes show pocket",
        {"mine.yaml": "sft:\n\tmax_length: 64\n"},
    ),
    Mistake(
        "a colon in a value",
        "chatpipe run mine.yaml",
        "mine.yaml:1 -> chatpipe recipes show pocket",
        {"mine.yaml": "out: runs: mine\n"},
    ),
    Mistake(
        "an empty file",
        "chatpipe run mine.yaml",
        "mine.yaml -> chatpipe recipes copy pocket",
        {"mine.yaml": ""},
    ),
    Mistake(
        "a sentence",
        "chatpipe run mine.yaml",
        "mine.yaml:1, key: value -> chatpipe recipes show pocket",
        {"mine.yaml": "Make me a model.\n"},
    ),
    Mistake(
        "a list",
        "chatpipe run mine.yaml",
        "mine.yaml:1, key: value -> chatpipe recipes show pocket",
        {"mine.yaml": "- seed: 0\n- sft\n"},
    ),
    Mistake(
        "a key that is given twice",
        "chatpipe run mine.yaml",
        "mine.yaml:3, mine.yaml:1",
        {"mine.yaml": "seed: 0\nsft:\nseed: 1\n"},
    ),
    Mistake(
        "a section that is given twice",
        "chatpipe run mine.yaml",
        "mine.yaml:3, mine.yaml:1",
        {"mine.yaml": "ppo:\n  lam: 1\nppo:\n  gamma: 1\n"},
    ),
    Mistake(
        "a file that is not text",
        "chatpipe run mine.yaml",
        "mine.yaml -> UTF-8",
        {"mine.yaml": b"seed: \xff\xfe"},
    ),
]

WORDS = [
    Mistake(
        "a recipe that leaves the data to you",
        "chatpipe run small-real",
        "pretrain.data -> pretrain.data=FILE",
    ),
    Mistake(
        "nobody to talk to",
        "chatpipe chat ./nowhere",
        "./nowhere",
    ),
    Mistake(
        "a stage that there is not",
        "chatpipe finetune pocket",
        "finetune, chatpipe --help",
    ),
    Mistake(
        "a misspelt stage",
        "chatpipe pretran pocket",
        "pretran, chatpipe --help -> pretrain",
    ),
    Mistake(
        "an option that there is not",
        "chatpipe ppo pocket --learning-rate 3",
        "chatpipe ppo --help -> --learning-rate",
    ),
    Mistake(
        "no number of processes",
        "chatpipe ppo pocket --processes none",
        "chatpipe ppo --help -> --processes",
    ),
    Mistake(
        "words behind the recipe",
        "chatpipe run pocket please",
        "please, KEY=VALUE -> ppo.kl_coef=0.1",
    ),
    Mistake(
        "nowhere to write to",
        "chatpipe sft --model gpt2 --data chats.jsonl",
        " -> --out",
    ),
    Mistake(
        "no data",
        "chatpipe sft --model gpt2 --out tuned",
        "sft.data -> sft.data=FILE",
    ),
    Mistake(
        "a stage before its parent",
        "chatpipe sft pocket",
        "runs/pocket/pretrain -> chatpipe pretrain, --model",
    ),
    Mistake(
        "ppo before its reward model",
        "chatpipe ppo pocket --model gpt2",
        "runs/pocket/rm -> chatpipe rm, --reward",
    ),
    Mistake(
        "a launch profile that there is not",
        "chatpipe run pocket --launch nothere.yaml --processes 2",
        "nothere.yaml -> accelerate config --config_file FILE",
    ),
    Mistake(
        "a launch profile that is none",
        "chatpipe pretrain pocket --launch words.yaml --processes 2",
        "words.yaml, distributed_type -> accelerate config --config_file FILE",
        {"words.yaml": "a sentence"},
    ),
    Mistake(
        "DeepSpeed",
        "chatpipe pretrain pocket --processes 2 -- --use_deepspeed",
        " -> -- --use_fsdp --fsdp_version 2, --launch",
    ),
]

FOLDERS = [
    Mistake(
        "an output folder of a variable that is not set",
        "chatpipe sft --model gpt2 --data pocketworld --out ''",
        "--out",
    ),
    Mistake(
        "a run's folder of a variable that is not set",
        "chatpipe run pocket out=",
        "out -> chatpipe schema",
    ),
    Mistake(
        "a folder below a file",
        "chatpipe sft --model gpt2 --data pocketworld --out notes.txt/tuned",
        "notes.txt -> --out",
        {"notes.txt": "mine"},
    ),
    Mistake(
        "a run over something else, which it is to delete",
        "chatpipe run pocket out=thesis --fresh",
        "out, thesis -> out=",
        {"thesis/chapter-1.md": "years of work"},
    ),
    Mistake(
        "a stage over something else",
        "chatpipe pretrain pocket --out thesis",
        "thesis -> --out",
        {"thesis/chapter-1.md": "years of work"},
    ),
    Mistake(
        "a folder that is a file",
        "chatpipe run pocket out=notes.txt",
        "notes.txt, out -> --out",
        {"notes.txt": "mine"},
    ),
    Mistake(
        "a stage's folder that is a file",
        "chatpipe pretrain pocket --out notes.txt",
        "notes.txt -> --out",
        {"notes.txt": "mine"},
    ),
    Mistake(
        "a folder of something else",
        "chatpipe run pocket out=thesis",
        "out, thesis -> out=",
        {"thesis/chapter-1.md": "years of work"},
    ),
    Mistake(
        "a folder of something else that is to be deleted",
        "chatpipe pretrain pocket --out thesis --fresh",
        "thesis",
        {"thesis/chapter-1.md": "years of work"},
    ),
    Mistake(
        "a stage's folder in the run that is something else",
        "chatpipe pretrain pocket out=thesis",
        "out, thesis/pretrain -> --out",
        {"thesis/pretrain/chapter-1.md": "years of work"},
    ),
    Mistake(
        "another run",
        "chatpipe pretrain --data a.txt out=run seed=4",
        "out, seed, 3, 4 -> chatpipe run ... --fresh",
        {"run/recipe.yaml": "seed: 3\n", "a.txt": "A line of text.\n"},
    ),
    Mistake(
        "a run whose recipe is damaged",
        "chatpipe run pocket out=run",
        "run/recipe.yaml:1, <stream end> -> chatpipe recipes show pocket",
        {"run/recipe.yaml": "seed: ["},
    ),
    Mistake(
        "a folder that holds the stage's own data",
        "chatpipe pretrain --data texts/a.txt --out texts",
        "texts/a.txt, texts -> --out",
        {"texts/a.txt": "A line of text.\n"},
    ),
    Mistake(
        "the folder into which the run writes its rankings",
        "chatpipe rm pocket out=run rm.data=run/rank --model gpt2",
        "run/rank/rankings.jsonl, out, rm.data, run/rank",
        {"run/rank/rankings.jsonl": "{}\n"},
    ),
]

RANKINGS = [
    Mistake(
        "statistics of a store that there is not",
        "chatpipe rankings stats r.db",
        "r.db -> --store",
    ),
    Mistake(
        "statistics of what is no store",
        "chatpipe rankings stats r.jsonl --json",
        "r.jsonl -> --store",
        {"r.jsonl": '{"prompt": "Question?", "responses": ["a", "b"], "ranks": [1, 2]}\n'},
    ),
    Mistake(
        "an export of what is no store",
        "chatpipe rankings export r.jsonl -o out.jsonl",
        "r.jsonl -> --store",
        {"r.jsonl": '{"prompt": "Question?", "responses": ["a", "b"], "ranks": [1, 2]}\n'},
    ),
    Mistake(
        "an export from a folder",
        "chatpipe rankings export runs -o out.jsonl --pairs",
        "runs -> --store",
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
    changed = "base, pretrain.learning_rate, 0.0006, 0.001, pretrain.max_steps, 1, 2 -> --fresh"
    check(Mistake("another rate", f"{PRETRAIN} pretrain.max_steps=2 pretrain.learning_rate=1e-3", changed, text))
