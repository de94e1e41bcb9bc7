"""Cross-entropy over all items, or over a sample of them, at what a processor can do.

With tens of thousands of items the softmax is nearly all that training costs. A sample of
negatives is shared by a whole batch, and the logarithm of the chance to be in it is taken off
their logits (Bengio and Senécal, 2008; Yi et al., RecSys 2019), so that what is frequent in the
sample is not pushed down for it. On a CPU the products go to numpy's BLAS and the gradients are
made in place while the scores are at hand; elsewhere torch does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

ROWS = 1024  # of scores that are at hand at once


@dataclass(frozen=True)
class Competitors:
    """Whom the next item is compared with.

    Attributes:
        items: int64[c], distinct item numbers, in order; or None: all items.
        target: int64[p], where among them the right one stands.
        correction: float32[c], added to the logits of those that are not the right one.
        row, column: int64[m], cells of items that the place has already seen, each once, by row;
            they compete for certain, so nothing is taken off them.
    """

    items: Int64 | None
    target: Int64
    correction: Float32
    row: Int64
    column: Int64


class Sampler:
    """Draws competitors: the batch's own targets and `negatives` items by their frequency.

    Args:
        counts: float64[n_items], how often each item is a target.
        negatives: drawn with replacement; 0 or as many as there are items: all compete.
        power: of the frequency by which they are drawn; 0: evenly.
    """

    def __init__(self, counts: Float64, negatives: int, power: float) -> None:
        self.n_items = len(counts)
        self.negatives = negatives if 0 < negatives < self.n_items else 0
        share = (counts + 1.0) ** power
        self._drawn = share / share.sum()
        self._bounds = np.cumsum(self._drawn)
        self._target = counts / max(counts.sum(), 1.0)

    def draw(
        self, targets: Int64, row: Int64, seen: Int64, rng: np.random.Generator
    ) -> Competitors:
        """Competitors of a batch.

        Args:
            targets: int64[p].
            row: int64[m], places, rising.
            seen: int64[m], an item that the place has already seen; see `seen_before`.
            rng: draws.
        """
        if not self.negatives:
            correction = np.zeros(self.n_items, dtype=np.float32)
            return Competitors(None, targets, correction, row, seen)
        drawn = np.searchsorted(self._bounds, rng.random(self.negatives))
        drawn = np.minimum(drawn, self.n_items - 1)
        whole = np.concatenate([targets, seen, drawn])
        items, place = np.unique(whole, return_inverse=True)
        absent = self.negatives * np.log1p(-np.minimum(self._drawn[items], 0.999))
        absent += len(targets) * np.log1p(-np.minimum(self._target[items], 0.999))
        correction = -np.log(-np.expm1(absent)).astype(np.float32)
        n, m = len(targets), len(seen)
        return Competitors(items, place[:n], correction, row, place[n : n + m])


@njit(cache=True, nogil=True)
def seen_before(items, offsets, every):  # type: ignore[no-untyped-def]
    """What each place has seen up to and with itself: place, item, steps back to its latest time.

    Args:
        items: int[n] of sequences.
        offsets: int64[s + 1].
        every: all places of a sequence ask, numbered as they stand; or only the last of each,
            numbered by sequence.
    """
    room = 0
    for s in range(len(offsets) - 1):
        size = offsets[s + 1] - offsets[s]
        room += size * (size + 1) // 2 if every else size
    rows = np.empty(room, dtype=np.int64)
    seen = np.empty(room, dtype=np.int64)
    back = np.empty(room, dtype=np.int64)
    n = 0
    for s in range(len(offsets) - 1):
        start, stop = offsets[s], offsets[s + 1]
        for at in range(start if every else max(start, stop - 1), stop):
            for j in range(at, start - 1, -1):
                fresh = True
                for later in range(j + 1, at + 1):
                    if items[later] == items[j]:
                        fresh = False
                        break
                if fresh:
                    rows[n] = at if every else s
                    seen[n] = items[j]
                    back[n] = at - j
                    n += 1
    return rows[:n], seen[:n], back[:n]


def softmax_loss(
    hidden: torch.Tensor,
    items: torch.Tensor,
    again: torch.Tensor,
    competitors: Competitors,
    smoothing: float,
) -> torch.Tensor:
    """Mean cross-entropy of the right items among their competitors.

    Args:
        hidden: float32[p, d], scaled by the inverse temperature.
        items: float32[c, d], vectors of the competitors.
        again: float32[m], added to the logits of items already seen.
        competitors: which is right, the corrections, the cells of `again`.
        smoothing: share of the target spread evenly over all competitors.
    """
    if hidden.device.type == "cpu":
        apply: Any = _OnProcessor.apply
        loss: torch.Tensor = apply(hidden, items, again, competitors, smoothing)
        return loss
    device = hidden.device
    target = torch.from_numpy(competitors.target).to(device)
    cells = (
        torch.from_numpy(competitors.row).to(device),
        torch.from_numpy(competitors.column).to(device),
    )
    correction = torch.from_numpy(competitors.correction).to(device)
    plain = (hidden @ items.T).index_put(cells, again, accumulate=True)
    right = plain.gather(1, target[:, None])
    corrected = (plain + correction).index_put(cells, -correction[cells[1]], accumulate=True)
    mass = corrected.scatter(1, target[:, None], right).logsumexp(1)
    return (mass - (1 - smoothing) * right[:, 0] - smoothing * plain.mean(1)).mean()


class _OnProcessor(torch.autograd.Function):
    """The same, with gradients made in the forward pass: scores are written once and never kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        items: torch.Tensor,
        again: torch.Tensor,
        competitors: Competitors,
        smoothing: float,
    ) -> torch.Tensor:
        h, e = hidden.detach().numpy(), items.detach().numpy()
        slope_h, slope_e = np.empty_like(h), np.zeros_like(e)
        value = again.detach().numpy()
        slope_a = np.zeros_like(value)
        loss, n = 0.0, len(h)
        room = np.empty((min(ROWS, n), len(e)), dtype=np.float32)
        for start in range(0, n, ROWS):
            part = h[start : start + ROWS]
            scores = np.dot(part, e.T, out=room[: len(part)])
            target = competitors.target[start : start + ROWS]
            a, b = np.searchsorted(competitors.row, [start, start + len(part)])
            cells = competitors.row[a:b] - start, competitors.column[a:b]
            loss += _lowered(
                scores, target, competitors.correction, *cells, value[a:b], np.float32(smoothing)
            )
            np.exp(scores, out=scores)
            loss += _slopes(scores, target, np.float32(smoothing), np.float32(n))
            slope_a[a:b] = scores[cells]
            np.dot(scores, e, out=slope_h[start : start + ROWS])
            slope_e += scores.T @ part
        ctx.slopes = tuple(torch.from_numpy(slope) for slope in (slope_h, slope_e, slope_a))
        return torch.tensor(loss / n, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        return (*(each * slope for each in ctx.slopes), None, None)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _lowered(  # type: ignore[no-untyped-def]
    scores, target, correction, row_of, column_of, again, smoothing
):
    """Corrects the scores and takes each row's highest off; the loss that does not need a sum."""
    loss = 0.0
    n = scores.shape[1]
    for i in range(len(row_of)):
        scores[row_of[i], column_of[i]] += again[i]
    cell = 0
    for row in range(len(scores)):
        mine = scores[row]
        own = mine[target[row]]
        mean = np.float32(0)
        if smoothing > 0:
            for j in range(n):
                mean += mine[j]
            mean /= np.float32(n)
        top = own
        for j in range(n):
            mine[j] += correction[j]
        while cell < len(row_of) and row_of[cell] == row:
            mine[column_of[cell]] -= correction[column_of[cell]]
            cell += 1
        mine[target[row]] = own
        for j in range(n):
            top = max(top, mine[j])
        for j in range(n):
            mine[j] -= top
        loss += top - (1 - smoothing) * own - smoothing * mean
    return loss


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _slopes(mass, target, smoothing, rows):  # type: ignore[no-untyped-def]
    """Turns exponentials into gradients of the mean loss; the rest of the loss."""
    loss = 0.0
    n = mass.shape[1]
    even = smoothing / np.float32(n) / rows
    for row in range(len(mass)):
        mine = mass[row]
        total = np.float32(0)
        for j in range(n):
            total += mine[j]
        loss += np.log(total)
        share = np.float32(1) / (total * rows)
        for j in range(n):
            mine[j] = mine[j] * share - even
        mine[target[row]] -= (np.float32(1) - smoothing) / rows
    return loss
