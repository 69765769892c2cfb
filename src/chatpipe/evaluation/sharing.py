"""How validation rows are spread over processes and over forward passes. No result depends on either."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from torch import distributed
from transformers import PreTrainedModel

Row = TypeVar("Row")
Result = TypeVar("Result")

MAX_ROWS = {"cpu": 32, "cuda": 512}
MAX_LOGITS = {"cpu": 2**22, "cuda": 2**28}
"""Numbers in the logits of one forward pass: 16 MB in float32 on a CPU, 1 GB on a GPU. Training takes more."""


def over_ranks(
    rows: Sequence[Row],
    evaluate: Callable[[Sequence[Row]], Sequence[Result]],
    same_rank: Callable[[Row], Hashable] | None = None,
) -> list[Result]:
    """The results of `evaluate` for all rows, in their order, on every process; each process evaluates a share.

    Every process calls it with the same rows. Process r evaluates rows r, r + world, ...; rows for which `same_rank`
    gives the same value are evaluated by one process, in their order. `evaluate` returns one result for each row it is
    given, possibly none, and may not use collectives.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return list(evaluate(rows))
    rank, world = distributed.get_rank(), distributed.get_world_size()
    groups: dict[Hashable, int] = {}
    keys = [number if same_rank is None else same_rank(row) for number, row in enumerate(rows)]
    owners = [groups.setdefault(key, len(groups)) % world for key in keys]
    own = evaluate([row for row, owner in zip(rows, owners, strict=True) if owner == rank])
    shares: list[Sequence[Result]] = [[] for _ in range(world)]
    distributed.all_gather_object(shares, list(own))
    results = [iter(share) for share in shares]
    return [next(results[owner]) for owner in owners]


def rows_at_once(model: PreTrainedModel, length: int) -> int:
    """The number of rows of `length` tokens whose logits `model` computes in one forward pass."""
    kind = "cuda" if model.device.type == "cuda" else "cpu"
    logits = length * model.config.get_text_config().vocab_size
    return max(1, min(MAX_ROWS[kind], MAX_LOGITS[kind] // logits))
