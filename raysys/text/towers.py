"""Two towers over one encoder: a user is the texts last bought, an item is its text.

Every text has one vector. The user's side keeps the vectors of the last purchases apart, turns
them by a learned matrix (what goes with a thing is not the thing) and weighs them by age; an item
scores by the soft maximum over them. One mean vector would blur a household that buys for a
kitchen and a garden. Both sides are independent, so item vectors are computed ahead
(multi-interest towers: Li et al. 2019, arXiv:1904.08030; late interaction: Khattab and Zaharia
2020, arXiv:2004.12832).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysys.text.encoder import Upper
from raysys.text.histories import PAD
from raysys.text.in_parts import in_parts


@dataclass(frozen=True)
class UserSide:
    """What turns vectors of a history into scores of items; plain arrays, no torch.

    Attributes:
        turn: float32[d, d]; an interest is a history vector plus its product with this.
        age: float32[length], log weight of the newest, second newest, … text.
        common: float32[d], what everybody wants: its product with an item's vector is added.
        sharpness: of the soft maximum; large: the nearest history item decides.
    """

    turn: npt.NDArray[np.float32]
    age: npt.NDArray[np.float32]
    common: npt.NDArray[np.float32]
    sharpness: float

    def interests(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Interests float32[n, d], unit rows, that history vectors float32[n, d] stand for."""
        turned = vectors + vectors @ self.turn.T
        length = np.linalg.norm(turned, axis=1, keepdims=True)
        return (turned / np.maximum(length, 1e-12)).astype(np.float32)

    def score(
        self, interests: npt.NDArray[np.float32], items: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Scores float32[n] of items float32[n, d] for one user, newest interest first.

        A user without a history has no interests, and gets what everybody wants.
        """
        everybody = items @ self.common
        if len(interests) == 0:
            return everybody.astype(np.float32)
        age = self.age[: len(interests)]
        logits = self.sharpness * (items @ interests.T) + age
        top = logits.max(axis=1)
        soft = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        most = age.max()
        norm = most + np.log(np.exp(age - most).sum())
        return ((soft - norm) / self.sharpness + everybody).astype(np.float32)


class Towers(nn.Module):
    """The same, with gradients, over a batch.

    Args:
        upper: the trainable part of the encoder.
        width: d of its vectors.
        length: of histories.
        sharpness: to begin with.

    Attributes:
        parts: in which texts and users are computed, where memory is short; see `in_parts`.
    """

    def __init__(self, upper: Upper, width: int, length: int, sharpness: float) -> None:
        super().__init__()
        self.parts = 1
        self.upper = upper
        self.turn = nn.Parameter(torch.zeros(width, width))
        self.age = nn.Parameter(-0.05 * torch.arange(length, dtype=torch.float32))
        self.common = nn.Parameter(torch.zeros(width))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))

    def head(self) -> list[nn.Parameter]:
        """What joins the vectors, beside the encoder that makes them."""
        return [self.turn, self.age, self.common, self.log_sharpness]

    def forward(self, states: Tensor, mask: Tensor, history: Tensor, columns: Tensor) -> Tensor:
        """Scores float32[b, c] of c items for b users.

        Args:
            states: of the m distinct texts of the batch, see `States.padded`.
            mask: bool[m, tokens].
            history: int64[b, length], rows of `states`, -1 where there is nothing.
            columns: int64[c], rows of `states`.
        """
        vectors = self.upper.by_length(states, mask, self.parts)
        turned = nn.functional.normalize(vectors + vectors @ self.turn.T, dim=1)
        nearness = turned @ vectors[columns].T
        near = in_parts(self._near, self.parts, (history,), (nearness,))
        return near + (vectors[columns] @ self.common)[None, :]

    def _near(self, history: Tensor, nearness: Tensor) -> Tensor:
        """The soft maximum float32[b, c] over histories of the nearness float32[m, c] of texts."""
        held = history != PAD
        sharpness = self.log_sharpness.exp()
        logits = sharpness * nearness[history.clamp(min=0)] + self.age[None, :, None]  # b, l, c
        logits = logits.masked_fill(~held[:, :, None], -torch.inf)
        norm = self.age[None, :].expand(len(history), -1).masked_fill(~held, -torch.inf)
        return (torch.logsumexp(logits, 1) - torch.logsumexp(norm, 1)[:, None]) / sharpness

    def user_side(self) -> UserSide:
        """What was learned, as arrays."""
        return UserSide(
            turn=self.turn.detach().cpu().numpy().astype(np.float32),
            age=self.age.detach().cpu().numpy().astype(np.float32),
            common=self.common.detach().cpu().numpy().astype(np.float32),
            sharpness=float(self.log_sharpness.detach().exp()),
        )


def sampled_softmax_loss(
    scores: Tensor,
    positive: Tensor,
    log_q: Tensor,
    temperature: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each positive against what the batch holds and the user did not want.

    An item is in the batch as often as it is popular, and would be pushed down for that; so the
    log of that chance is taken off its logit (Yi et al. 2019, doi:10.1145/3298689.3346996).

    Args:
        scores: float32[b, c].
        positive: bool[b, c], what each user wanted: never a negative of that user.
        log_q: float32[c], log of the chance that the column is in a batch.
        temperature: of the softmax.
        weight: float32[b], of the users; None: all the same.

    Returns:
        The mean over users of the mean over their positives; users without one do not count.
    """
    logits = scores / temperature - log_q[None, :]
    against = logits.masked_fill(positive, -1e9).logsumexp(1, keepdim=True)
    each = torch.logaddexp(logits, against) - logits
    count = positive.sum(1)
    of_user = each.masked_fill(~positive, 0.0).sum(1) / count.clamp(min=1)
    if weight is None:
        return of_user.sum() / (count > 0).sum().clamp(min=1)
    weight = weight * (count > 0)
    return (of_user * weight).sum() / weight.sum().clamp(min=1e-12)
