"""A linear-chain conditional random field over batches of padded sequences.

Lafferty, McCallum and Pereira (ICML 2001). A step of the forward recursion is one matrix product
of exponentials, shifted by their maximum: with a hundred tags that is many times faster than
`logsumexp` over all pairs. All in float32, autocast or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-30


@dataclass(frozen=True)
class Chain:
    """The potentials of b sequences of up to u units over k tags.

    Attributes:
        emissions: float32[b, u, k].
        transitions: float32[k + 1, k + 1], from a tag to the next; the last row is the beginning,
            the last column the end; -inf where one may not follow the other.
        lengths: int64[b], units of each sequence, at least one.
    """

    emissions: Tensor
    transitions: Tensor
    lengths: Tensor

    def cooled(self, temperature: float) -> Chain:
        """All potentials divided by a temperature: above 1 the distribution is less sure."""
        return Chain(self.emissions / temperature, self.transitions / temperature, self.lengths)

    def score(self, tags: Tensor) -> Tensor:
        """Unnormalised log probability of a tag sequence: float32[b].

        Args:
            tags: int64[b, u]; what stands behind a sequence's end is not read.
        """
        b, u, k = self.emissions.shape
        place = torch.arange(u, device=tags.device)
        inside = place[None, :] < self.lengths[:, None]
        tags = torch.where(inside, tags, 0)
        emitted = self.emissions.float().gather(2, tags[:, :, None]).squeeze(2)
        first = torch.full((b, 1), k, device=tags.device)
        moves = self.transitions[torch.cat([first, tags[:, :-1]], 1), tags]
        total = torch.where(inside, emitted + moves, 0.0).sum(1)
        last = tags.gather(1, self.lengths[:, None] - 1).squeeze(1)
        return total + self.transitions[last, k]

    def forward(self) -> tuple[Tensor, Tensor]:
        """Log sums over all beginnings: float32[b, u, k]; and over everything: float32[b]."""
        with torch.autocast(self.emissions.device.type, enabled=False):
            emissions = self.emissions.float()
            k = emissions.shape[2]
            moves = self.transitions[:k, :k].exp()
            alpha = emissions[:, 0] + self.transitions[k, :k]
            steps = [alpha]
            for at in range(1, emissions.shape[1]):
                alpha = emissions[:, at] + _through(alpha, moves)
                steps.append(alpha)
            alphas = torch.stack(steps, 1)
            index = (self.lengths - 1)[:, None, None].expand(-1, 1, k)
            last = alphas.gather(1, index).squeeze(1)
            return alphas, torch.logsumexp(last + self.transitions[:k, k], 1)

    def backward(self) -> Tensor:
        """Log sums over all ends, without the emission of the unit itself: float32[b, u, k]."""
        with torch.autocast(self.emissions.device.type, enabled=False):
            emissions = self.emissions.float()
            b, u, k = emissions.shape
            moves = self.transitions[:k, :k].exp().T.contiguous()
            end = self.transitions[:k, k].expand(b, k)
            beta, steps = end, [end]
            for at in range(u - 2, -1, -1):
                onward = _through(beta + emissions[:, at + 1], moves)
                beta = torch.where((at + 1 < self.lengths)[:, None], onward, end)
                steps.append(beta)
            return torch.stack(steps[::-1], 1)

    def negative_log_likelihood(self, tags: Tensor) -> Tensor:
        """Of given tag sequences, int64[b, u]: float32[b], in nats."""
        return self.forward()[1] - self.score(tags)

    def marginals(self) -> Tensor:
        """Probability of each tag at each unit: float32[b, u, k]."""
        alpha, total = self.forward()
        return (alpha + self.backward() - total[:, None, None]).exp()


def _through(state: Tensor, moves: Tensor) -> Tensor:
    """log(exp(state) @ moves), safely: float32[b, k]. A state nothing leads to is very unlikely."""
    highest = state.amax(1, keepdim=True).detach()
    return highest + ((state - highest).exp() @ moves).clamp(min=TINY).log()
