"""Wrong model folders: what the files show is answered at once, the rest before the first step."""

import pytest

from chatpipe.data.messages import prompt_key
from chatpipe.data.row_files import split_of
from mistakes import Mistake, chat, chats, jsonl, pairs


def FOR_VALIDATION(number):
    """Whether `Question NUMBER?` is in the validation split."""
    return split_of(prompt_key(chat(f"Question {number}?", "")["messages"][:1])) == "validation"


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
        "model, sft.model, 3",
        {**CHATS, "model/config.json": '{"architectures": [3]}'},
    ),
    Mistake(
        "a folder that there is not",
        "chatpipe sft --model ./nowhere --data chats.jsonl --out tuned",
        "./nowhere, sft.model",
        CHATS,
    ),
    Mistake(
        "a folder without config.json",
        SFT,
        "model, sft.model, config.json -> save_pretrained",
        {**CHATS, "model/model.safetensors": ""},
    ),
    Mistake(
        "a folder of an adapter alone",
        SFT,
        "model, sft.model -> merge_and_unload, save_pretrained",
        {**CHATS, "model/adapter_config.json": "{}", "model/adapter_model.safetensors": ""},
    ),
    Mistake(
        "a config.json that breaks off",
        SFT,
        "model/config.json, 1, 20, 19",
        {**CHATS, "model/config.json": '{"architectures": ['},
    ),
    Mistake(
        "an architecture of another kind",
        SFT,
        "model, sft.model, T5EncoderModel",
        {**CHATS, "model/config.json": '{"architectures": ["T5EncoderModel"]}'},
    ),
    Mistake(
        "weights of a compiled model",
        SFT,
        "model, sft.model, 16, _orig_mod.transformer.h.0.attn.c_attn.bias, torch.compile -> save_pretrained",
        CHATS,
        {"model": "compiled"},
    ),
    Mistake(
        "an adapter beside the model that it was made from",
        SFT,
        "model, sft.model -> merge_and_unload",
        {**CHATS, "model/adapter_config.json": "{}"},
        {"model": "chat"},
    ),
    Mistake(
        "a model that needs its own code",
        "chatpipe chat model",
        "model, TinyMindForCausalLM, auto_map",
        {
            "model/config.json": '{"architectures": ["TinyMindForCausalLM"], "model_type": "tinymind", '
            '"auto_map": {"AutoConfig": "configuration_tinymind.TinyMindConfig"}}',
            "model/configuration_tinymind.py": "raise SystemExit",
        },
    ),
    Mistake(
        "a quantised model",
        RM,
        "model, rm.model, gptq",
        {
            **PAIRS,
            "model/config.json": '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", '
            '"quantization_config": {"quant_method": "gptq", "bits": 4}}',
        },
    ),
    Mistake(
        "an encoder-decoder",
        "chatpipe eval model --data chats.jsonl",
        "model, T5ForConditionalGeneration",
        {
            **CHATS,
            "model/config.json": '{"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", '
            '"is_encoder_decoder": true}',
        },
    ),
    Mistake(
        "weights that Git LFS has not fetched",
        SFT,
        "model/model.safetensors -> git lfs pull",
        {**CHATS, "model/model.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"},
        {"model": "chat"},
    ),
    Mistake(
        "no weights",
        SFT,
        "model, sft.model",
        {**CHATS, "model/config.json": '{"architectures": ["GPT2LMHeadModel"]}'},
    ),
    Mistake(
        "no weights but a trainer's notes",
        SFT,
        "model, sft.model",
        {**CHATS, "model/config.json": '{"architectures": ["GPT2LMHeadModel"]}', "model/training_args.bin": b"x"},
    ),
    Mistake(
        "weights that broke off",
        SFT,
        "model/model.safetensors",
        CHATS,
        {"model": "half"},
    ),
    Mistake(
        "weights of which a shard is missing",
        SFT,
        "model, sft.model, model-00002-of-00002.safetensors, 2",
        CHATS,
        {"model": "shard-missing"},
    ),
    Mistake(
        "no tokenizer",
        SFT,
        "model, sft.model -> tokenizer.save_pretrained",
        CHATS,
        {"model": "no-tokenizer"},
    ),
    Mistake(
        "a tokenizer without EOS",
        SFT,
        "model -> eos_token, tokenizer_config.json",
        CHATS,
        {"model": "no-eos"},
        begun=True,
    ),
    Mistake(
        "a chat template that does not write the answers",
        SFT,
        "model, answer -> chat_template",
        CHATS,
        {"model": "odd-template"},
        begun=True,
    ),
    Mistake(
        "an output folder inside the model's",
        "chatpipe sft --model tuned/base --data chats.jsonl --out tuned",
        "tuned/base, tuned -> --out",
        CHATS,
        {"tuned/base": "chat"},
    ),
]

KINDS = [
    Mistake(
        "an encoder for sft",
        SFT,
        "model, sft.model -> chatpipe pretrain, chatpipe sft",
        CHATS,
        {"model": "encoder"},
    ),
    Mistake(
        "a reward model for sft",
        SFT,
        "model, sft.model -> chatpipe pretrain, chatpipe sft",
        CHATS,
        {"model": "reward"},
    ),
    Mistake(
        "a reward model to talk to",
        "chatpipe chat model",
        "model -> chatpipe pretrain, chatpipe sft",
        {},
        {"model": "reward"},
    ),
    Mistake(
        "a causal model as reward model",
        PPO,
        "model, judge, ppo.reward_model -> chatpipe rm",
        CHATS,
        {"model": "chat", "judge": "chat"},
    ),
    Mistake(
        "an encoder to continue from",
        "chatpipe pretrain --model model --data a.txt --out base",
        "model, pretrain.model -> chatpipe pretrain, chatpipe sft",
        {"a.txt": "A line of text.\n"},
        {"model": "encoder"},
    ),
    Mistake(
        "a folder that is no tokenizer",
        "chatpipe pretrain --data a.txt --out base pretrain.tokenizer.pretrained=words",
        "words, pretrain.tokenizer.pretrained, tokenizer -> save_pretrained, gpt2",
        {"a.txt": "A line of text.\n", "words/": ""},
    ),
    Mistake(
        "an oracle reward model that is none",
        f"{PPO} ppo.oracle_reward_model=model",
        "model, ppo.oracle_reward_model -> chatpipe rm",
        CHATS,
        {"model": "chat", "judge": "reward"},
    ),
]

MODELS = [
    Mistake(
        "blocks longer than the model to continue from reads",
        "chatpipe pretrain --model model --data a.txt --out base pretrain.block_size=256",
        "model, pretrain.block_size, 256, 64",
        {"a.txt": "A line of text.\n" * 40},
        {"model": "chat"},
    ),
    Mistake(
        "a dry run of such blocks",
        "chatpipe pretrain --model model --out base pretrain.block_size=256 --dry-run",
        "model, pretrain.block_size, 256, 64",
        {},
        {"model": "chat"},
    ),
    Mistake(
        "a reward model with another tokenizer",
        f"{PPO} {SMALL}",
        "model, judge, ppo.reward_model -> --model",
        CHATS,
        {"model": "chat", "judge": "other-vocabulary"},
        begun=True,
    ),
    Mistake(
        "a reward model with two labels",
        f"{PPO} {SMALL}",
        "model, judge, ppo.reward_model, 2 -> chatpipe rm",
        CHATS,
        {"model": "chat", "judge": "two-labels"},
    ),
    Mistake(
        "a reward model at chance",
        f"{PPO} {SMALL}",
        "judge, checks.reward_at_chance, ppo.reward_model, 50, 80, 40, rm.data, "
        "sample.prompts -> checks.reward_at_chance=false",
        CHATS,
        {"model": "chat", "judge": "at-chance"},
        begun=True,
    ),
    Mistake(
        "a reward model without its head",
        f"{PPO} {SMALL}",
        "model, judge, checks.new_score_head, ppo.reward_model, score.weight, "
        "chatpipe rm -> checks.new_score_head=false",
        CHATS,
        {"model": "chat", "judge": "headless"},
        begun=True,
    ),
    Mistake(
        "conversations longer than the model reads",
        SFT,
        "model, checks.answers_cut, sft.data, 56, 64, sft.max_length, "
        "checks.nothing_to_learn -> checks.answers_cut=false",
        {"chats.jsonl": jsonl({"question": f"{i} " * 90, "answer": "Yes."} for i in range(60))},
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "prompts longer than the policy reads",
        f"{PPO} {SMALL}",
        "16, ppo.response_length, checks.prompts_cut, ppo.data, 56, 64 -> checks.prompts_cut=false",
        {"chats.jsonl": jsonl({"prompt": f"{i} " * 90} for i in range(60))},
        {"model": "chat", "judge": "reward"},
        begun=True,
    ),
    Mistake(
        "answers longer than the policy reads",
        f"{PPO} {SMALL} ppo.response_length=64",
        "ppo.response_length, 64, checks.prompts_cut, ppo.data, 52 -> checks.prompts_cut=false",
        CHATS,
        {"model": "chat", "judge": "reward"},
        begun=True,
    ),
    Mistake(
        "answers to evaluate longer than the model reads",
        f"{SFT} evaluation.max_new_tokens=64",
        "model, evaluation.max_new_tokens, 64 -> evaluation.max_new_tokens",
        CHATS,
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "adapters on layers that there are not",
        f"{SFT} {SMALL} 'sft.lora={{target_modules: [q_proj]}}'",
        "model, q_proj -> lora.target_modules",
        CHATS,
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "adapters of ppo on layers that there are not",
        f"{PPO} {SMALL} 'ppo.lora={{target_modules: [q_proj]}}'",
        "model, q_proj -> lora.target_modules",
        CHATS,
        {"model": "chat", "judge": "reward"},
        begun=True,
    ),
    Mistake(
        "a reward function that fails",
        f"{POLICY} {SMALL} 'ppo.reward=[{{function: mine_b:score}}]'",
        "1, 4",
        {**CHATS, "mine_b.py": "def score(prompts, completions):\n    return [0.0]\n"},
        {"model": "chat", "judge": "reward"},
        begun=True,
    ),
]

PAIRED = [
    Mistake(
        "one column read as both answers",
        f"{RM} rm.max_length=64",
        "checks.nothing_to_learn, rm.data, 52, checks.chosen_is_rejected -> checks.nothing_to_learn=false",
        {"pairs.jsonl": jsonl({"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "Yes."} for i in range(60))},
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "all responses tied",
        f"{RM} rm.max_length=64",
        "checks.nothing_to_learn, rm.data, 52 -> checks.nothing_to_learn=false",
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
        "model, rm.max_length, 64, checks.answers_cut, rm.data, 52, checks.nothing_to_learn, "
        "max_length -> checks.answers_cut=false",
        {
            "pairs.jsonl": jsonl(
                {"prompt": f"Question {i}?", "chosen": "Yes. " * 90, "rejected": "No."} for i in range(60)
            )
        },
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "validation answers longer than the model reads",
        f"{RM} rm.max_length=64",
        "rm.max_length, 64, rm.data, 0 -> sample.prompts, rm.max_length",
        {
            "pairs.jsonl": jsonl(
                {"prompt": f"Question {i}?", "chosen": "Yes. " * (1 + 90 * FOR_VALIDATION(i)), "rejected": "No."}
                for i in range(60)
            )
        },
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "validation responses all tied",
        f"{RM} rm.max_length=64",
        "rm.max_length, 64, rm.data, 8 -> sample.prompts, rm.max_length",
        {
            "pairs.jsonl": jsonl(
                {"prompt": f"Question {i}?", "responses": ["Yes.", "No."], "ranks": [1, 1 if FOR_VALIDATION(i) else 2]}
                for i in range(60)
            )
        },
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "the same prompts to train on and to validate on",
        f"{RM} rm.max_length=64",
        "checks.validation_seen, rm.data, 12, 16, Question 8? -> checks.validation_seen=false",
        {"pairs.jsonl": jsonl([*pairs(60), *({**row, "prompt": row["prompt"].upper()} for row in pairs(60))])},
        {"model": "chat"},
        begun=True,
    ),
    Mistake(
        "the same questions to train on and to validate on",
        SFT,
        "checks.validation_seen, sft.data, 12, 16, Question 8? -> checks.validation_seen=false",
        {"chats.jsonl": jsonl([*chats(60), *(chat(f"QUESTION {i}?", "Yes.") for i in range(60))])},
        {"model": "chat"},
        begun=True,
    ),
]

CORPUS = [*FOLDERS, *KINDS, *MODELS, *PAIRED]


@pytest.mark.parametrize("mistake", CORPUS, ids=lambda mistake: mistake.name)
def test_a_wrong_model_folder(mistake, check):
    check(mistake)
