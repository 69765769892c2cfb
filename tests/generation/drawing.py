"""What the tests of generation share: parameters, transformers' own greedy tokens, and a test of a distribution."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatpipe.generation import Completion, SamplingParams

NEVER = -1  # an eos that no model writes
GREEDY = SamplingParams(max_new_tokens=12, temperature=0)
SAMPLED = SamplingParams(max_new_tokens=12)
FINITE_EOS = 7


def ids_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.ids for completion in completions]


def transformers_greedy(model: PreTrainedModel, prompt: list[int], max_new_tokens: int = 12) -> list[int]:
    ids = torch.tensor([prompt])
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return written[0, len(prompt) :].tolist()


def assert_drawn_from(probs: Tensor, tokens: Tensor) -> None:
    """Pearson's chi-square test at 0.1 %: `tokens` [n] are draws from `probs` [vocabulary].

    Tokens that are expected less than 5 times count as one. The quantile is Wilson and Hilferty's (1931).
    """
    counts, expected = torch.bincount(tokens, minlength=len(probs)).double(), len(tokens) * probs.double()
    assert not counts[probs == 0].any()
    rare = expected < 5
    counts, expected = (torch.cat((x[~rare], x[rare].sum()[None])) for x in (counts, expected))
    statistic = ((counts - expected) ** 2 / expected.clamp(min=1)).sum().item()
    spread = 2 / (9 * (len(counts) - 1))
    assert statistic < (len(counts) - 1) * (1 - spread + 3.09 * spread**0.5) ** 3
