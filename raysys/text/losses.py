"""Losses of relevance: what a model's scores of pairs (query, item) are worth against the grades.

Each takes scores float32[b] and is a weighted mean, so that a batch's size does not change it.
Pointwise ones judge a pair alone; `margin` and `listwise` compare the pairs of one query, given by
`query`: int64[b], equal for pairs of one query.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from raysys.text.towers import sampled_softmax_loss

__all__ = [
    "cross_entropy",
    "expected_level",
    "listwise",
    "margin",
    "margin_mse",
    "mean_squared_error",
    "ordinal",
    "sampled_softmax_loss",
]


def cross_entropy(
    scores: Tensor, target: Tensor, weight: Tensor | None = None, *, smoothing: float = 0.0
) -> Tensor:
    """Binary cross-entropy with soft labels: a grade as the chance of being relevant.

    Args:
        scores: float32[b], logits.
        target: float32[b] in [0, 1]: the grade's place between the lowest and the highest.
        weight: float32[b]; None: all the same.
        smoothing: share of each label that is taken for ½ (Szegedy et al. 2016).
    """
    target = target * (1 - smoothing) + smoothing / 2
    each = functional.binary_cross_entropy_with_logits(scores, target, reduction="none")
    return _mean(each, weight)


def ordinal(
    scores: Tensor,
    level: Tensor,
    thresholds: Tensor,
    weight: Tensor | None = None,
    *,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of "is it above level k?" for every k, with one score and a threshold for each.

    Grades are ordered but not evenly spaced: thresholds learn the spaces (CORAL: Cao, Mirjalili
    and Raschka 2020, arXiv:1901.07884).

    Args:
        scores: float32[b].
        level: int64[b], 0 … k, the place of each grade among the sorted distinct grades.
        thresholds: float32[k], learned with the model.
        weight: float32[b]; None: all the same.
        smoothing: as in `cross_entropy`, of each answer.
    """
    above = (level[:, None] > torch.arange(len(thresholds), device=level.device)).to(scores.dtype)
    above = above * (1 - smoothing) + smoothing / 2
    logits = scores[:, None] - thresholds[None, :]
    each = functional.binary_cross_entropy_with_logits(logits, above, reduction="none").sum(1)
    return _mean(each, weight)


def expected_level(scores: Tensor, thresholds: Tensor, levels: Tensor) -> Tensor:
    """What `ordinal` makes of scores: the expected grade, float32[b].

    Args:
        scores: float32[b].
        thresholds: float32[k].
        levels: float32[k + 1], the sorted distinct grades.
    """
    above = torch.sigmoid(scores[:, None] - thresholds[None, :])
    # no matrix product: under autocast it would be one of bfloat16
    return levels[0] + (above * (levels[1:] - levels[:-1])).sum(1)


def mean_squared_error(scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared error of each score as a guess of its target, float32[b] both."""
    return _mean((scores - target) ** 2, weight)


def margin(
    scores: Tensor, target: Tensor, query: Tensor, weight: Tensor | None = None, *, size: float = 1
) -> Tensor:
    """Hinge over pairs of one query: the better must lead by `size` times what it is better.

    Args:
        scores: float32[b].
        target: float32[b], grades; only their differences count.
        query: int64[b].
        weight: float32[b]; two items weigh as their product. None: all the same.
        size: score asked for one unit of grade.

    Returns:
        0 (with a gradient of 0) where no query has items of different grades.
    """
    lead = target[:, None] - target[None, :]
    ordered = (query[:, None] == query[None, :]) & (lead > 0)
    each = functional.relu(size * lead - (scores[:, None] - scores[None, :]))
    both = None if weight is None else (weight[:, None] * weight[None, :])[ordered]
    return _mean(each[ordered], both) if ordered.any() else scores.sum() * 0.0


def listwise(
    scores: Tensor,
    target: Tensor,
    query: Tensor,
    weight: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """ListNet, top one: cross-entropy between the softmax of grades and that of scores of a query.

    (Cao et al. 2007, Learning to rank: from pairwise approach to listwise approach.)

    Args:
        scores: float32[b].
        target: float32[b], grades.
        query: int64[b].
        weight: float32[b]; a list weighs as the mean of its items. None: all the same.
        temperature: of the grades' softmax; small: only the best count.

    Returns:
        The mean over lists of two or more; 0 (with a gradient of 0) where there are none.
    """
    same = query[:, None] == query[None, :]
    size = same.sum(1)
    if not bool((size > 1).any()):
        return scores.sum() * 0.0
    # rows of one query repeat its softmax, so each row gets its own share of the list's loss
    log_p = scores - torch.where(same, scores[None, :], -torch.inf).logsumexp(1)
    wanted = target / temperature
    log_y = wanted - torch.where(same, wanted[None, :], -torch.inf).logsumexp(1)
    each = torch.ones_like(scores) if weight is None else weight
    of_list = (same * each[None, :]).sum(1) / size
    of_list = of_list * (size > 1)
    total = (of_list / size).sum()
    return -(log_y.exp() * log_p * of_list).sum() / total.clamp(min=1e-12)


def margin_mse(
    scores: Tensor, teacher: Tensor, query: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Distillation: differences between items of one query as the teacher's (margin-MSE).

    Only differences count, so the student is free to have another scale's origin (Hofstätter et
    al. 2020, arXiv:2010.02666).

    Args:
        scores: float32[b], of the student.
        teacher: float32[b], computed beforehand.
        query: int64[b].
        weight: float32[b]; two items weigh as their product. None: all the same.

    Returns:
        0 (with a gradient of 0) where no query has two items.
    """
    n = len(scores)
    upper = torch.ones(n, n, dtype=torch.bool, device=scores.device).triu(1)
    pairs = (query[:, None] == query[None, :]) & upper
    if not bool(pairs.any()):
        return scores.sum() * 0.0
    error = (scores[:, None] - scores[None, :]) - (teacher[:, None] - teacher[None, :])
    both = None if weight is None else (weight[:, None] * weight[None, :])[pairs]
    return _mean(error[pairs] ** 2, both)


def _mean(each: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return each.mean()
    return (each * weight).sum() / weight.sum().clamp(min=1e-12)
