"""The plan of a stage, without running it: parameters, optimizer steps, tokens and the command."""

import math
import shlex
from pathlib import Path
from typing import Any

from chatpipe.data.datasets import load_prompts, load_rankings, stream_conversations
from chatpipe.data.rankings import group_by_answers
from chatpipe.data.row_files import VALIDATION_SHARE
from chatpipe.data.sources import Report
from chatpipe.models.model_folder import expected_vocabulary, parameters_in
from chatpipe.recipe.architectures import flops_per_token
from chatpipe.run.chain import How, is_launched, launch_command
from chatpipe.run.steps import maker_of
from chatpipe.stages.step import Step

CHINCHILLA_TOKENS = 20
"""For each parameter, where compute is spent best (arXiv 2203.15556, table 3)."""


def plan_stage(step: Step, how: How) -> dict[str, Any]:
    """The plan of one stage; what only the hub knows is `unknown`.

    Raises `UsageError` where the processes cannot share the batches.
    """
    if step.trains:
        step.section.micro_batches(how.processes, step.stage)
    processes = 1 if step.runs_in_place else how.processes
    plan: dict[str, Any] = {"stage": step.stage, "out": str(step.folder), "processes": processes}
    if "model" in step.models or step.trains:
        plan["parameters"] = _parameters(step)
        plan["models"] = ", ".join(step.models.values()) or "a new one"
    plan.update(_amounts(step))
    if is_launched(step, how):
        plan["command"] = shlex.join(["accelerate", "launch", *launch_command(step, how)[3:]])
    else:
        plan["command"] = "in this process"
    return plan


def _parameters(step: Step) -> int | str:
    """Of the trained model: of a new one in closed form, of a saved one from its files."""
    if not step.models:
        vocabulary = expected_vocabulary(step.recipe.pretrain)
        return "unknown" if vocabulary is None else step.recipe.pretrain.architecture.parameters(vocabulary)
    model = Path(step.models["model"]).expanduser()
    if model.is_dir():
        return saved_parameters(model)
    maker = maker_of(step)
    return "unknown" if maker is None else _parameters(maker)


def _amounts(step: Step) -> dict[str, Any]:
    """Optimizer steps, and what they are made of."""
    amounts = {"pretrain": _of_pretrain, "sft": _of_sft, "sample": _of_sample, "rank": _of_rank}
    return {**amounts, "rm": _of_rm, "ppo": _of_ppo}[step.stage](step)


def _of_pretrain(step: Step) -> dict[str, Any]:
    section, parameters = step.recipe.pretrain, _parameters(step)
    tokens = section.max_steps * section.batch_size * section.block_size
    amounts: dict[str, Any] = {"steps": section.max_steps, "tokens": tokens}
    if isinstance(parameters, int):
        amounts["tokens_per_parameter"] = round(tokens / parameters, 2)
        amounts["chinchilla_ratio"] = round(tokens / parameters / CHINCHILLA_TOKENS, 3)
        if not step.models:
            shape = section.architecture
            flops = flops_per_token(parameters, shape.n_layer, shape.n_embd, section.block_size)
            amounts["flops"] = f"{tokens * flops:.2e}"
    return amounts


def _of_sft(step: Step) -> dict[str, Any]:
    section = step.recipe.sft
    stream = stream_conversations(step.data["sft.data"], step.recipe.worlds, "sft.data", Report())
    conversations = sum(split == "train" for _, split in stream)
    rows = round(conversations / (1 - section.pretrain_mix))
    steps = math.ceil(math.ceil(rows / section.batch_size) * section.num_train_epochs)
    if section.max_steps > 0:
        return {"rows": rows, "steps": section.max_steps}
    return {"rows": rows, "steps": f"up to {steps}; packed, fewer" if section.packing else steps}


def _of_sample(step: Step) -> dict[str, Any]:
    section = step.recipe.sample
    return {"prompts": f"up to {section.prompts:,}", "answers": f"up to {section.prompts * section.k:,}"}


def _of_rank(step: Step) -> dict[str, Any]:
    return {"rater": "rm.data" if step.reads_given_rankings else step.recipe.rank.rater}


def _of_rm(step: Step) -> dict[str, Any]:
    recipe = step.recipe
    blocks = step.data["rm.data"]
    to_be_made = [block for block in blocks if "rm.data" in step.makers and not Path(block.source).exists()]
    there = [block for block in blocks if block not in to_be_made]
    train = load_rankings(there, recipe.worlds, "rm.data").train if there else []
    made = round((1 - VALIDATION_SHARE) * recipe.sample.prompts * sum(block.weight for block in to_be_made))
    rankings, prompts = len(train) + made, len(group_by_answers(train)) + made
    return {
        "rankings": rankings,
        "steps": math.ceil(math.ceil(prompts / recipe.rm.batch_size) * recipe.rm.num_train_epochs),
    }


def _of_ppo(step: Step) -> dict[str, Any]:
    section = step.recipe.ppo
    episodes = section.batch_size * section.num_mini_batches
    iterations = math.ceil(section.total_episodes / episodes)
    return {
        "prompts": len(load_prompts(step.data["ppo.data"], step.recipe.worlds, "ppo.data").train),
        "iterations": iterations,
        "steps": iterations * section.num_ppo_epochs * section.num_mini_batches,
        "tokens": f"up to {iterations * episodes * section.response_length:,} sampled",
    }


def saved_parameters(folder: Path) -> int | str:
    """Parameters in a folder's safetensors files, read from their headers alone; `unknown` where it has none.

    Raises `UsageError` for a file that is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    return sum(map(parameters_in, files)) if files else "unknown"
