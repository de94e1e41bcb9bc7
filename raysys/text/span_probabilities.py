"""How probable every span is that a tagger's chain could mean, summed over all else it could say.

The most probable tag sequence is the best guess at the whole text; for F1 of spans, and for a
probability that means something, each span's own marginal counts (Culotta and McCallum, HLT 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysys.text.crf import Chain
from raysys.text.spans import Taken
from raysys.text.tags import Tags

FLOOR = 0.02
"""Less probable spans are not even looked at."""


@dataclass(frozen=True)
class Candidate:
    """A span of units.

    Attributes:
        first: its first unit.
        last: the unit after its last.
        label: number of the label.
        probability: that the text has exactly this span.
    """

    first: int
    last: int
    label: int
    probability: float


@torch.inference_mode()
def candidates(chain: Chain, tags: Tags, longest: int) -> list[list[Candidate]]:
    """Every span of at least `FLOOR`, of each sequence, in the order of their first units.

    Args:
        chain: of b sequences.
        tags: whose potentials they are.
        longest: spans of so many units at most.
    """
    alpha, total = chain.forward()
    beta = chain.backward()
    emissions, moves = chain.emissions.float(), chain.transitions
    b, u, _ = emissions.shape
    labels = range(len(tags.labels))
    device = emissions.device
    found: list[list[Candidate]] = [[] for _ in range(b)]
    if not labels:
        return found
    begin = torch.tensor([tags.path(at, 2)[0] for at in labels], device=device)
    lone = torch.tensor([tags.path(at, 1)[0] for at in labels], device=device)
    inner = torch.tensor([tags.path(at, 3)[1] for at in labels], device=device)
    last = torch.tensor([tags.path(at, 2)[1] for at in labels], device=device)
    leave = _leaving(chain, beta, tags)
    so_far = alpha[:, :, begin]  # of spans that began `length - 1` units ago, by their first unit
    place = torch.arange(u, device=device)
    for length in range(1, min(longest, u) + 1):
        n = u - length + 1
        if length == 1:
            score = alpha[:, :, lone] + leave[:, :, lone]
        else:
            ends = emissions[:, length - 1 :, last]
            come = begin if length == 2 else inner
            score = so_far[:, :n] + moves[come, last] + ends + leave[:, length - 1 :, last]
            if length == 2:
                so_far = so_far[:, :n] + moves[begin, inner] + emissions[:, 1:, inner]
            else:
                so_far = so_far[:, :n] + moves[inner, inner] + emissions[:, length - 1 :, inner]
        probability = (score - total[:, None, None]).exp()
        whole = place[None, :n] + length <= chain.lengths[:, None]
        probability = torch.where(whole[:, :, None], probability, 0.0)
        for row, first, label in (probability >= FLOOR).nonzero().tolist():
            value = min(1.0, float(probability[row, first, label]))
            found[row].append(Candidate(first, first + length, label, value))
    return [sorted(each, key=lambda c: (c.first, c.last, c.label)) for each in found]


def _leaving(chain: Chain, beta: Tensor, tags: Tags) -> Tensor:
    """As `Chain.backward`, but the span of a tag does not go on: float32[b, u, k].

    With BIOES no end goes on; in BIO what follows a B or an I must not be an I of the same label.
    """
    if tags.scheme == "bioes":
        return beta
    emissions, moves = chain.emissions.float(), chain.transitions
    _, u, k = emissions.shape
    onward = moves[:k, :k].clone()
    for label in range(len(tags.labels)):
        b, i = tags.path(label, 2)
        onward[b, i] = onward[i, i] = -torch.inf
    out = beta.clone()
    for at in range(u - 1):
        state = beta[:, at + 1] + emissions[:, at + 1]
        highest = state.amax(1, keepdim=True)
        stepped = highest + ((state - highest).exp() @ onward.exp().T).clamp(min=1e-30).log()
        out[:, at] = torch.where((at + 1 < chain.lengths)[:, None], stepped, beta[:, at])
    return out


def apart(spans: Sequence[Candidate]) -> list[Candidate]:
    """The most probable spans of which no two share a unit, in the order of the text."""
    order = sorted(spans, key=lambda c: (-c.probability, c.first, c.last, c.label))
    taken = Taken()
    return sorted((c for c in order if taken.takes(c.first, c.last)), key=lambda c: c.first)
