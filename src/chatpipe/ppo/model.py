"""What PPO trains: policy and value model in one module, so that DDP sees one forward and one backward pass."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from chatpipe import console
from chatpipe.data.sequences import MicroBatch, Sequences, equal_tokens, length_sorted, pad
from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams
from chatpipe.models.logprobs import completion_logprobs, completion_states, logprobs_and_entropy, output_head
from chatpipe.models.pretrained import fuse_gelu, give_score_class
from chatpipe.models.properties import body_of
from chatpipe.models.side_by_side import side_by_side
from chatpipe.models.unpadded import reads_unpadded
from chatpipe.ppo.config import PPOConfig
from chatpipe.reward.reward_model import head_scores, reads_left_to_right, reward_offset
from chatpipe.reward.rewards import Rewards
from chatpipe.training.lora import Adapter
from chatpipe.training.machine import train_leanly

MAX_TOKENS_ON_CPU = 4096
"""The most tokens of a micro-batch that a CPU reads without padding; more need more memory and hardly less time."""


class Outputs(NamedTuple):
    """For each completion token, [N]: log-prob in nats, entropy of its distribution (no gradient), value before it."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


class PolicyAndValueModel(nn.Module):
    """A causal language model, and a sequence classification model whose score at each position is the value."""

    def __init__(
        self,
        policy: PreTrainedModel,
        value_model: PreTrainedModel,
        temperature: float,
        excluded: tuple[range, ...] = (),
    ) -> None:
        """`temperature` and `excluded` ids as in the `SamplingParams` of the rollout: one distribution is both."""
        super().__init__()
        self.policy, self.value_model = policy, value_model
        self.temperature, self.excluded = temperature, excluded

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, rows: Tensor, columns: Tensor
    ) -> Outputs:
        """Arguments as in `MicroBatch`."""
        batch = MicroBatch(input_ids, attention_mask, position_ids, rows, columns)
        (logprobs, entropy), (values,) = side_by_side(
            [
                (self.policy, lambda: logprobs_and_entropy(self.policy, batch, self.temperature, self.excluded)),
                (self.value_model, lambda: (completion_values(self.value_model, batch),)),
            ]
        )
        return Outputs(logprobs, entropy, values)

    def sampling(self, max_new_tokens: int) -> SamplingParams:
        """How completions are drawn: from the policy's softmax over all tokens that the tokenizer has.

        The ids that it has no token for are no part of the log-probs either. Top-k, top-p or a minimum length would
        sample from another policy than the one that is trained.
        """
        return SamplingParams(max_new_tokens, self.temperature, excluded=self.excluded)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """What Trainer calls for `gradient_checkpointing`."""
        for model in (self.policy, self.value_model):
            model.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same under its name before transformers 5.2x."""
        for model in (self.policy, self.value_model):
            model.gradient_checkpointing_enable(**kwargs)


# ---- reading ----


def completion_values(value_model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """The value before each completion token, [N], float32 or wider."""
    # Only the cells that are needed reach the head: padded ones would add 0 times their content to its gradient.
    hidden = completion_states(value_model, batch)
    return head_scores(value_model.score, hidden) - reward_offset(value_model)


def text_loss(policy: PreTrainedModel, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """-sum log pi(token | tokens before it in its row), in nats, with gradient; a row's first token is given.

    `rows` are token ids, at least two each. The sum is over sum(len(row) - 1) tokens. The temperature is 1: the loss is
    that of the model as a language model with all its ids, not of the policy that samples.
    """
    sequences = Sequences.of([row[:1] for row in rows], [row[1:] for row in rows], [False] * len(rows))
    return -completion_logprobs(policy, pad(sequences).to(device), temperature=1.0).sum()


def text_row(dataset: Any, number: int) -> list[int]:
    """The token ids of a row of `ptx_dataset`. Raises UsageError where it has none."""
    row = dataset[number]
    ids = row.get("input_ids") if hasattr(row, "get") else None
    if ids is None or len(ids) < 2:
        raise UsageError(
            f"ptx_dataset, row {number} has no input_ids, or fewer than two.",
            "Give tokenised text: chatpipe's TrainingText.",
        )
    return [int(token) for token in ids]


def micro_batch_rows(models: Iterable[PreTrainedModel], lengths: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split rows of `lengths` [n], which all `models` read, into micro-batches: the row numbers of each, int64.

    A micro-batch takes at most about the memory of `size` of the longest rows. Where some model needs padding between
    rows, rows of similar length go together.
    """
    models = list(models)
    if not all(reads_unpadded(body_of(model)) for model in models):
        return length_sorted(lengths, size)
    tokens = size * int(lengths.max())
    return equal_tokens(lengths, min(tokens, MAX_TOKENS_ON_CPU) if models[0].device.type == "cpu" else tokens)


# ---- making ----


def prepare_models(
    model: PreTrainedModel,
    ref_model: PreTrainedModel | None,
    value_model: PreTrainedModel | None,
    rewards: Rewards,
    args: PPOConfig,
    adapter: Adapter | None,
    peft_config: Any,
) -> tuple[PreTrainedModel, PreTrainedModel | None, Adapter | None]:
    """The value model, the reference model and the adapter, made where they are not given.

    In all models, in place: no dropout, GPT-2's GELU is torch's kernel. What is trained whole becomes float32, and
    takes less memory where it is large; reference and reward models are frozen and moved to the device that trains.
    With an adapter there is no reference model: the policy without it is the reference.
    """
    for each in (model, ref_model, value_model, *rewards.all_models):
        if each is not None:
            disable_dropout(each)
            fuse_gelu(each)
    output_head(model)  # refuses a model whose logits cannot be computed
    if adapter is None and peft_config is None:
        in_float32(model, "model")
        ref_model = copy.deepcopy(model) if ref_model is None else ref_model
        if not (args.bf16 or args.fp16):
            in_float32(ref_model, "ref_model")  # KL is 0 at the start where both compute alike
    if value_model is None:
        value_model = new_value_model(model, rewards.models, args.value_model, adapter)
    in_float32(value_model, "value_model")
    adapter = adapter if peft_config is None else Adapter(model, peft_config)
    disable_dropout(model)  # the adapter's
    for each in (ref_model, *rewards.all_models):
        if each is not None:
            each.eval().requires_grad_(False).to(args.device)
    if ref_model is not None:
        output_head(ref_model)  # tried now, not in the first micro-batch
    value_model.requires_grad_(True)
    train_leanly(model)
    train_leanly(value_model)
    return value_model, ref_model, adapter


def in_float32(model: PreTrainedModel, name: str) -> None:
    """Turns weights of bfloat16 or float16 into float32 in place, and says so.

    transformers loads them as they are saved; at PPO's learning rates most of AdamW's steps would be rounded away.
    """
    given = model.dtype
    if torch.finfo(given).bits < 32:
        model.float()
        console.note(f"{name}: its {str(given).removeprefix('torch.')} weights become float32")


def new_value_model(
    policy: PreTrainedModel,
    reward_models: Sequence[PreTrainedModel],
    start: str | None,
    adapter: Adapter | None = None,
) -> PreTrainedModel:
    """A copy of the first reward model (`start` = reward), or a model made from the policy (`start` = policy).

    `adapter` is the policy's own, if any: the value model has it in its weights. Both are float32 at least.

    None takes the reward model where it reads left to right, and else the policy. A reward model gives better first
    values than a policy (InstructGPT, section 3.5). Raises UsageError where `reward` is asked for and is not possible.
    """
    able = bool(reward_models) and reads_left_to_right(reward_models[0])
    if start == "reward" and not able:
        reason = f"{type(reward_models[0]).__name__} reads both ways" if reward_models else "there is no reward model"
        raise UsageError(
            f"value_model = reward: {reason}, so no value model can start from it.", "Set value_model = policy."
        )
    if not able or start == "policy":
        made = value_model_from_policy(policy if adapter is None else adapter.merged())
    else:
        made = copy.deepcopy(reward_models[0])
    return made.to(torch.promote_types(made.dtype, torch.float32))


def value_model_from_policy(policy: PreTrainedModel) -> PreTrainedModel:
    """A sequence classification model with a copy of the policy's body and a scalar head of zeros: all values are 0."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    give_score_class(config)
    with torch.device("meta"):  # its weights are replaced, so none are drawn
        value_model = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=config._attn_implementation
        )
    if not reads_left_to_right(value_model):
        raise UsageError(f"{type(policy).__name__} cannot start a value model.", "Give a value_model.")
    setattr(value_model, value_model.base_model_prefix, copy.deepcopy(body_of(policy)))
    weight, width = next(policy.parameters()), value_model.score.in_features
    value_model.score = nn.Linear(width, 1, bias=False, device=weight.device, dtype=weight.dtype)
    nn.init.zeros_(value_model.score.weight)
    return value_model


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability in `model` to 0, in place. Its config does not change.

    With dropout the ratio of new to old policy would be random. `eval()` would turn off gradient checkpointing too
    (trl #1066).
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (isinstance(module, nn.modules.dropout._DropoutNd) or "drop" in name):
                setattr(module, name, 0.0)


def split_learning_rates(optimizer: torch.optim.Optimizer, value_model: nn.Module, learning_rate: float) -> None:
    """Divide each group of a new optimizer into the policy's and the value model's, which has `learning_rate`.

    In place. The policy's groups come first, so the rate that is logged is the policy's.
    """
    of_value_model = {id(parameter) for parameter in value_model.parameters()}
    policy_groups, value_model_groups = [], []
    for group in optimizer.param_groups:
        sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in group["params"]:
            sides[id(parameter) in of_value_model].append(parameter)
        policy_groups.append({**group, "params": sides[0]})
        value_model_groups.append({**group, "params": sides[1], "lr": learning_rate})
    optimizer.param_groups = [group for group in (*policy_groups, *value_model_groups) if group["params"]]
