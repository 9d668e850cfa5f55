"""The place of what is wanted among candidates, and how good a list of places is.

Dims: N rows, V candidates of a row.
"""

from collections.abc import Sequence

import torch


def places(scores_NV: torch.Tensor, wanted_N: torch.Tensor) -> torch.Tensor:
    """(N,) how many candidates stand before the wanted one of each row, best first.

    Of equal ones the first stands first, so that a model which scores all alike is not right. A score that
    is no number comes last where it is that of the wanted one, else first.
    """
    own = scores_NV.gather(1, wanted_N[:, None])
    earlier = torch.arange(scores_NV.shape[1], device=scores_NV.device) < wanted_N[:, None]
    return (~(scores_NV <= own) | ((scores_NV == own) & earlier)).sum(1)


def ranking(ranks: Sequence[int], k: int) -> dict[str, float]:
    """{ndcg, hr} at k of rows with one wanted candidate, before which so many stand: the mean gain 1 /
    log2(2 + rank), and the share that is found."""
    rank = torch.as_tensor(ranks, dtype=torch.float64)
    found = rank < k
    return {f"ndcg{k}": float((found / (rank + 2).log2()).mean()), f"hr{k}": float(found.double().mean())}
