"""All evaluations, in one process or on one rank of two."""

import copy
import json
import os
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import GPT2ForSequenceClassification

from chatpipe.data.chat_template import add_chat_template, encode_completion
from chatpipe.data.encoding import Encoder
from chatpipe.data.rankings import Ranking
from chatpipe.data.text_blocks import Masking, ValidationText, add_mask_token
from chatpipe.evaluation.chat import chat_loss, evaluate_chat
from chatpipe.evaluation.pair_accuracy import evaluate_ranker
from chatpipe.evaluation.policy import PolicyEvaluation, evaluate_policy
from chatpipe.evaluation.text import evaluate_text
from chatpipe.generation import SamplingParams
from chatpipe.models.new_model import model_config, new_model, train_tokenizer
from chatpipe.recipe.architectures import Architecture

TEXTS = ["Mara is a baker. She lives near the mill.", "Tomas has a dog called Rex.", "Who keeps a goat? Lina does."] * 3
QUESTIONS = ["Who is Mara?", "Who keeps a goat?", "Who is Mara?", "Where is the mill?", "Who is Mara?"]
"""An odd number, and one question three times: its answers have random numbers of their own."""


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def evaluate() -> dict[str, dict]:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, model_max_length=64)
    add_chat_template(tokenizer)
    add_mask_token(tokenizer)
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16}
    torch.manual_seed(0)
    policy, reference = (new_model(Architecture(**small, n_positions=64), tokenizer) for _ in range(2))
    masked = new_model(Architecture(**small, family="modernbert"), tokenizer)
    config = model_config(Architecture(**small, n_positions=64), len(tokenizer), 1, 0)
    config.num_labels, config.initializer_range = 1, 0.5
    reward_model = GPT2ForSequenceClassification(config)
    text = ValidationText.of(TEXTS, Encoder.of(tokenizer), block_size=16)
    params = SamplingParams(max_new_tokens=6, temperature=0.7)
    prompts = [asked(question) for question in QUESTIONS]
    rows = []
    for prompt, answer in zip(prompts, TEXTS, strict=False):
        ids, start = encode_completion(tokenizer, prompt, answer)
        rows.append((ids, [0] * start + [1] * (len(ids) - start)))
    rankings = [Ranking(prompt, TEXTS[:3], [1, 3, 2]) for prompt in prompts]
    data = PolicyEvaluation(
        tokenizer,
        prompts,
        params,
        seed=0,
        oracle=None,
        score=lambda prompts, answers: {"reward": [float(len(answer.ids)) for answer in answers]},
        kl_prompts=[[5, 6, 7], [8, 9], [5, 6, 7]],
        sampling=SamplingParams(max_new_tokens=5, temperature=0.8),
    )
    sharded = copy.deepcopy(policy)
    if distributed.is_initialized():
        fully_shard(sharded, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
    chat, answers = evaluate_chat(policy, tokenizer, rows, prompts, params, seed=0, oracle=None)
    return {
        "text": evaluate_text(policy, tokenizer, text),
        "masked": evaluate_text(masked, tokenizer, text, Masking.of(tokenizer, 0.3)),
        "chat": {**chat, "ids": [answer.ids for answer in answers.answers]},
        "ranker": evaluate_ranker(reward_model, tokenizer, rankings, max_length=64, seed=0),
        "policy": evaluate_policy(data, policy, reference),
        # One row: a process without rows would make no pass, and the other one would wait for it.
        "sharded": {"eval_loss": chat_loss(sharded, rows[:1])},
    }


def write_evaluation(folder: Path) -> None:
    """Writes what each function returned to `folder`/RANK.json."""
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")
    found = evaluate()
    (folder / f"{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(found))
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
