"""Wrong keys and values in recipes: answered before torch is imported, and before anything is written."""

import pytest

from mistakes import Mistake

KEYS = [
    Mistake(
        "a misspelt key on the command line",
        "chatpipe ppo pocket ppo.learning_ratee=1e-5",
        """
        error: there is no key ppo.learning_ratee; did you mean ppo.learning_rate?
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a misspelt key in a file",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml:5: there is no key ppo.learning_ratee; did you mean ppo.learning_rate?
        `chatpipe schema` lists every key.
        """,
        {"mine.yaml": "seed: 0\n\nppo:\n  # the rate\n  learning_ratee: 1e-5\n"},
    ),
    Mistake(
        "a misspelt section",
        "chatpipe run pocket pretrian.max_steps=3",
        """
        error: there is no key pretrian; did you mean pretrain?
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a misspelt key two sections down",
        "chatpipe pretrain pocket pretrain.architecture.n_layers=3",
        """
        error: there is no key pretrain.architecture.n_layers; did you mean pretrain.architecture.n_layer?
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a misspelt key in a block of data",
        "chatpipe sft pocket 'sft.data=[{source: a.jsonl, fromat: alpaca}]'",
        """
        error: there is no key sft.data.0.fromat; did you mean sft.data.0.format?
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a misspelt key in a list of rewards",
        "chatpipe ppo mine.yaml",
        """
        error: mine.yaml:2: there is no key ppo.reward.0.wieght; did you mean ppo.reward.0.weight?
        `chatpipe schema` lists every key.
        """,
        {"mine.yaml": "ppo:\n  reward:\n    - model: reward\n      wieght: 2\n"},
    ),
    Mistake(
        "a key that belongs to another section",
        "chatpipe ppo pocket ppo.vocab_size=300",
        """
        error: there is no key ppo.vocab_size; did you mean pretrain.tokenizer.vocab_size?
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a key without its section",
        "chatpipe run pocket kl_coef=0.1",
        """
        error: there is no key kl_coef; did you mean ppo.kl_coef?
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a key like none that there is",
        "chatpipe run pocket evaluation.tokens=300",
        """
        error: there is no key evaluation.tokens; did you mean evaluation.max_new_tokens?
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a misspelt check",
        "chatpipe sft pocket checks.answer_cut=false",
        """
        error: there is no key checks.answer_cut; did you mean checks.answers_cut?
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "several at once",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml:6: sft.learning_rate = 'fast': input should be a valid number, unable to parse string as a number.
        mine.yaml:3: there is no key ppo.lamm; did you mean ppo.lam?
        mine.yaml:4: there is no key ppo.gama; did you mean ppo.gamma?
        mine.yaml:1: there is no key sed; did you mean seed?
        `chatpipe schema` lists every key.
        """,
        {"mine.yaml": "sed: 0\nppo:\n  lamm: 1\n  gama: 1\nsft:\n  learning_rate: fast\n"},
    ),
    Mistake(
        "more than fit eight lines",
        "chatpipe run mine.yaml",
        """
        error: mine.yaml:2: there is no key ppo.unheard_of_0.
        mine.yaml:3: there is no key ppo.unheard_of_1.
        mine.yaml:4: there is no key ppo.unheard_of_2.
        mine.yaml:5: there is no key ppo.unheard_of_3.
        mine.yaml:6: there is no key ppo.unheard_of_4.
        mine.yaml:7: there is no key ppo.unheard_of_5.
        ... and 14 more.
        `chatpipe schema` lists every key.
        """,
        {"mine.yaml": "ppo:\n" + "".join(f"  unheard_of_{i}: 1\n" for i in range(20))},
    ),
    Mistake(
        "a value without a key",
        "chatpipe run pocket =3",
        """
        error: '=3' is not understood: after the recipe come KEY=VALUE pairs.
        Example: ppo.kl_coef=0.1
        """,
    ),
    Mistake(
        "a key without a value",
        "chatpipe run pocket ppo.kl_coef=",
        """
        error: ppo.kl_coef = None: input should be a valid number.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a key without an equals sign",
        "chatpipe run pocket ppo.kl_coef 0.1",
        """
        error: 'ppo.kl_coef' is not understood: after the recipe come KEY=VALUE pairs.
        Example: ppo.kl_coef=0.1
        """,
    ),
    Mistake(
        "a key below a value",
        "chatpipe sft pocket sft.data.source=chats.jsonl",
        """
        error: sft.data.source cannot be set: sft.data is 'pocketworld', which has no keys.
        Give sft.data as a whole.
        """,
    ),
]

VALUES = [
    Mistake(
        "an optimizer that there is not",
        "chatpipe pretrain pocket pretrain.optimizer=sgd",
        """
        error: pretrain.optimizer = 'sgd': input should be 'adamw' or 'muon'.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a word for a number",
        "chatpipe rm mine.yaml",
        """
        error: mine.yaml:2: rm.batch_size = 'many': input should be a valid integer, unable to parse string as an integer.
        `chatpipe schema` lists every key.
        """,
        {"mine.yaml": "rm:\n  batch_size: many\n"},
    ),
    Mistake(
        "a fraction for a whole number",
        "chatpipe ppo pocket ppo.batch_size=1.5",
        """
        error: ppo.batch_size = 1.5: input should be a valid integer, got a number with a fractional part.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a number below its range",
        "chatpipe ppo pocket ppo.batch_size=0",
        """
        error: ppo.batch_size = 0: input should be greater than or equal to 1.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a share of one",
        "chatpipe sft pocket sft.pretrain_mix=1",
        """
        error: sft.pretrain_mix = 1: input should be less than 1.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "not a number",
        "chatpipe ppo pocket ppo.kl_coef=.nan",
        """
        error: ppo.kl_coef = nan: input should be a finite number.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a word for yes or no",
        "chatpipe pretrain pocket pretrain.bf16=perhaps",
        """
        error: pretrain.bf16 = 'perhaps': input should be True, False or 'auto'.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "none of the words there are",
        "chatpipe sft pocket sft.lr_scheduler_type=cosinus",
        """
        error: sft.lr_scheduler_type = 'cosinus': input should be 'cosine', 'linear', 'constant', 'constant_with_warmup' or 'warmup_stable_decay'.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a value for a section",
        "chatpipe ppo pocket ppo=3",
        """
        error: ppo = 3: input should be a valid dictionary or instance of Ppo.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a number for data",
        "chatpipe sft pocket sft.data=3",
        """
        error: sft.data = 3: input should be a valid list.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a block of data without its source",
        "chatpipe sft pocket 'sft.data=[{format: alpaca}]'",
        """
        error: sft.data.0.source is required.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "more steps than there are numbers for their samples",
        "chatpipe pretrain pocket pretrain.max_steps=10000000000000000000",
        """
        error: pretrain.max_steps = 10000000000000000000: input should be less than or equal to 1000000000.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a seed that no generator takes",
        "chatpipe run pocket seed=-1",
        """
        error: seed = -1: input should be greater than or equal to 0.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a value that YAML does not take",
        "chatpipe run pocket 'ppo.lam=['",
        """
        error: The value of 'ppo.lam=[' cannot be read.
        Put values with special signs in quotes.
        """,
    ),
    Mistake(
        "a preset that there is not",
        "chatpipe pretrain --data a.txt --out base pretrain.architecture.preset=gpt3",
        """
        error: pretrain.architecture: there is no preset 'gpt3'; there are gpt2-1m, gpt2-10m, gpt2-20m, gpt2-124m, gpt2-355m, gpt2-774m, gpt2-1.5b, modern-1m, modern-10m, modern-20m, modern-124m, modern-355m, modern-760m, modern-1.5b, encoder-1m, encoder-10m, encoder-20m, encoder-124m.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a tracker that there is not",
        "chatpipe run pocket report_to=wandbb",
        """
        error: report_to = wandbb is no experiment tracker.
        Did you mean wandb?
        """,
    ),
    Mistake(
        "a tracker that is not installed",
        "chatpipe run pocket report_to=clearml",
        """
        error: report_to = clearml needs a package that is not installed.
        Run pip install clearml, or leave report_to out.
        """,
    ),
]

CONTRADICTIONS = [
    Mistake(
        "a decay without its schedule",
        "chatpipe pretrain --data a.txt --out base pretrain.decay_steps=10",
        """
        error: pretrain: decay_steps and lr_scheduler_type: warmup_stable_decay belong together.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a schedule longer than training",
        "chatpipe pretrain mine.yaml",
        """
        error: mine.yaml:1: pretrain: warmup_steps = 60 and decay_steps = 50 are more than max_steps = 100.
        `chatpipe schema` lists every key.
        """,
        {
            "mine.yaml": "pretrain:\n  lr_scheduler_type: warmup_stable_decay\n  warmup_steps: 60\n  decay_steps: 50\n  max_steps: 100\n"
        },
    ),
    Mistake(
        "a lowest rate that the schedule has not",
        "chatpipe sft --model gpt2 --data a.jsonl --out chat sft.lr_scheduler_type=linear sft.min_lr_ratio=0.1",
        """
        error: sft: lr_scheduler_type: linear has no min_lr_ratio; cosine and warmup_stable_decay have.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a loss without its weight",
        "chatpipe ppo --model gpt2 --data a.jsonl --out tuned ppo.kl_loss=k3",
        """
        error: ppo: kl_loss and kl_loss_coef belong together.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a KL estimator with another optimum",
        "chatpipe ppo pocket ppo.kl_estimator=k3",
        """
        error: ppo.kl_estimator: k3 in the reward has another optimum (arXiv 2510.01555); leave it k1, or add ppo.kl_loss: k3.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a reward model beside a list of rewards",
        "chatpipe ppo --model gpt2 --data a.jsonl --out tuned ppo.reward_model=reward 'ppo.reward=[{model: reward}]'",
        """
        error: ppo: reward lists all rewards, at least one; reward_model is then left out.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a reward that is two things",
        "chatpipe ppo pocket 'ppo.reward=[{model: reward, function: mine:score}]'",
        """
        error: ppo.reward.0: a reward is either a model or a function.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a reward function that there is not",
        "chatpipe ppo --model gpt2 --data pocketworld --out tuned 'ppo.reward=[{function: mine:score}]'",
        """
        error: ppo.reward.0.function = mine:score cannot be imported: there is no file of a module mine.
        Write it as module:function, seen from this folder.
        """,
    ),
    Mistake(
        "a reward function that is not in its module",
        "chatpipe ppo --model gpt2 --data pocketworld --out tuned 'ppo.reward=[{function: mine:score}]'",
        """
        error: ppo.reward.0.function = mine:score cannot be imported: there is no score in mine.py.
        Did you mean mine:scores?
        """,
        {"mine.py": "def scores(prompts, completions): ...\n"},
    ),
    Mistake(
        "a reward module with a mistake in it",
        "chatpipe ppo --model gpt2 --data pocketworld --out tuned 'ppo.reward=[{function: mine:score}]'",
        """
        error: mine.py:2: ppo.reward.0.function = mine:score cannot be imported: '(' was never closed.
        Mend the file.
        """,
        {"mine.py": "def score(prompts, completions):\n    return (0\n"},
    ),
    Mistake(
        "isolated documents for an encoder",
        "chatpipe pretrain --data a.txt --out base pretrain.objective=masked pretrain.documents=isolate",
        """
        error: pretrain: documents: isolate is for objective: causal; an encoder reads across documents.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "an encoder that is to predict what comes next",
        "chatpipe pretrain pocket pretrain.architecture.family=modernbert",
        """
        error: pretrain.objective = causal, but a model of pretrain.architecture.family = modernbert learns the masked one.
        Set one to fit the other: encoders (modernbert, presets encoder-...) are masked, all others causal.
        """,
    ),
    Mistake(
        "a run that fine-tunes an encoder",
        "chatpipe run pocket pretrain.objective=masked 'pretrain.architecture={preset: encoder-1m}'",
        """
        error: sft starts from a causal language model; pretrain.objective = masked makes an encoder.
        Give sft.model. An encoder can be rm.model.
        """,
    ),
    Mistake(
        "the best of no evaluations",
        "chatpipe sft --model gpt2 --data a.jsonl --out chat sft.load_best_model_at_end=true",
        """
        error: sft: load_best_model_at_end needs eval_steps, to have evaluations of which one is the best.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "heads that do not share the width",
        "chatpipe pretrain --data a.txt --out base pretrain.architecture.n_head=3",
        """
        error: pretrain.architecture: n_embd = 128 cannot be shared by n_head = 3 heads.
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "blocks longer than the model reads",
        "chatpipe pretrain pocket pretrain.block_size=256",
        """
        error: pretrain.block_size = 256, but the model reads 128 tokens at most.
        Lower it, or raise pretrain.architecture.n_positions.
        """,
    ),
    Mistake(
        "answers longer than the run's own model reads",
        "chatpipe run pocket ppo.response_length=200",
        """
        error: ppo.response_length = 200 leaves no room for a prompt: the run's own model reads 128 tokens in all.
        Lower it, or raise pretrain.architecture.n_positions.
        """,
    ),
    Mistake(
        "answers to rank longer than the run's own model reads",
        "chatpipe run pocket sample.max_new_tokens=200",
        """
        error: sample.max_new_tokens = 200 leaves no room for a prompt: the run's own model reads 128 tokens in all.
        Lower it, or raise pretrain.architecture.n_positions.
        """,
    ),
    Mistake(
        "answers to judge longer than the run's own model reads",
        "chatpipe run pocket evaluation.max_new_tokens=200",
        """
        error: evaluation.max_new_tokens = 200 leaves no room for a prompt: the run's own model reads 128 tokens in all.
        Lower it, or raise pretrain.architecture.n_positions.
        """,
    ),
    Mistake(
        "a hub's split for a file",
        "chatpipe sft pocket 'sft.data=[{source: a.jsonl, split: test}]'",
        """
        error: sft.data.0: split is for data sets of the hub; a.jsonl is none (hub:OWNER/NAME).
        `chatpipe schema` lists every key.
        """,
    ),
    Mistake(
        "a batch that the processes cannot share",
        "chatpipe run pocket pretrain.batch_size=32 --processes 3",
        """
        error: pretrain.batch_size = 32 cannot be shared by 3 processes.
        Make it a multiple of 3.
        """,
    ),
    Mistake(
        "a micro-batch that does not divide the batch",
        "chatpipe run pocket ppo.batch_size=64 ppo.per_device_train_batch_size=7 --processes 1",
        """
        error: ppo.per_device_train_batch_size = 7 does not divide the 64 sequences of each process.
        Choose one that does, or leave it out.
        """,
    ),
    Mistake(
        "rankings of the built-in world",
        "chatpipe run pocket rm.data=pocketworld",
        """
        error: rm.data: the built-in world has no rankings of its own.
        Leave rm.data out: the run makes them.
        """,
    ),
]

CORPUS = [*KEYS, *VALUES, *CONTRADICTIONS]


@pytest.mark.parametrize("mistake", CORPUS, ids=lambda mistake: mistake.name)
def test_a_wrong_recipe(mistake, check):
    check(mistake)
