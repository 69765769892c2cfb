"""The K-wise ranking loss, as pure tensor functions.

Shapes: the responses of all prompts are concatenated, prompt by prompt; `sizes[p]` is the K of prompt p. `scores` and
`ranks` are (sum K,), `sizes` is (prompts,). Rank 1 is best, equal ranks are ties.
"""

import torch
from torch import Tensor
from torch.nn import functional


def ranking_loss(scores: Tensor, ranks: Tensor, sizes: Tensor, margins: Tensor | None = None) -> Tensor:
    """For each prompt the mean of -log sigmoid(r_better - r_worse - margin) over its pairs not tied, (prompts,).

    InstructGPT (arXiv 2203.02155) equation 1; tied pairs are dropped as in its appendix C.2. A prompt whose responses
    are all tied gives 0 with a gradient of 0. `margins` (prompts,) are 0 there; with others it is the loss of Llama 2
    (arXiv 2307.09288, equation 2).
    """
    pairs = comparable_pairs(ranks, sizes)
    ahead = pair_margins(scores, sizes)
    if margins is not None:
        ahead = ahead - margins[:, None, None]
    losses = torch.where(pairs, -functional.logsigmoid(ahead), 0.0)
    return losses.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def comparable_pairs(ranks: Tensor, sizes: Tensor) -> Tensor:
    """Where [p, i, j] are two responses of prompt p of which i is ranked better: bool (prompts, max K, max K)."""
    index, real = _grid(sizes)
    rank = ranks[index]
    return (rank[:, :, None] < rank[:, None, :]) & real[:, :, None] & real[:, None, :]


def pair_margins(scores: Tensor, sizes: Tensor) -> Tensor:
    """score of response i - score of response j at [p, i, j]: (prompts, max K, max K).

    Only the entries where `comparable_pairs` is true are meaningful.
    """
    index, _ = _grid(sizes)
    score = scores[index]
    return score[:, :, None] - score[:, None, :]


def _grid(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The index of response k of prompt p in the flat tensors, and whether there is one: (prompts, max K) both."""
    column = torch.arange(int(sizes.max()), device=sizes.device)
    real = column < sizes[:, None]
    start = sizes.cumsum(0) - sizes
    return torch.where(real, start[:, None] + column, start[:, None]), real
