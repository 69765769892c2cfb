"""The whole text of some twenty errors: what a user reads, word for word. All other mistakes are held to facts."""

import textwrap

GOLDEN = {
    "a misspelt key in a file": """
        error: mine.yaml:5: there is no key ppo.learning_ratee; did you mean ppo.learning_rate?
        `chatpipe schema` lists every key.
    """,
    "several at once": """
        error: mine.yaml:6: sft.learning_rate = 'fast': input should be a valid number, unable to parse string as a number.
        mine.yaml:3: there is no key ppo.lamm; did you mean ppo.lam?
        mine.yaml:4: there is no key ppo.gama; did you mean ppo.gamma?
        mine.yaml:1: there is no key sed; did you mean seed?
        `chatpipe schema` lists every key.
    """,
    "more than fit eight lines": """
        error: mine.yaml:2: there is no key ppo.unheard_of_0.
        mine.yaml:3: there is no key ppo.unheard_of_1.
        mine.yaml:4: there is no key ppo.unheard_of_2.
        mine.yaml:5: there is no key ppo.unheard_of_3.
        mine.yaml:6: there is no key ppo.unheard_of_4.
        mine.yaml:7: there is no key ppo.unheard_of_5.
        ... and 14 more.
        `chatpipe schema` lists every key.
    """,
    "a misspelt section": """
        error: there is no key pretrian; did you mean pretrain?
        `chatpipe schema` lists every key.
    """,
    "isolated documents for an encoder": """
        error: pretrain: documents: isolate is for objective: causal; an encoder reads across documents.
        `chatpipe schema` lists every key.
    """,
    "a value for a section": """
        error: ppo = 3: input should be a valid dictionary or instance of Ppo.
        `chatpipe schema` lists every key.
    """,
    "a loss without its weight": """
        error: ppo: kl_loss and kl_loss_coef belong together.
        `chatpipe schema` lists every key.
    """,
    "no recipe at all": """
        error: Which recipe?
        Try `chatpipe run pocket`, or `smol-rlhf` for a model of your own; `chatpipe recipes ls` lists them.
        A stage alone needs none: chatpipe sft --model FOLDER --data FILE --out DIR [--dry-run].
    """,
    "nowhere to write to": """
        error: Where should sft write to?
        Give a recipe, or a folder with --out.
    """,
    "DeepSpeed": """
        error: DeepSpeed is not supported: its resume points are not complete.
        Larger models use FSDP: `-- --use_fsdp --fsdp_version 2`, or such a --launch profile.
    """,
    "another run": """
        error: run holds another run:
        seed was 3, is 4 now
        Choose another folder with out=, or `chatpipe run ... --fresh` (the old run is deleted).
    """,
    "a stage before its parent": """
        error: sft starts from what pretrain makes, but there is no runs/pocket/pretrain yet.
        Run `chatpipe pretrain` first, or give a model with sft.model=FOLDER (--model).
    """,
    "a packaged recipe that there is not": """
        error: There is no recipe called poket.
        Did you mean pocket? A file of your own is given with its .yaml.
    """,
    "an option that there is not": """
        Usage: chatpipe ppo [OPTIONS] [[RECIPE] [KEY=VALUE ...]]...
        Try 'chatpipe ppo --help' for help.

        Error: No such option: --learning-rate
    """,
    "a folder of something else": """
        error: out = thesis holds something that chatpipe did not make.
        Choose another folder: out=.
    """,
    "a folder that there is not": """
        error: sft.model = ./nowhere: there is no such folder.
        Give a model folder or a hub id.
    """,
    "an encoder for sft": """
        error: sft.model = model is a masked language model, but a causal language model is needed there.
        Give what `chatpipe pretrain` or `chatpipe sft` wrote, or any causal language model.
    """,
    "conversations longer than the model reads": """
        error: sft would go wrong without any error, so it stops before its first step.
        checks.answers_cut: sft.data: 56 of 56 conversations are longer than 64 tokens.
          Raise sft.max_length (as far as the model reads), or use shorter conversations.
        checks.nothing_to_learn: sft.data: no row is left to train on.
          Look at the rows: answers are missing, all the same, all tied, or cut away.
        To train anyway, turn this check off: checks.answers_cut=false (likewise for the others).
    """,
    "a reward model at chance": """
        error: ppo would go wrong without any error, so it stops before its first step.
        checks.reward_at_chance: ppo.reward_model: judge is no better than chance: 50% of 80 validation pairs right (at least 40%).
          Train it on more or better rankings first (rm.data, sample.prompts).
        To train anyway, turn this check off: checks.reward_at_chance=false.
    """,
    "a reward function that fails": """
        error: The reward function score returned 1 numbers for 4 completions.
        It must return one for each, in their order.
    """,
    "lines that are not JSON": """
        error: sft.data: a.jsonl: 1 of 61 rows cannot be used.
        1 row: this line is not JSON (first at a.jsonl:61, Expecting value at column 15)
        Mend the file, name its format and columns (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
    """,
    "a file that there is not": """
        error: sft.data: there is no file no.jsonl.
        Give a path, or several with commas between.
    """,
    "fields that mean nothing to us": """
        error: a.jsonl:1: sft.data does not know what these fields mean: a, q.
        Known: prompt, responses, ranks | chosen, rejected | messages | conversations | instruction, output | prompt, completion | question, answer | prompt | text.
        Other names: data: [{source: FILE, columns: {question: q, answer: a}}].
    """,
    "too few rows": """
        error: sft.data = a.jsonl holds too little: 3 rows for training, 0 for validation.
        A tenth is for validation, chosen by its text; give at least some dozens of different rows.
    """,
}


def golden_lines(name: str) -> list[str]:
    """The lines of the error that the mistake `name` ends with."""
    return textwrap.dedent(GOLDEN[name]).strip().splitlines()
