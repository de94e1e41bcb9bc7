"""Rows through a network part by part: what memory does not hold at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_parts(
    compute: Callable[..., Tensor], parts: int, cut: Sequence[Tensor], whole: Sequence[Tensor] = ()
) -> Tensor:
    """What `compute` gives of some rows, part by part: the same values and gradients, less memory.

    Of more than one part only the outcome is kept, and each is computed again when gradients go
    back through it (Chen et al. 2016, arXiv:1604.06174). So a loss of all rows together costs the
    memory of a part (as in Gao et al. 2021, arXiv:2101.06983).

    Args:
        compute: rows of `cut`, then `whole`, to as many rows.
        parts: how many, at most.
        cut: tensors with a row for each row of the outcome.
        whole: what every part reads.
    """
    if parts <= 1:
        return compute(*cut, *whole)
    pieces = zip(*(each.chunk(parts) for each in cut), strict=True)
    found: list[Any] = [
        checkpoint(compute, *piece, *whole, use_reentrant=False) for piece in pieces
    ]
    return torch.cat(found)
