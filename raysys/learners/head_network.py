"""The network of the head while it is fitted, and the projection it begins with."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, cat, nn

from raysys.text.in_parts import in_parts

Float32 = npt.NDArray[np.float32]


def whitening(vectors: Float32, size: int) -> Float32:
    """Onto the main directions of centred vectors, each with variance one: float32[p, d]."""
    _, length, directions = np.linalg.svd(vectors, full_matrices=False)
    kept = int(min(size, (length > 1e-3 * length[0]).sum()))
    spread = length[:kept] / math.sqrt(len(vectors))
    found: Float32 = (directions[:kept] / spread[:, None]).astype(np.float32)
    return found


class _Dropout(nn.Module):
    """As `nn.Dropout`, in 256ths: a byte a value is drawn faster than torch's fractions."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = min(255, round(256 * share))

    def forward(self, values: Tensor) -> Tensor:
        share = self.share
        if not (self.training and share):
            return values
        if values.device.type == "cpu":
            seed = int(torch.randint(1 << 62, ()))  # whose state a checkpoint holds
            drawn = np.random.default_rng(seed).integers(0, 256, values.shape, np.uint8)
            byte = torch.from_numpy(drawn)
        else:
            byte = torch.randint(0, 256, values.shape, dtype=torch.uint8, device=values.device)
        return values * (byte >= share).to(values.dtype).mul_(256 / (256 - share))


class HeadNetwork(nn.Module):
    """Features and text vectors to scores.

    Args:
        wide: scaled columns of a row.
        project: float32[p, d], of text vectors, to begin with.
        width: of both hidden layers.
        dropout: share of hidden values left out.

    Attributes:
        parts: in which rows are computed, where memory is short; see `in_parts`.
    """

    def __init__(self, wide: int, project: Float32, width: int, dropout: float) -> None:
        super().__init__()
        size, vector = project.shape
        self.parts = 1
        self.project = nn.Linear(vector, size, bias=False)
        self.project.weight = nn.Parameter(torch.from_numpy(project))
        self.body = nn.Sequential(
            nn.Linear(wide + 2 * size, width), nn.SiLU(), _Dropout(dropout),
            nn.Linear(width, width), nn.SiLU(), _Dropout(dropout),
            nn.Linear(width, 1),
        )  # fmt: skip

    def forward(
        self, wide: Tensor, texts: Tensor, text: Tensor, users: Tensor, request: Tensor
    ) -> Tensor:
        """Scores float32[n]; what many rows share is projected once.

        Args:
            wide: float32[n, wide].
            texts: float32[t, d], centred vectors.
            text: int64[n], the text of each row.
            users: float32[b, d], mean vectors of histories.
            request: int64[n], the user of each row.
        """
        read = self.project(texts), self.project(users)
        return in_parts(self._rows, self.parts, (wide, text, request), read)

    def _rows(
        self, wide: Tensor, text: Tensor, request: Tensor, texts: Tensor, users: Tensor
    ) -> Tensor:
        item, user = texts[text], users[request]
        scores: Tensor = self.body(cat([wide, item, item * user], dim=1))
        return scores.squeeze(1)
