"""What an evaluation may cost: at most a quarter of the time of a stage that trains for over ten minutes.

The rule counts FLOPs, so the same recipe, model and data give the same validation rows on every machine:

- An evaluation may take a sixth of the FLOPs of training, or 10^13 where that is more: a minute or two on two CPU
  cores, less than a second on a GPU. A sixth of training is a seventh of the stage, which leaves room for what
  evaluation does less efficiently than training.
- A forward pass takes 2N FLOPs a token, N the parameters; training 6N. A generated token counts as 10 tokens of a
  forward pass: generation reads all weights for a few rows at a time.
- sft gives half of this to the loss of its validation conversations, half to generated answers.
- At least `MIN_ROWS` rows are evaluated in any case; a verdict on fewer would be too uncertain.

rm needs no bound: it reads each validation ranking once, a tenth of the data, which takes a twentieth of the FLOPs of
one epoch. Nothing here imports torch.
"""

import time
from types import TracebackType

SHARE = 1 / 6
ALWAYS = 1e13
FORWARD, TRAINING = 2, 6
"""FLOPs a token and parameter."""
GENERATED = 10
"""Tokens of a forward pass that cost as much time as one generated token."""
MIN_ROWS = 32


def affordable_rows(train_flops: float, flops_per_row: float, share: float = 1.0) -> int:
    """The number of validation rows of `flops_per_row` each, where they may take `share` of the evaluation's FLOPs."""
    return max(MIN_ROWS, int(share * max(ALWAYS, SHARE * train_flops) / flops_per_row))


def text_blocks(parameters: int, train_tokens: int, block_size: int, evaluations: int) -> int:
    """Blocks of validation text for pretrain, which reads them at each of `evaluations`."""
    return affordable_rows(TRAINING * parameters * train_tokens, FORWARD * parameters * block_size * evaluations)


def chat_rows(parameters: int, train_tokens: int, tokens_per_row: float, evaluations: int) -> int:
    """Validation conversations for sft, which reads them at each of `evaluations`, and twice for the question gain."""
    per_row = FORWARD * parameters * tokens_per_row * (evaluations + 2)
    return affordable_rows(TRAINING * parameters * train_tokens, per_row, share=1 / 2)


def chat_prompts(parameters: int, train_tokens: int, max_new_tokens: int) -> int:
    """Validation prompts that sft's model answers."""
    per_prompt = FORWARD * parameters * GENERATED * max_new_tokens
    return affordable_rows(TRAINING * parameters * train_tokens, per_prompt, share=1 / 2)


def policy_prompts(
    parameters: int,
    episodes: int,
    epochs: int,
    prompt_tokens: float,
    response_length: int,
    answer_tokens: int,
    models: int,
) -> int:
    """Validation prompts for ppo, where `models` answer each with up to `answer_tokens`.

    An episode is generated, read by policy, value model, reference and reward model, and trained on `epochs` times by
    two models. A validation prompt is answered by each model and scored, and completed once more for the KL, which
    policy and reference read.
    """
    length = prompt_tokens + response_length
    episode = FORWARD * (GENERATED * response_length + 4 * length) + TRAINING * 2 * length * epochs
    answers = models * (GENERATED * answer_tokens + prompt_tokens + answer_tokens)
    kl = GENERATED * response_length + 2 * length
    return affordable_rows(parameters * episodes * episode, FORWARD * parameters * (answers + kl))


class Stopwatch:
    """Adds up the seconds spent inside it: `with stopwatch: ...`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> "Stopwatch":
        self._start = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.monotonic() - self._start
