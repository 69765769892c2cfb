"""The rewards of ppo: loading those that a recipe names, and the rewards of answers to validation prompts."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.checks.gate import refuse
from chatpipe.checks.model_checks import other_vocabulary
from chatpipe.data.chat_template import encode_prompt
from chatpipe.data.datasets import Conversation
from chatpipe.data.worlds import only_world, world_named
from chatpipe.evaluation.answers import Answer
from chatpipe.models.pretrained import load_reward_model
from chatpipe.models.properties import longest_sequence
from chatpipe.reward.functions import load_function
from chatpipe.reward.reward_model import score_sequences
from chatpipe.reward.rewards import RewardFunction, Rewards, penalise_missing_eos
from chatpipe.stages.step import Step
from chatpipe.training.ranks import over_ranks


def load_rewards(step: Step, tokenizer: PreTrainedTokenizerBase, half: bool = False) -> Rewards:
    """The reward model, or all rewards that `ppo.reward` lists, and the oracle, which is never trained on.

    `half`: their weights are bfloat16, on a CPU too.
    """
    section = step.recipe.ppo
    models, functions, weights = [], [], [1.0]
    if section.reward is None:
        models.append(_load_reward_model(step, "reward_model", tokenizer, half))
    else:
        of_models, of_functions = [], []
        for i, source in enumerate(section.reward):
            if source.function is None:
                models.append(_load_reward_model(step, f"reward.{i}", tokenizer, half))
                of_models.append(source.weight)
            else:
                functions.append(load_function(source.function, f"ppo.reward.{i}.function"))
                of_functions.append(source.weight)
        weights = [*of_models, *of_functions]
    oracle: PreTrainedModel | RewardFunction | None = _oracle(step)
    if section.oracle_reward_model is not None:
        oracle = _load_reward_model(step, "oracle_reward_model", tokenizer, half)
    return Rewards.of(models, functions, weights, oracle)


def _load_reward_model(step: Step, key: str, tokenizer: PreTrainedTokenizerBase, half: bool) -> PreTrainedModel:
    """It reads the policy's token ids: both must have the same tokenizer (trl #1674, #1979)."""
    folder = step.models[key]
    refuse({"other_vocabulary": lambda: other_vocabulary(f"ppo.{key}", folder, tokenizer)})
    return load_reward_model(folder, frozen=True, half=half, new_head=True)  # checks.new_score_head refuses it


def _oracle(step: Step) -> RewardFunction | None:
    """The oracle of the built-in world that all prompts come from; None where there is none."""
    world = only_world(step.data["ppo.data"])
    if world is None:
        return None
    oracle = world_named(world, step.recipe.worlds).oracle()

    def scores(prompts: list[Conversation], completions: list[str], ended: list[bool]) -> list[float]:
        rows = zip(prompts, completions, ended, strict=True)
        return [oracle.rate(prompt, text, did_end).score for prompt, text, did_end in rows]

    return scores


def answer_rewards(
    step: Step,
    rewards: Rewards,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    answers: Sequence[Answer],
) -> dict[str, list[float]]:
    """The rewards of answers, read as they were written: a cut-off one gets no end-of-turn token.

    `reward`: what ppo trains on, with the missing-EOS penalty. `oracle_reward`: by `ppo.oracle_reward_model`, where
    there is one. All processes share the answers.
    """
    section = step.recipe.ppo

    def scored(rows: Sequence[tuple[Conversation, Answer]]) -> list[dict[str, float]]:
        if not rows:
            return []
        read = [[*encode_prompt(tokenizer, prompt), *answer.ids] for prompt, answer in rows]
        columns = [
            # A sequence that is longer than a model reads loses its beginning.
            score_sequences(model, [ids[-longest_sequence(model, tokenizer) :] for ids in read])
            for model in rewards.all_models
        ]
        of_models = torch.stack(columns, 1) if columns else torch.empty(len(read), 0)
        ended = [answer.ended for _, answer in rows]
        texts = [answer.text for _, answer in rows]
        total, named = rewards.score(of_models, [prompt for prompt, _ in rows], texts, ended)
        total = penalise_missing_eos(total, torch.tensor(ended), section.missing_eos_penalty, section.missing_eos)
        found = {"reward": total.tolist()}
        if section.oracle_reward_model is not None:
            found["oracle_reward"] = named["objective/oracle"].tolist()
        return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]

    results = over_ranks(list(zip(prompts, answers, strict=True)), scored)
    return {name: [result[name] for result in results] for name in results[0]}
