"""Where the value model comes from, and its own learning rate."""

import copy

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from chatpipe.errors import UsageError
from chatpipe.reward.reward_model import reads_left_to_right


def new_value_model(
    policy: PreTrainedModel, reward_models: list[PreTrainedModel], start: str | None
) -> PreTrainedModel:
    """The value model: a copy of the first reward model (`start` = reward) or made from the policy (policy).

    None takes the reward model where it can be a value model. A reward model gives better first values than a policy
    (InstructGPT, section 3.5); one that reads both ways, or a function, gives none. Raises UsageError where `reward` is
    asked for and cannot be.
    """
    able = bool(reward_models) and reads_left_to_right(reward_models[0])
    if start == "reward" and not able:
        reason = f"{type(reward_models[0]).__name__} reads both ways" if reward_models else "there is no reward model"
        raise UsageError(
            f"value_model = reward: {reason}, so no value model can start from it.", "Set value_model = policy."
        )
    if not able or start == "policy":
        return value_model_from_policy(policy)
    # A frozen reward model may be bfloat16; what is trained is float32 at least.
    return copy.deepcopy(reward_models[0]).to(torch.promote_types(reward_models[0].dtype, torch.float32))


def value_model_from_policy(policy: PreTrainedModel) -> PreTrainedModel:
    """A sequence classification model with a copy of the policy's body and a scalar head of zeros: all values are 0."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    with torch.device("meta"):  # its weights are replaced: none need be drawn
        value_model = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=config._attn_implementation
        )
    if not reads_left_to_right(value_model):
        raise UsageError(f"{type(policy).__name__} cannot start a value model.", "Give a value_model.")
    setattr(value_model, value_model.base_model_prefix, copy.deepcopy(policy.base_model))
    weight = next(policy.parameters())
    value_model.score = nn.Linear(
        value_model.score.in_features, 1, bias=False, device=weight.device, dtype=weight.dtype
    )
    nn.init.zeros_(value_model.score.weight)
    return value_model


def split_learning_rates(
    optimizer: torch.optim.Optimizer, value_model: nn.Module, value_model_learning_rate: float
) -> None:
    """Divide each parameter group of a new optimizer into the policy's and the value model's, with a rate of its own.

    In place. The policy's groups come first, so the rate that is logged is the policy's.
    """
    of_value_model = {id(parameter) for parameter in value_model.parameters()}
    policy_groups, value_model_groups = [], []
    for group in optimizer.param_groups:
        sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in group["params"]:
            sides[id(parameter) in of_value_model].append(parameter)
        policy_groups.append({**group, "params": sides[0]})
        value_model_groups.append({**group, "params": sides[1], "lr": value_model_learning_rate})
    optimizer.param_groups = [group for group in (*policy_groups, *value_model_groups) if group["params"]]
