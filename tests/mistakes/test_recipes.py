"""Wrong keys and values in recipes: answered before torch is imported, and before anything is written."""

import pytest

from mistakes import Mistake

KEYS = [
    Mistake(
        "a misspelt key on the command line",
        "chatpipe ppo pocket ppo.learning_ratee=1e-5",
        "ppo.learning_ratee, ppo.learning_rate -> chatpipe schema",
    ),
    Mistake(
        "a misspelt key in a file",
        "chatpipe run mine.yaml",
        "mine.yaml:5, ppo.learning_ratee, ppo.learning_rate -> chatpipe schema",
        {"mine.yaml": "seed: 0\n\nppo:\n  # the rate\n  learning_ratee: 1e-5\n"},
    ),
    Mistake(
        "another tool's name of a key",
        "chatpipe sft --model model --data a.jsonl --out tuned sft.epochs=3",
        "sft.epochs, sft.num_train_epochs -> chatpipe schema",
    ),
    Mistake(
        "another tool's name of a key in a section of a section",
        "chatpipe sft --model model --data a.jsonl --out tuned sft.lora.rank=8",
        "sft.lora.rank, sft.lora.r -> chatpipe schema",
    ),
    Mistake(
        "another tool's name of a section's key",
        "chatpipe ppo --model model --data a.jsonl --out tuned ppo.lora_rank=8",
        "ppo.lora_rank, ppo.lora.r -> chatpipe schema",
    ),
    Mistake(
        "another tool's batches",
        "chatpipe sft --model model --data a.jsonl --out tuned sft.gradient_accumulation_steps=4",
        "sft.gradient_accumulation_steps, sft.batch_size -> chatpipe schema",
    ),
    Mistake(
        "a key without its section that several have",
        "chatpipe sft --model model --data a.jsonl --out tuned max_length=512",
        "max_length, sft.max_length, rm.max_length -> chatpipe schema",
    ),
    Mistake(
        "stages of a run",
        "chatpipe run pocket 'stages=[sft, rm]'",
        "stages, start -> chatpipe schema",
    ),
    Mistake(
        "a misspelt section",
        "chatpipe run pocket pretrian.max_steps=3",
        " -> chatpipe schema",
    ),
    Mistake(
        "a misspelt key two sections down",
        "chatpipe pretrain pocket pretrain.architecture.n_layers=3",
        "pretrain.architecture.n_layers, pretrain.architecture.n_layer -> chatpipe schema",
    ),
    Mistake(
        "a misspelt key in a block of data",
        "chatpipe sft pocket 'sft.data=[{source: a.jsonl, fromat: alpaca}]'",
        "sft.data, sft.data.0.fromat, sft.data.0.format -> chatpipe schema",
    ),
    Mistake(
        "a misspelt key in a list of rewards",
        "chatpipe ppo mine.yaml",
        "mine.yaml:2, ppo.reward.0.wieght, ppo.reward.0.weight -> chatpipe schema",
        {"mine.yaml": "ppo:\n  reward:\n    - model: reward\n      wieght: 2\n"},
    ),
    Mistake(
        "a key that belongs to another section",
        "chatpipe ppo pocket ppo.vocab_size=300",
        "ppo.vocab_size, pretrain.tokenizer.vocab_size -> chatpipe schema",
    ),
    Mistake(
        "a key without its section",
        "chatpipe run pocket kl_coef=0.1",
        "kl_coef, ppo.kl_coef -> chatpipe schema",
    ),
    Mistake(
        "a key like none that there is",
        "chatpipe run pocket evaluation.tokens=300",
        "evaluation.tokens, evaluation.max_new_tokens -> chatpipe schema",
    ),
    Mistake(
        "a misspelt check",
        "chatpipe sft pocket checks.answer_cut=false",
        "checks.answer_cut, checks.answers_cut -> chatpipe schema",
    ),
    Mistake(
        "several at once",
        "chatpipe run mine.yaml",
        "mine.yaml:6, sft.learning_rate, fast, mine.yaml:3, ppo.lamm, ppo.lam, mine.yaml:4, ppo.gama, "
        "ppo.gamma -> chatpipe schema",
        {"mine.yaml": "sed: 0\nppo:\n  lamm: 1\n  gama: 1\nsft:\n  learning_rate: fast\n"},
    ),
    Mistake(
        "more than fit eight lines",
        "chatpipe run mine.yaml",
        "mine.yaml:2, ppo.unheard_of_0, mine.yaml:3, ppo.unheard_of_1, mine.yaml:4, ppo.unheard_of_2, "
        "mine.yaml:5, ppo.unheard_of_3, mine.yaml:6 -> chatpipe schema",
        {"mine.yaml": "ppo:\n" + "".join(f"  unheard_of_{i}: 1\n" for i in range(20))},
    ),
    Mistake(
        "a value without a key",
        "chatpipe run pocket =3",
        "=3, KEY=VALUE -> ppo.kl_coef=0.1",
    ),
    Mistake(
        "a key without a value",
        "chatpipe run pocket ppo.kl_coef=",
        "ppo.kl_coef -> chatpipe schema",
    ),
    Mistake(
        "a key without an equals sign",
        "chatpipe run pocket ppo.kl_coef 0.1",
        "ppo.kl_coef, 0.1, KEY=VALUE -> ppo.kl_coef=0.1",
    ),
    Mistake(
        "a key below a value",
        "chatpipe sft pocket sft.data.source=chats.jsonl",
        "sft.data.source, sft.data, pocketworld",
    ),
]

VALUES = [
    Mistake(
        "an optimizer that there is not",
        "chatpipe pretrain pocket pretrain.optimizer=sgd",
        "pretrain.optimizer, sgd, adamw, muon -> chatpipe schema",
    ),
    Mistake(
        "a word for a number",
        "chatpipe rm mine.yaml",
        "mine.yaml:2, rm.batch_size, many -> chatpipe schema",
        {"mine.yaml": "rm:\n  batch_size: many\n"},
    ),
    Mistake(
        "a fraction for a whole number",
        "chatpipe ppo pocket ppo.batch_size=1.5",
        "ppo.batch_size, 1.5 -> chatpipe schema",
    ),
    Mistake(
        "a number below its range",
        "chatpipe ppo pocket ppo.batch_size=0",
        "ppo.batch_size, 0, 1 -> chatpipe schema",
    ),
    Mistake(
        "a share of one",
        "chatpipe sft pocket sft.pretrain_mix=1",
        "sft.pretrain_mix, 1 -> chatpipe schema",
    ),
    Mistake(
        "not a number",
        "chatpipe ppo pocket ppo.kl_coef=.nan",
        "ppo.kl_coef -> chatpipe schema",
    ),
    Mistake(
        "a word for yes or no",
        "chatpipe pretrain pocket pretrain.bf16=perhaps",
        "pretrain.bf16, perhaps, auto -> chatpipe schema",
    ),
    Mistake(
        "none of the words there are",
        "chatpipe sft pocket sft.lr_scheduler_type=cosinus",
        "sft.lr_scheduler_type, cosinus, cosine, linear, constant, constant_with_warmup, "
        "warmup_stable_decay -> chatpipe schema",
    ),
    Mistake(
        "a value for a section",
        "chatpipe ppo pocket ppo=3",
        "3 -> chatpipe schema",
    ),
    Mistake(
        "a number for data",
        "chatpipe sft pocket sft.data=3",
        "sft.data, 3 -> chatpipe schema",
    ),
    Mistake(
        "a block of data without its source",
        "chatpipe sft pocket 'sft.data=[{format: alpaca}]'",
        "sft.data, sft.data.0.source -> chatpipe schema",
    ),
    Mistake(
        "more steps than there are numbers for their samples",
        "chatpipe pretrain pocket pretrain.max_steps=10000000000000000000",
        "pretrain.max_steps, 10000000000000000000, 1000000000 -> chatpipe schema",
    ),
    Mistake(
        "a seed that no generator takes",
        "chatpipe run pocket seed=-1",
        "seed, -1, 0 -> chatpipe schema",
    ),
    Mistake(
        "a value that YAML does not take",
        "chatpipe run pocket 'ppo.lam=['",
        "ppo.lam, ppo.lam=[",
    ),
    Mistake(
        "a preset that there is not",
        "chatpipe pretrain --data a.txt --out base pretrain.architecture.preset=gpt3",
        "gpt3, pretrain.architecture, gpt2-1m, gpt2-10m, gpt2-20m, gpt2-124m, gpt2-355m, gpt2-774m, "
        "gpt2-1.5b -> chatpipe schema",
    ),
    Mistake(
        "a tracker that there is not",
        "chatpipe run pocket report_to=wandbb",
        "report_to, wandbb",
    ),
    Mistake(
        "a tracker that is not installed",
        "chatpipe run pocket report_to=clearml",
        "report_to, clearml",
    ),
]

CONTRADICTIONS = [
    Mistake(
        "a decay without its schedule",
        "chatpipe pretrain --data a.txt --out base pretrain.decay_steps=10",
        "decay_steps, lr_scheduler_type, warmup_stable_decay -> chatpipe schema",
    ),
    Mistake(
        "a schedule longer than training",
        "chatpipe pretrain mine.yaml",
        "mine.yaml:1, warmup_steps, 60, decay_steps, 50, max_steps, 100 -> chatpipe schema",
        {
            "mine.yaml": "pretrain:\n  lr_scheduler_type: warmup_stable_decay\n  warmup_steps: 60\n  decay_steps: 50\n  max_steps: 100\n"
        },
    ),
    Mistake(
        "a lowest rate that the schedule has not",
        "chatpipe sft --model gpt2 --data a.jsonl --out chat sft.lr_scheduler_type=linear sft.min_lr_ratio=0.1",
        "linear, lr_scheduler_type, min_lr_ratio, warmup_stable_decay -> chatpipe schema",
    ),
    Mistake(
        "a loss without its weight",
        "chatpipe ppo --model gpt2 --data a.jsonl --out tuned ppo.kl_loss=k3",
        "kl_loss, kl_loss_coef -> chatpipe schema",
    ),
    Mistake(
        "a reward model and a list of rewards",
        "chatpipe ppo --model gpt2 --data a.jsonl --out tuned ppo.reward_model=reward 'ppo.reward=[{model: reward}]'",
        "reward, reward_model -> chatpipe schema",
    ),
    Mistake(
        "a reward that is two things",
        "chatpipe ppo pocket 'ppo.reward=[{model: reward, function: mine:score}]'",
        "ppo.reward, ppo.reward.0 -> chatpipe schema",
    ),
    Mistake(
        "a reward function that there is not",
        "chatpipe ppo --model gpt2 --data pocketworld --out tuned 'ppo.reward=[{function: mine:score}]'",
        "ppo.reward, ppo.reward.0.function",
    ),
    Mistake(
        "a reward function that is not in its module",
        "chatpipe ppo --model gpt2 --data pocketworld --out tuned 'ppo.reward=[{function: mine:score}]'",
        "mine.py, ppo.reward, ppo.reward.0.function",
        {"mine.py": "def scores(prompts, completions): ...\n"},
    ),
    Mistake(
        "a reward module with a mistake in it",
        "chatpipe ppo --model gpt2 --data pocketworld --out tuned 'ppo.reward=[{function: mine:score}]'",
        "ppo.reward, mine.py:2, ppo.reward.0.function",
        {"mine.py": "def score(prompts, completions):\n    return (0\n"},
    ),
    Mistake(
        "isolated documents for an encoder",
        "chatpipe pretrain --data a.txt --out base pretrain.objective=masked pretrain.documents=isolate",
        "isolate -> chatpipe schema",
    ),
    Mistake(
        "an encoder that is to predict what comes next",
        "chatpipe pretrain pocket pretrain.architecture.family=modernbert",
        "pretrain.architecture.family, modernbert, pretrain.objective",
    ),
    Mistake(
        "a run that fine-tunes an encoder",
        "chatpipe run pocket pretrain.objective=masked 'pretrain.architecture={preset: encoder-1m}'",
        "pretrain.objective, masked -> sft.model, rm.model",
    ),
    Mistake(
        "the best of no evaluations",
        "chatpipe sft --model gpt2 --data a.jsonl --out chat sft.load_best_model_at_end=true",
        "load_best_model_at_end, eval_steps -> chatpipe schema",
    ),
    Mistake(
        "heads that do not share the width",
        "chatpipe pretrain --data a.txt --out base pretrain.architecture.n_head=3",
        "pretrain.architecture, n_embd, 128, n_head, 3 -> chatpipe schema",
    ),
    Mistake(
        "blocks longer than the model reads",
        "chatpipe pretrain pocket pretrain.block_size=256",
        "pretrain.block_size, 256, 128 -> pretrain.architecture.n_positions",
    ),
    Mistake(
        "answers longer than the run's own model reads",
        "chatpipe run pocket ppo.response_length=200",
        "ppo.response_length, 200, 128 -> pretrain.architecture.n_positions",
    ),
    Mistake(
        "answers to rank longer than the run's own model reads",
        "chatpipe run pocket sample.max_new_tokens=200",
        "sample.max_new_tokens, 200, 128 -> pretrain.architecture.n_positions",
    ),
    Mistake(
        "answers to evaluate longer than the run's own model reads",
        "chatpipe run pocket evaluation.max_new_tokens=200",
        "evaluation.max_new_tokens, 200, 128 -> pretrain.architecture.n_positions",
    ),
    Mistake(
        "a hub's split for a file",
        "chatpipe sft pocket 'sft.data=[{source: a.jsonl, split: test}]'",
        "sft.data, sft.data.0, a.jsonl, OWNER/NAME -> chatpipe schema",
    ),
    Mistake(
        "a batch that the processes cannot share",
        "chatpipe run pocket pretrain.batch_size=32 --processes 3",
        "pretrain.batch_size, 32, 3",
    ),
    Mistake(
        "a micro-batch that does not divide the batch",
        "chatpipe run pocket ppo.batch_size=64 ppo.per_device_train_batch_size=7 --processes 1",
        "64, ppo.per_device_train_batch_size, 7",
    ),
    Mistake(
        "rankings of the built-in world",
        "chatpipe run pocket rm.data=pocketworld",
        "rm.data",
    ),
]

CORPUS = [*KEYS, *VALUES, *CONTRADICTIONS]


@pytest.mark.parametrize("mistake", CORPUS, ids=lambda mistake: mistake.name)
def test_a_wrong_recipe(mistake, check):
    check(mistake)
