"""Wrong model folders: what the files show is answered at once, the rest before the first step."""

import pytest

from chatpipe.data.datasets import prompt_key
from chatpipe.data.split import is_held_out
from mistakes import Mistake, chat, chats, jsonl, pairs


def HELD_OUT(number):
    """Whether `Question NUMBER?` is held out."""
    return is_held_out(prompt_key(chat(f"Question {number}?", "")["messages"][:1]))


CHATS = {"chats.jsonl": jsonl(chats(60))}
PAIRS = {"pairs.jsonl": jsonl(pairs(60))}
SFT = "chatpipe sft --model model --data chats.jsonl --out tuned"
RM = "chatpipe rm --model model --data pairs.jsonl --out judge"
POLICY = "chatpipe ppo --model model --data chats.jsonl --out tuned"
PPO = f"{POLICY} --reward judge"
SMALL = "evaluation.max_new_tokens=16 ppo.response_length=16"

FOLDERS = [
    Mistake(
        "a config.json of something else",
        SFT,
        """
        error: sft.model = model holds a 3, which chatpipe cannot use.
        Give a causal language model, a reward model (sequence classification) or a masked language model.
        """,
        {**CHATS, "model/config.json": '{"architectures": [3]}'},
    ),
    Mistake(
        "a folder that there is not",
        "chatpipe sft --model ./nowhere --data chats.jsonl --out tuned",
        """
        error: sft.model = ./nowhere: there is no such folder.
        Give a model folder or a hub id.
        """,
        CHATS,
    ),
    Mistake(
        "a folder without config.json",
        SFT,
        """
        error: sft.model = model is not a model folder: it has no config.json.
        Give a folder that save_pretrained or a chatpipe stage wrote.
        """,
        {**CHATS, "model/model.safetensors": ""},
    ),
    Mistake(
        "a folder of an adapter alone",
        SFT,
        """
        error: sft.model = model holds an adapter alone, not a whole model.
        Merge it into its base model (peft's merge_and_unload, then save_pretrained), and give that folder.
        """,
        {**CHATS, "model/adapter_config.json": "{}", "model/adapter_model.safetensors": ""},
    ),
    Mistake(
        "a config.json that breaks off",
        SFT,
        """
        error: model/config.json is not JSON (Expecting value: line 1 column 20 (char 19)).
        The folder is damaged; make it anew.
        """,
        {**CHATS, "model/config.json": '{"architectures": ['},
    ),
    Mistake(
        "an architecture of another kind",
        SFT,
        """
        error: sft.model = model holds a T5EncoderModel, which chatpipe cannot use.
        Give a causal language model, a reward model (sequence classification) or a masked language model.
        """,
        {**CHATS, "model/config.json": '{"architectures": ["T5EncoderModel"]}'},
    ),
    Mistake(
        "no weights",
        SFT,
        """
        error: sft.model = model is not a whole model folder: it has no weights.
        Give one that was written to its end.
        """,
        {**CHATS, "model/config.json": '{"architectures": ["GPT2LMHeadModel"]}'},
    ),
    Mistake(
        "no weights but a trainer's notes",
        SFT,
        """
        error: sft.model = model is not a whole model folder: it has no weights.
        Give one that was written to its end.
        """,
        {**CHATS, "model/config.json": '{"architectures": ["GPT2LMHeadModel"]}', "model/training_args.bin": b"x"},
    ),
    Mistake(
        "weights that broke off",
        SFT,
        """
        error: model/model.safetensors is not a whole safetensors file.
        It broke off or is damaged: fetch or make the folder anew.
        """,
        CHATS,
        {"model": "half"},
    ),
    Mistake(
        "weights of which a shard is missing",
        SFT,
        """
        error: sft.model = model is not a whole model folder: model-00002-of-00002.safetensors, one of 2 files of weights, is missing.
        Fetch or make the folder anew.
        """,
        CHATS,
        {"model": "shard-missing"},
    ),
    Mistake(
        "no tokenizer",
        SFT,
        """
        error: sft.model = model has no tokenizer.
        Put the one it was trained with into the folder (tokenizer.save_pretrained).
        """,
        CHATS,
        {"model": "no-tokenizer"},
    ),
    Mistake(
        "a tokenizer without EOS",
        SFT,
        """
        error: The tokenizer of model has no end-of-text token.
        Set eos_token in its tokenizer_config.json.
        """,
        CHATS,
        {"model": "no-eos"},
        begun=True,
    ),
    Mistake(
        "a chat template that begins otherwise than its prompts",
        SFT,
        """
        error: The chat template of model cannot be trained with: it writes turn 2 differently once it is answered.
        Give a template whose prompts are the beginning of the whole and whose answers end with a token of their own; or take it out of the model's folder (chat_template), which then gets chatpipe's.
        """,
        CHATS,
        {"model": "odd-template"},
        begun=True,
    ),
    Mistake(
        "an output folder inside the model's",
        "chatpipe sft --model tuned/base --data chats.jsonl --out tuned",
        """
        error: tuned cannot be the folder of sft: it holds tuned/base, which sft reads.
        Choose another folder with out= or --out.
        """,
        CHATS,
        {"tuned/base": "chat"},
    ),
]

KINDS = [
    Mistake(
        "an encoder for sft",
        SFT,
        """
        error: sft.model = model is a masked language model, but a causal language model is needed there.
        Give what `chatpipe pretrain` or `chatpipe sft` wrote, or any causal language model.
        """,
        CHATS,
        {"model": "encoder"},
    ),
    Mistake(
        "a reward model for sft",
        SFT,
        """
        error: sft.model = model is a reward model, but a causal language model is needed there.
        Give what `chatpipe pretrain` or `chatpipe sft` wrote, or any causal language model.
        """,
        CHATS,
        {"model": "reward"},
    ),
    Mistake(
        "a reward model to talk to",
        "chatpipe chat model",
        """
        error: MODEL = model is a reward model, but a causal language model is needed there.
        Give what `chatpipe pretrain` or `chatpipe sft` wrote, or any causal language model.
        """,
        {},
        {"model": "reward"},
    ),
    Mistake(
        "a reward model as the body of one",
        RM,
        """
        error: rm.model = model is a reward model, but a causal language model is needed there.
        Give what `chatpipe pretrain` or `chatpipe sft` wrote, or any causal language model.
        """,
        PAIRS,
        {"model": "reward"},
    ),
    Mistake(
        "a causal model as reward model",
        PPO,
        """
        error: ppo.reward_model = judge is a causal language model, but a reward model is needed there.
        Give what `chatpipe rm` wrote, or any sequence classification model with one label.
        """,
        CHATS,
        {"model": "chat", "judge": "chat"},
    ),
    Mistake(
        "an encoder to go on from",
        "chatpipe pretrain --model model --data a.txt --out base",
        """
        error: pretrain.model = model is a masked language model, but a causal language model is needed there.
        Give what `chatpipe pretrain` or `chatpipe sft` wrote, or any causal language model.
        """,
        {"a.txt": "A line of text.\n"},
        {"model": "encoder"},
    ),
    Mistake(
        "a folder that is no tokenizer",
        "chatpipe pretrain --data a.txt --out base pretrain.tokenizer.pretrained=words",
        """
        error: pretrain.tokenizer.pretrained = words is not the folder of a tokenizer: it has no tokenizer.json.
        Give a folder that save_pretrained or a chatpipe stage wrote, or a hub id such as gpt2.
        """,
        {"a.txt": "A line of text.\n", "words/": ""},
    ),
    Mistake(
        "a held-out reward model that is none",
        f"{PPO} ppo.gold_reward_model=model",
        """
        error: ppo.gold_reward_model = model is a causal language model, but a reward model is needed there.
        Give what `chatpipe rm` wrote, or any sequence classification model with one label.
        """,
        CHATS,
        {"model": "chat", "judge": "reward"},
    ),
]

MODELS = [
    Mistake(
        "blocks longer than the model to go on from reads",
        "chatpipe pretrain --model model --data a.txt --out base pretrain.block_size=256",
        """
        error: pretrain.block_size = 256, but the model reads 64 tokens at most.
        Lower it, or go on from a model with more positions.
        """,
        {"a.txt": "A line of text.\n" * 40},
        {"model": "chat"},
    ),
    Mistake(
        "a dry run of such blocks",
        "chatpipe pretrain --model model --out base pretrain.block_size=256 --dry-run",
        """
        error: pretrain.block_size = 256, but the model reads 64 tokens at most.
        Lower it, or go on from a model with more positions.
        """,
        {},
        {"model": "chat"},
    ),
    Mistake(
        "a reward model with another tokenizer",
        f"{PPO} {SMALL}",
        """
        error: The reward model judge (ppo.reward_model) has another tokenizer than the policy.
        Train it on the policy's own model: chatpipe rm --model model
        """,
        CHATS,
        {"model": "chat", "judge": "other-vocabulary"},
        begun=True,
    ),
    Mistake(
        "a reward model without pad token",
        f"{PPO} {SMALL}",
        """
        error: ppo could only fail silently; it is stopped before its first step.
        checks.reward_pad_token: ppo.reward_model: the pad token of judge is not set.
          Set pad_token_id in its config.json to the tokenizer's pad token, another one than EOS.
        If it is meant: checks.reward_pad_token=false turns this check off.
        """,
        CHATS,
        {"model": "chat", "judge": "no-pad"},
        begun=True,
    ),
    Mistake(
        "a reward model with two labels",
        f"{PPO} {SMALL}",
        """
        error: ppo.reward_model = judge gives 2 numbers for an answer; a reward is one.
        Give what `chatpipe rm` wrote, or any sequence classification model with one label.
        """,
        CHATS,
        {"model": "chat", "judge": "two-labels"},
    ),
    Mistake(
        "a reward model at chance",
        f"{PPO} {SMALL}",
        """
        error: ppo could only fail silently; it is stopped before its first step.
        checks.reward_at_chance: ppo.reward_model: judge is no better than chance: 50% of 80 held-out pairs right (at least 40%).
          Train it on more or better rankings first (rm.data, sample.prompts).
        If it is meant: checks.reward_at_chance=false turns this check off.
        """,
        CHATS,
        {"model": "chat", "judge": "at-chance"},
        begun=True,
    ),
    Mistake(
        "a reward model without its head",
        f"{PPO} {SMALL}",
        """
        error: ppo could only fail silently; it is stopped before its first step.
        checks.new_score_head: ppo.reward_model: judge holds no score.weight, so it was drawn at random just now.
          Give what `chatpipe rm` wrote, or another trained reward model.
        If it is meant: checks.new_score_head=false turns this check off.
        """,
        CHATS,
        {"model": "chat", "judge": "headless"},
        begun=True,
    ),
    Mistake(
        "conversations longer than the model reads",
        SFT,
        """
        error: sft could only fail silently; it is stopped before its first step.
        checks.answers_cut: sft.data: 56 of 56 conversations are longer than 64 tokens.
          Raise sft.max_length (as far as the model's n_positions), or use shorter conversations.
        checks.nothing_to_learn: sft.data: no row is left to train on.
          Look at the rows: answers are missing, all the same, all tied, or cut away.
        If it is meant: checks.answers_cut=false turns this check off, the others likewise.
        """,
        {"chats.jsonl": jsonl({"question": f"{i} " * 90, "answer": "Yes."} for i in range(60))},
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "prompts longer than the policy reads",
        f"{PPO} {SMALL}",
        """
        error: ppo could only fail silently; it is stopped before its first step.
        checks.prompts_cut: ppo.data: 56 of 56 prompts looked at leave no room for 16 new tokens in 64.
          Lower ppo.response_length, or use models with more positions.
        If it is meant: checks.prompts_cut=false turns this check off.
        """,
        {"chats.jsonl": jsonl({"prompt": f"{i} " * 90} for i in range(60))},
        {"model": "chat", "judge": "reward"},
        begun=True,
    ),
    Mistake(
        "answers longer than the policy reads",
        f"{PPO} {SMALL} ppo.response_length=64",
        """
        error: ppo could only fail silently; it is stopped before its first step.
        checks.prompts_cut: ppo.data: 52 of 52 prompts looked at leave no room for 64 new tokens in 64.
          Lower ppo.response_length, or use models with more positions.
        If it is meant: checks.prompts_cut=false turns this check off.
        """,
        CHATS,
        {"model": "chat", "judge": "reward"},
        begun=True,
    ),
    Mistake(
        "answers to judge longer than the model reads",
        f"{SFT} evaluation.max_new_tokens=64",
        """
        error: No held-out prompt leaves room for 64 new tokens in a context of 64.
        Lower evaluation.max_new_tokens, or use a model with more positions.
        """,
        CHATS,
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "adapters on layers that there are not",
        f"{SFT} {SMALL} 'sft.lora={{target_modules: [q_proj]}}'",
        """
        error: lora: Target modules {'q_proj'} not found in the base model. Please check the target modules and try again.
        Set lora.target_modules to the names of linear layers of this model, or to all-linear.
        """,
        CHATS,
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "adapters of ppo on layers that there are not",
        f"{PPO} {SMALL} 'ppo.lora={{target_modules: [q_proj]}}'",
        """
        error: lora: Target modules {'q_proj'} not found in the base model. Please check the target modules and try again.
        Set lora.target_modules to the names of linear layers of this model, or to all-linear.
        """,
        CHATS,
        {"model": "chat", "judge": "reward"},
        begun=True,
    ),
    Mistake(
        "a reward function that fails",
        f"{POLICY} {SMALL} 'ppo.reward=[{{function: mine_b:score}}]'",
        """
        error: The reward function score returned 1 numbers for 32 completions.
        It must return one for each, in their order.
        """,
        {**CHATS, "mine_b.py": "def score(prompts, completions):\n    return [0.0]\n"},
        {"model": "chat", "judge": "reward"},
        begun=True,
    ),
]

PAIRED = [
    Mistake(
        "one column read as both answers",
        f"{RM} rm.max_length=64",
        """
        error: rm could only fail silently; it is stopped before its first step.
        checks.nothing_to_learn: rm.data: no row is left to train on: all responses are tied (52).
          Look at the rows: answers are missing, all the same, all tied, or cut away.
        checks.chosen_is_rejected: rm.data: in 52 of 52 rankings looked at, chosen and rejected are the same tokens.
          Look at the columns: is one field read as both answers?
        If it is meant: checks.nothing_to_learn=false turns this check off, the others likewise.
        """,
        {"pairs.jsonl": jsonl({"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "Yes."} for i in range(60))},
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "all responses tied",
        f"{RM} rm.max_length=64",
        """
        error: rm could only fail silently; it is stopped before its first step.
        checks.nothing_to_learn: rm.data: no row is left to train on: all responses are tied (52).
          Look at the rows: answers are missing, all the same, all tied, or cut away.
        If it is meant: checks.nothing_to_learn=false turns this check off.
        """,
        {
            "pairs.jsonl": jsonl(
                {"prompt": f"Question {i}?", "responses": ["Yes.", "No."], "ranks": [1, 1]} for i in range(60)
            )
        },
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "answers longer than the model reads",
        f"{RM} rm.max_length=64",
        """
        error: rm could only fail silently; it is stopped before its first step.
        checks.answers_cut: rm.data: 52 of 52 rankings are longer than 64 tokens.
          Raise rm.max_length (as far as the model's n_positions), or use shorter rankings.
        checks.nothing_to_learn: rm.data: no row is left to train on: an answer is longer than max_length (52).
          Look at the rows: answers are missing, all the same, all tied, or cut away.
        If it is meant: checks.answers_cut=false turns this check off, the others likewise.
        """,
        {
            "pairs.jsonl": jsonl(
                {"prompt": f"Question {i}?", "chosen": "Yes. " * 90, "rejected": "No."} for i in range(60)
            )
        },
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "held-out answers longer than the model reads",
        f"{RM} rm.max_length=64",
        """
        error: rm.data: none of the held-out rankings that fit into 64 tokens (0) prefers one answer to another.
        Give more rankings in rm.data (or raise sample.prompts), or raise rm.max_length.
        """,
        {
            "pairs.jsonl": jsonl(
                {"prompt": f"Question {i}?", "chosen": "Yes. " * (1 + 90 * HELD_OUT(i)), "rejected": "No."}
                for i in range(60)
            )
        },
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "held-out responses all tied",
        f"{RM} rm.max_length=64",
        """
        error: rm.data: none of the held-out rankings that fit into 64 tokens (8) prefers one answer to another.
        Give more rankings in rm.data (or raise sample.prompts), or raise rm.max_length.
        """,
        {
            "pairs.jsonl": jsonl(
                {"prompt": f"Question {i}?", "responses": ["Yes.", "No."], "ranks": [1, 1 if HELD_OUT(i) else 2]}
                for i in range(60)
            )
        },
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "the same prompts to train on and to judge by",
        f"{RM} rm.max_length=64",
        """
        error: rm could only fail silently; it is stopped before its first step.
        checks.held_out_seen: rm.data: 12 of 16 held-out texts are trained on too, but for case and spaces: 'Question 8?'.
          Remove such doubles from the data.
        If it is meant: checks.held_out_seen=false turns this check off.
        """,
        {"pairs.jsonl": jsonl([*pairs(60), *({**row, "prompt": row["prompt"].upper()} for row in pairs(60))])},
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "the same questions to train on and to judge by",
        SFT,
        """
        error: sft could only fail silently; it is stopped before its first step.
        checks.held_out_seen: sft.data: 12 of 16 held-out texts are trained on too, but for case and spaces: 'Question 8?'.
          Remove such doubles from the data.
        If it is meant: checks.held_out_seen=false turns this check off.
        """,
        {"chats.jsonl": jsonl([*chats(60), *(chat(f"QUESTION {i}?", "Yes.") for i in range(60))])},
        {"model": "chat"},
        begun=True,
    ),
]

CORPUS = [*FOLDERS, *KINDS, *MODELS, *PAIRED]


@pytest.mark.parametrize("mistake", CORPUS, ids=lambda mistake: mistake.name)
def test_a_wrong_model_folder(mistake, check):
    check(mistake)
