"""What ppo's answers are worth: the rewards that a recipe names, and what they say of answers to held-out prompts."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.chat_template import encode_prompt
from chatpipe.data.datasets import Conversation
from chatpipe.data.worlds import only_world, world_named
from chatpipe.errors import UsageError
from chatpipe.evaluation.answers import Answer
from chatpipe.evaluation.compare import mean_change, win_rate
from chatpipe.models.context import longest_sequence
from chatpipe.models.pretrained import load_reward_model, load_tokenizer
from chatpipe.reward.functions import load_function
from chatpipe.reward.rewards import RewardFunction, Rewards, penalise_missing_eos
from chatpipe.reward.scoring import score_sequences
from chatpipe.stages.step import Step


def load_rewards(step: Step, tokenizer: PreTrainedTokenizerBase) -> Rewards:
    """What answers are worth: the reward model, or all that `ppo.reward` lists; and who judges along."""
    section = step.recipe.ppo
    models, functions, weights = [], [], [1.0]
    if section.reward is None:
        models.append(_load_reward_model(step, "reward_model", tokenizer))
    else:
        of_models, of_functions = [], []
        for i, source in enumerate(section.reward):
            if source.function is None:
                models.append(_load_reward_model(step, f"reward.{i}", tokenizer))
                of_models.append(source.weight)
            else:
                functions.append(load_function(source.function, f"ppo.reward.{i}.function"))
                of_functions.append(source.weight)
        weights = [*of_models, *of_functions]
    gold: PreTrainedModel | RewardFunction | None = _oracle(step)
    if section.oracle_reward_model is not None:
        gold = _load_reward_model(step, "oracle_reward_model", tokenizer)
    return Rewards.of(models, functions, weights, gold)


def _load_reward_model(step: Step, key: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """It reads the policy's token ids: both must have the same tokenizer (trl #1674, #1979)."""
    folder = step.models[key]
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            f"The reward model {folder} (ppo.{key}) has another tokenizer than the policy.",
            "Train it on the policy's own model: chatpipe rm --model " + step.models["model"],
        )
    return load_reward_model(folder, frozen=True)


def _oracle(step: Step) -> RewardFunction | None:
    """The oracle of the built-in world that all prompts come from; None where there is none."""
    world = only_world(step.data()["ppo.data"])
    if world is None:
        return None
    oracle = world_named(world, step.recipe.worlds).oracle()

    def gold(prompts: list[Conversation], completions: list[str], ended: list[bool]) -> list[float]:
        rows = zip(prompts, completions, ended, strict=True)
        return [oracle.rate(prompt, text, did_end).score for prompt, text, did_end in rows]

    return gold


@torch.no_grad()
def reward_scores(
    step: Step,
    rewards: Rewards,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Conversation],
    answers: Sequence[Answer],
) -> dict[str, list[float]]:
    """What is said of each answer, read as it was written: a cut-off one gets no end-of-turn token.

    `reward`: what was trained on, with the missing-EOS penalty. `judge`: by `ppo.oracle_reward_model`, where there is
    one.
    """
    section = step.recipe.ppo
    read = [[*encode_prompt(tokenizer, prompt), *answer.ids] for prompt, answer in zip(prompts, answers, strict=True)]
    columns = [
        # A sequence that is longer than a model reads loses its beginning.
        score_sequences(model, [ids[-longest_sequence(model, tokenizer) :] for ids in read])
        for model in rewards.all_models
    ]
    of_models = torch.stack(columns, 1) if columns else torch.empty(len(read), 0)
    ended = [answer.ended for answer in answers]
    total, named = rewards.score(of_models, list(prompts), [answer.text for answer in answers], ended)
    total = penalise_missing_eos(total, torch.tensor(ended), section.missing_eos_penalty, section.missing_eos)
    judge = {} if section.oracle_reward_model is None else {"judge": named["objective/oracle"].tolist()}
    return {"reward": total.tolist(), **judge}


def reward_comparison(after: Mapping[str, list[float]], before: Mapping[str, list[float]]) -> dict[str, float]:
    """What each of `reward_scores` makes of the change.

    `NAME_score`, `NAME_score_before`, the interval of the change `NAME_change_low` and `_high`, and `NAME_win_rate`.
    """
    metrics = {}
    for name, scores in after.items():
        change = mean_change(scores, before[name])
        metrics[f"{name}_score"] = sum(scores) / len(scores)
        metrics[f"{name}_score_before"] = sum(before[name]) / len(scores)
        metrics[f"{name}_change_low"] = change.low
        metrics[f"{name}_change_high"] = change.high
        metrics[f"{name}_win_rate"] = win_rate(scores, before[name]).rate
    return metrics
