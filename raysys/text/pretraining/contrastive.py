"""Contrastive pre-training from behaviour: texts that belong together get vectors that are near.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748): each left text has to find its right one among
those of the whole batch and among hard negatives, which retrieval over the vectors of the moment
found near it (ANCE, Xiong et al. 2021, arXiv:2007.00808) and finds anew before each epoch. A text
is in a batch as often as it is popular; that is corrected for (Yi et al. 2019,
doi:10.1145/3298689.3346996). What is known to belong to a text is never its negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from raysys.config import Settings
from raysys.retrieval.vector import VectorIndex
from raysys.text.models import open_model
from raysys.text.pretraining.behaviour import SOURCES, Pairs, PairSettings
from raysys.text.pretraining.known import Known
from raysys.text.pretraining.masked import by_length, check_length
from raysys.text.pretraining.pairs import few
from raysys.text.pretraining.tokens import Frame, Int64, Tokens
from raysys.text.towers import sampled_softmax_loss
from raysys.text.training import Objective, TrainingSettings
from raysys.text.training.objective import Identity, Tensors

Float32 = npt.NDArray[np.float32]
NONE = -1
EXACT_UP_TO = 500_000
"""Right texts up to which every one is compared in mining. For 60,000 texts among as many (384
dimensions, two busy cores, by 4,096 of them) that takes 25 s; a graph takes 104 s to be made and
165 s to be searched. The one grows with the square of their number, the other nearly with the
number: they meet somewhere here."""
TOP = 10
"""Of recall: what a shop shows first."""
_NEVER = -1e4
"""Score of a false negative: no softmax sees it, and no gradient becomes NaN, as with infinity."""


class HardNegatives(Settings):
    """Negatives that retrieval finds near a left text.

    Attributes:
        count: of each pair of a batch, drawn anew each time; 0: none, only the batch's own.
        among: so many texts near a left text are kept to draw from.
        skip: the very nearest are not: of those the log may not know yet that they belong.
        first: find some before the first step too; a model from scratch knows of nothing near.
    """

    count: int = Field(2, ge=0)
    among: int = Field(50, ge=1)
    skip: int = Field(3, ge=0)
    first: bool = True


class ContrastiveSettings(Settings):
    """Contrastive pre-training.

    Attributes:
        pairs: which texts belong together.
        temperature: of the softmax over cosines.
        popularity_correction: 1: all of logQ is taken off, 0: nothing.
        hard_negatives: beside those of the batch.
        max_tokens: read of each text, marks included.
        judge_on: held-out left texts that recall is measured on, at most.
        judge_among: right texts that are ranked then, at most: all those looked for, and others.
        training: steps, rates and the like; an example is a pair.
    """

    kind: Literal["contrastive"] = "contrastive"
    pairs: PairSettings
    temperature: float = Field(0.05, gt=0)
    popularity_correction: float = Field(1.0, ge=0, le=1)
    hard_negatives: HardNegatives = HardNegatives()
    max_tokens: int = Field(64, ge=8)
    judge_on: int = Field(500, ge=1)
    judge_among: int = Field(2000, ge=2)
    training: TrainingSettings = TrainingSettings(epochs=1, learning_rate=2e-5)


class VectorModel(nn.Module):
    """A transformer that makes one unit vector of a text: the mean over its tokens.

    Args:
        backbone: as `open_model` gives it.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # of no use to a mean, and its idle weights would stall DDP
        self.backbone = backbone

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Unit vectors float32[m, d] of m texts."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        hidden = self.backbone(**given)[0]
        weights = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return nn.functional.normalize(mean.float(), dim=1)


class ContrastiveObjective(Objective):
    """Bring together what belongs together.

    Args:
        model: packaged, a folder or a hub id.
        pairs: of the shop.
        tokens: of `pairs.texts`, one piece a text (`tokenise(…, pieces=False)`).
        settings: negatives, lengths, steps.
        seed: of which texts recall is measured among.
    """

    criterion = "recall_at_10"
    maximise = True
    title = "contrastive pre-training"

    def __init__(
        self, model: str, pairs: Pairs, tokens: Tokens, settings: ContrastiveSettings, seed: int = 0
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.tokens = tokens
        self.settings = settings
        self.seed = seed
        opened, tokenizer = open_model(model, where="model")
        check_length(opened, settings.max_tokens)
        self.frame = Frame.of(tokenizer, opened)
        self.known = Known(pairs)
        self.rows = np.flatnonzero(~pairs.held_out)
        keys = pairs.source.astype(np.int64) * len(pairs.texts) + pairs.left
        self._anchors, self._anchor = np.unique(keys[self.rows], return_inverse=True)
        self.mined: Int64 = np.full((len(self._anchors), 0), NONE, np.int64)
        self.log_q = self._log_q()

    def build(self) -> nn.Module:
        """See `Objective.build`."""
        return VectorModel(open_model(self.model, where="model")[0])

    def identity(self) -> Identity:
        """See `Objective.identity`."""
        return {
            "settings": self.settings,
            "texts": [self.tokens.ids, self.tokens.lengths],
            "pairs": [self.pairs.left, self.pairs.right, self.pairs.source, self.pairs.held_out],
        }

    def lengths(self) -> Int64:
        """See `Objective.lengths`."""
        each = np.minimum(self.tokens.lengths, self._room())
        return each[self.pairs.left[self.rows]] + each[self.pairs.right[self.rows]]

    def _room(self) -> int:
        return self.settings.max_tokens - len(self.frame.begin) - len(self.frame.end)

    # ── batches ──────────────────────────────────────────────────────────────────────────────

    def collate(self, rows: Int64, rng: np.random.Generator) -> Tensors:
        """See `Objective.collate`.

        Returns:
            The m distinct texts of the batch; `left` int64[b] and `columns` int64[c], rows of
            them; `positive` and `ignored` bool[b, c]; `log_q` float32[c].
        """
        left, right = self.pairs.left[self.rows[rows]], self.pairs.right[self.rows[rows]]
        columns = np.unique(np.concatenate([right, self._drawn(rows, rng)]))
        texts = np.unique(np.concatenate([left, columns]))
        positive = columns[None, :] == right[:, None]
        together = self.known.together(left[:, None], right[:, None], columns[None, :])
        return {
            **self._framed(texts),
            "left": torch.from_numpy(np.searchsorted(texts, left)),
            "columns": torch.from_numpy(np.searchsorted(texts, columns)),
            "positive": torch.from_numpy(positive),
            "ignored": torch.from_numpy(together & ~positive),
            "log_q": torch.from_numpy(self.log_q[columns]),
        }

    def _drawn(self, rows: Int64, rng: np.random.Generator) -> Int64:
        """Hard negatives of the pairs: int64[at most b · count], -1 left out."""
        count = min(self.settings.hard_negatives.count, self.mined.shape[1])
        if not count:
            return np.empty(0, np.int64)
        mined = self.mined[self._anchor[rows]]
        order = rng.random(mined.shape)
        order[mined == NONE] = 2.0
        chosen = np.take_along_axis(mined, np.argsort(order, axis=1)[:, :count], axis=1).ravel()
        return chosen[chosen != NONE]

    def _framed(self, texts: Int64) -> Tensors:
        room = self._room()
        pieces = (np.asarray(self.tokens.ids[self.tokens.piece(t)])[:room] for t in texts.tolist())
        return self.frame.batch([self.frame.one(ids) for ids in pieces])

    def _log_q(self) -> Float32:
        """Log of how likely each text is to be a column, float32[m]: as a right text, or mined."""
        n = len(self.pairs.texts)
        chance = np.bincount(self.pairs.right[self.rows], minlength=n).astype(np.float64)
        chance /= chance.sum()
        mined = self.mined[self.mined != NONE]
        if len(mined):
            hard = self.settings.hard_negatives.count
            near = np.bincount(mined, minlength=n) / len(mined)
            chance = (chance + hard * near) / (1 + hard)
        found = np.log(np.maximum(chance, 0.1 / n))
        return (found * self.settings.popularity_correction).astype(np.float32)

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        """See `Objective.loss`: mean over pairs."""
        vectors = module(**_given(batch))
        with torch.autocast(vectors.device.type, enabled=False):
            scores = vectors[batch["left"]].float() @ vectors[batch["columns"]].float().T
        scores = scores.masked_fill(batch["ignored"], _NEVER)
        return sampled_softmax_loss(
            scores, batch["positive"], batch["log_q"], self.settings.temperature
        )

    # ── hard negatives ───────────────────────────────────────────────────────────────────────

    @torch.inference_mode()
    def refresh(self, module: nn.Module, epoch: int) -> None:
        """Find the texts that are nearest to each left text now, and do not belong to it."""
        wanted = self.settings.hard_negatives
        if not wanted.count:
            return
        pairs = self.pairs
        lefts = self._anchors % len(pairs.texts)
        sources = self._anchors // len(pairs.texts)
        self.mined = np.full((len(lefts), wanted.among), NONE, np.int64)
        for source in np.unique(sources):
            of_source = self.rows[pairs.source[self.rows] == source]
            rights = np.unique(pairs.right[of_source])
            at = np.flatnonzero(sources == source)
            index = VectorIndex.build(
                self._vectors(module, rights),
                exact_up_to=EXACT_UP_TO,
                threads=1,  # the same data and seed give the same negatives
            )
            first = np.unique(index.row_of_item, return_index=True)[1]  # of texts with one vector
            limit = wanted.skip + wanted.among + 10
            found, _ = index.find_many(self._vectors(module, lefts[at]), limit)
            near = np.where(found >= 0, rights[first[found.clip(min=0)]], NONE)
            of_left = lefts[at][:, None]
            near[(near != NONE) & self.known.together(of_left, of_left, near.clip(min=0))] = NONE
            near[:, : wanted.skip] = NONE
            order = np.argsort(near == NONE, axis=1, kind="stable")[:, : wanted.among]
            self.mined[at, : order.shape[1]] = np.take_along_axis(near, order, axis=1)
        self.log_q = self._log_q()

    def state(self) -> Tensors:
        """See `Objective.state`."""
        return {"mined": torch.from_numpy(self.mined)}

    def restore(self, state: Tensors) -> None:
        """See `Objective.restore`."""
        self.mined = state["mined"].numpy()
        self.log_q = self._log_q()

    def _vectors(self, module: nn.Module, texts: Int64) -> Float32:
        """Unit vectors float32[n, d] of texts."""
        device = next(module.parameters()).device
        lengths = np.minimum(self.tokens.lengths[texts], self._room())
        found: list[tuple[Int64, Float32]] = []
        for rows in by_length(lengths, len(texts)):
            batch = {name: each.to(device) for name, each in self._framed(texts[rows]).items()}
            found.append((rows, module(**batch).float().cpu().numpy()))
        order = np.argsort(np.concatenate([rows for rows, _ in found]))
        return np.concatenate([vectors for _, vectors in found])[order]

    # ── judging ──────────────────────────────────────────────────────────────────────────────

    @torch.inference_mode()
    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """Recall among the first ten, and mean reciprocal rank, of held-out pairs.

        Each left text ranks the right texts of its source; what else belongs to it stands aside.
        Means over left texts, over all sources and, where there are several, by source.
        """
        recall: list[float] = []
        reciprocal: list[float] = []
        figures: dict[str, float] = {}
        sources = np.unique(self.pairs.source[self.pairs.held_out]).tolist()
        for source in sources:
            first = len(recall)
            for hits, rank in self._judge(module, source, len(sources)):
                recall.append(hits)
                reciprocal.append(1 / rank)
            if len(sources) > 1:
                figures[f"recall_at_10_{SOURCES[source]}"] = float(np.mean(recall[first:]))
        if not recall:
            return {}
        whole = {"recall_at_10": float(np.mean(recall)), "mrr": float(np.mean(reciprocal))}
        return {**whole, **figures}

    def _judge(self, module: nn.Module, source: int, sources: int) -> list[tuple[float, int]]:
        """Recall and best rank of each held-out left text of a source."""
        pairs, most = self.pairs, max(1, self.settings.judge_on // sources)
        held = np.flatnonzero(pairs.held_out & (pairs.source == source))
        lefts = few(np.unique(pairs.left[held]), most)
        held = held[np.isin(pairs.left[held], lefts)]
        wanted = np.unique(pairs.right[held])
        others = np.setdiff1d(pairs.right[pairs.source == source], wanted)
        others = np.random.default_rng(self.seed).permutation(others)
        among = np.concatenate([wanted, others[: max(0, self.settings.judge_among - len(wanted))]])
        scores = self._vectors(module, lefts) @ self._vectors(module, among).T
        found = []
        for at, left in enumerate(lefts):
            own = np.isin(among, pairs.right[held[pairs.left[held] == left]])
            other = self.known.together(left, left, among) & ~own
            against = scores[at][~own & ~other]
            ranks = 1 + (against[None, :] >= scores[at][own][:, None]).sum(1)
            found.append((float((ranks <= TOP).mean()), int(ranks.min())))
        return found

    def save(self, module: nn.Module, folder: Path) -> None:
        """Write the transformer and its tokenizer: `open_model` and `Encoder.open` read them."""
        whole: Any = module
        whole.backbone.save_pretrained(folder)
        open_model(self.model, where="model")[1].save_pretrained(folder)


def _given(batch: Tensors) -> Tensors:
    """What the module takes of a batch."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: batch[name] for name in names if name in batch}
