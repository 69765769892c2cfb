"""What PPO learns from: prompts and their order, rollouts, and experience, which has rewards and advantages.

Experience is ragged like the sequences themselves (`chatpipe.data.sequences`): the numbers that belong to completion
tokens lie in flat arrays [N], one completion after another. n is the number of sequences.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from chatpipe.data.chat_template import Message, encode_prompt
from chatpipe.data.sequences import Sequences, flat_index, upload
from chatpipe.errors import UsageError
from chatpipe.reward.rewards import Content

PROMPTS, GENERATION, MINIBATCHES, PTX, EVALUATION = range(1, 6)
"""What random numbers are drawn for. Each use has random numbers of its own."""


@dataclass(frozen=True)
class Prompt:
    """The token ids that the policy continues; `content` is None where the dataset holds nothing else."""

    ids: Sequence[int]
    content: Content | None = None

    def shown(self, tokenizer: PreTrainedTokenizerBase) -> Content:
        """What a reward function gets: the content, else the decoded ids."""
        return tokenizer.decode(self.ids) if self.content is None else self.content


# ---- reading prompts ----


def read_prompts(rows: Iterable[Any], tokenizer: PreTrainedTokenizerBase, name: str = "train_dataset") -> list[Prompt]:
    """The prompts of a dataset: rows with `input_ids`, or with `prompt`, a text or a list of messages.

    Messages are rendered by the chat template. A text is the user's message where the tokenizer has a chat template;
    without one it is tokenised as it is. `attention_mask` marks padding in `input_ids`; without it, pad tokens at
    either end are padding. Raises UsageError with `name` and the row for another kind of row.
    """
    return [_read(row, tokenizer, f"{name}, row {number}") for number, row in enumerate(rows)]


def read_eval_prompts(
    given: Iterable[Any] | Mapping[str, Iterable[Any]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Prompt]]:
    """The prompts of an eval_dataset by name: of a mapping of several sets, or of one set, whose name is empty."""
    if isinstance(given, Mapping):
        return {name: read_prompts(rows, tokenizer, f"eval_dataset {name}") for name, rows in given.items()}
    return {"": read_prompts(given, tokenizer, "eval_dataset")}


def _read(row: Any, tokenizer: PreTrainedTokenizerBase, where: str) -> Prompt:
    if not isinstance(row, Mapping) or not ("input_ids" in row or "prompt" in row):
        raise UsageError(f"{where} has neither input_ids nor a prompt.", "A prompt is a text or a list of messages.")
    content = row.get("prompt")
    if "input_ids" in row:
        ids, mask = [int(token) for token in row["input_ids"]], row.get("attention_mask")
        if mask is not None:
            return Prompt([token for token, is_token in zip(ids, mask, strict=True) if is_token], content)
        return Prompt(_without_padding(ids, tokenizer), content)
    if isinstance(content, str) and tokenizer.chat_template is None:
        return Prompt(tokenizer(content)["input_ids"], content)
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    if not _are_messages(messages):
        raise UsageError(
            f"{where}: its prompt is neither a text nor messages with role and content.",
            'Write it as [{"role": "user", "content": "..."}].',
        )
    if tokenizer.chat_template is None:
        raise UsageError(
            f"{where} is a conversation, and the tokenizer has no chat template.",
            "Start from a chat model (chatpipe sft makes one), or give the prompts as text.",
        )
    return Prompt(encode_prompt(tokenizer, messages), content)


def _without_padding(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`ids` without the pad tokens at both ends. A single one that is BOS or EOS too may be that: it stays."""
    pad = tokenizer.pad_token_id
    fewest = 2 if pad in (tokenizer.bos_token_id, tokenizer.eos_token_id) else 1
    for _ in range(2):  # from the left, then from the right
        run = next((place for place, token in enumerate(ids) if token != pad), len(ids))
        ids = ids[run if run >= fewest else 0 :][::-1]
    return ids


def _are_messages(value: Any) -> TypeGuard[list[Message]]:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in value)
    )


# ---- the order of prompts and of everything else that is drawn ----


def seed_for(use: int, *numbers: int) -> int:
    """A 64-bit seed, a pure function of the use and of `numbers`: the run's seed, the iteration, the rank."""
    return int(np.random.SeedSequence([use, *numbers]).generate_state(1, np.uint64)[0])


def permutation(length: int, use: int, *numbers: int) -> Tensor:
    """A permutation [length], a pure function of the use and of `numbers`."""
    return torch.from_numpy(np.random.default_rng(seed_for(use, *numbers)).permutation(length))


def row_numbers(num_rows: int, start: int, count: int, seed: int, use: int = PROMPTS) -> list[int]:
    """The rows at the places `start`, ..., `start + count - 1` of an endless order of `num_rows` rows.

    The order is one pass over all rows after another, each shuffled differently. It depends on nothing but `seed`, so
    a run that is resumed or has another number of ranks takes the same rows.
    """
    passes = range(start // num_rows, (start + count - 1) // num_rows + 1)
    orders = {number: permutation(num_rows, use, seed, number) for number in passes}
    return [int(orders[place // num_rows][place % num_rows]) for place in range(start, start + count)]


# ---- rollouts and experience ----


@dataclass(frozen=True)
class Rollout:
    """Completions, and what all models and reward functions give them, without gradient, on the CPU.

    scores: [n], the total reward of each completion, before the missing-EOS penalty. by_source: metric names and the
    scores [n] of single sources. For each completion token, [N]: logprobs and ref_logprobs of the policy and the
    reference; values, read at the position before the token (they have not seen it). seconds: metric names and times.
    """

    sequences: Sequences
    scores: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    by_source: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Experience:
    """A rollout, or some sequences of it, with rewards and advantages.

    For each completion token, [N]: rewards (score and KL penalty); advantages, whitened; returns. The others as in
    `Rollout`.
    """

    sequences: Sequences
    scores: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def num_tokens(self) -> int:
        """N, the number of completion tokens: what every mean over tokens divides by."""
        return len(self.logprobs)

    def to(self, device: torch.device) -> "Experience":
        """The same with the numbers of its tokens on `device`; sequences and scores stay on the CPU."""
        moved = upload([getattr(self, name) for name in TOKEN_FIELDS], device)
        return replace(self, **dict(zip(TOKEN_FIELDS, moved, strict=True)))

    def select(self, rows: Tensor) -> "Experience":
        """The experience of the sequences `rows` [m] (int64), in that order."""
        tokens = flat_index(self.sequences.completion_lengths, rows)
        return Experience(
            sequences=self.sequences.select(rows),
            scores=self.scores[rows],
            **{name: getattr(self, name)[tokens] for name in TOKEN_FIELDS},
        )


TOKEN_FIELDS = ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
"""Fields of `Experience` with a number for each completion token."""
