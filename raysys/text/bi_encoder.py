"""One transformer for queries and items apart: a pair's score is a line through their cosine.

Item vectors are computed ahead, so it scores a whole catalogue where a cross-encoder reads a few
pairs. What it lacks beside one it can learn from it (`teacher`), and what the judged pairs do not
say, that most items have nothing to do with a query, from the others of the batch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raysys.text import losses
from raysys.text.cross_encoder import (
    BY_LIST,
    ENCODER,
    HEAD,
    TOKENS_PER_BATCH,
    Loss,
    fitted_line,
    to_grades,
)
from raysys.text.encoder import autocast
from raysys.text.half_weights import halve
from raysys.text.models import longest_input, open_model, readable
from raysys.text.pairs import Float32, Int64, Pairs, Scale, by_length, mean_ndcg
from raysys.text.training import Objective
from raysys.text.training.objective import Identity

NOWHERE: Final = -1e4
"""A cosine no pair has: takes an entry out of a softmax."""


class BiEncoder(nn.Module):
    """Texts to unit vectors, and cosines to scores.

    Args:
        backbone: a transformer whose first output is its hidden states.
        thresholds: of an ordinal loss; 0: there are none.
    """

    def __init__(self, backbone: nn.Module, thresholds: int = 0) -> None:
        super().__init__()
        if getattr(backbone, "pooler", None) is not None:
            backbone.register_module(
                "pooler", None
            )  # not read, and its idle weights would stall DDP
        self.backbone = backbone
        self.slope = nn.Parameter(torch.tensor([4.0]))
        self.offset = nn.Parameter(torch.tensor([-2.0]))
        spread = torch.linspace(-2.0, 2.0, thresholds) if thresholds > 1 else torch.zeros(1)
        self.thresholds = nn.Parameter(spread) if thresholds else None

    def embed(self, texts: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors float32[m, d] of token ids int64[m, t] under bool[m, t]: means of states."""
        hidden = self.backbone(input_ids=texts, attention_mask=mask.long())[0].float()
        weight = mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return nn.functional.normalize(mean, dim=1)

    def forward(
        self, queries: Tensor, query_mask: Tensor, items: Tensor, item_mask: Tensor, pairs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores float32[b] of pairs int64[2, b], cosines float32[q, c] of all, thresholds."""
        asked, known = self.embed(queries, query_mask), self.embed(items, item_mask)
        with torch.autocast(asked.device.type, enabled=False):  # bfloat16 ties near cosines
            cosines = asked @ known.T
        scores = self.slope * cosines[pairs[0], pairs[1]] + self.offset
        # times one: an output that is a bare parameter DDP takes for unused, and for ready twice
        thresholds = None if self.thresholds is None else self.thresholds * 1.0
        return scores, cosines, thresholds


@dataclass(frozen=True)
class TextTokens:
    """n texts as token ids, one after the other.

    Attributes:
        ids: int32[t].
        starts: int64[n + 1].
        padding: the id that fills a batch.
    """

    ids: npt.NDArray[np.int32]
    starts: Int64
    padding: int

    @property
    def lengths(self) -> Int64:
        """Tokens of each text: int64[n]."""
        return np.diff(self.starts)

    def batch(self, rows: Int64) -> tuple[Tensor, Tensor]:
        """Some texts side by side: ids int64[m, t] and bool[m, t]."""
        lengths = self.lengths[rows]
        place = np.arange(int(lengths.max()))
        held = place[None, :] < lengths[:, None]
        index = np.minimum(self.starts[rows][:, None] + place[None, :], len(self.ids) - 1)
        ids = np.where(held, self.ids[index], self.padding).astype(np.int64)
        return torch.from_numpy(ids), torch.from_numpy(held)


def text_tokens(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> TextTokens:
    """Tokens of texts, of each at least one, cut at `max_tokens`."""
    padding = int(tokenizer.pad_token_id or 0)
    found: list[list[int]] = []
    for at in range(0, len(texts), 4096):
        few = [readable(text, max_tokens) for text in texts[at : at + 4096]]
        found += tokenizer(
            few, truncation=True, max_length=max_tokens, return_attention_mask=False
        )["input_ids"]
    # a GPT adds no marks to what it cannot read
    flat = [np.array(each or [padding], dtype=np.int32) for each in found]
    lengths = [len(each) for each in flat]
    return TextTokens(
        np.concatenate([np.empty(0, np.int32), *flat]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        padding,
    )


@dataclass(frozen=True)
class Lesson:
    """What a bi-encoder is taught, and how much of each.

    Attributes:
        loss: of the judged pairs.
        temperature: of the grades' softmax in `listwise`, with grades between 0 and 1.
        contrast: weight of the softmax against the items of other queries; 0: none.
        contrast_temperature: of that softmax.
        positive_from: place on the scale (0 … 1) from which a grade is a positive there.
        popularity_correction: 1 takes off an item's logit how often it is in a batch; 0 does not.
        distillation: weight of the differences to the teacher's; 0 without one.
        smoothing: of the labels of `cross_entropy` and `ordinal`.
    """

    loss: Loss
    temperature: float
    contrast: float
    contrast_temperature: float
    positive_from: float
    popularity_correction: float
    distillation: float
    smoothing: float = 0.0


class BiEncoding(Objective):
    """Training of a bi-encoder; an example is a query with its pairs.

    Args:
        model: what `open_model` opens.
        train: pairs with grades.
        validation: to judge by; None: nothing.
        scale: of the grades.
        lesson: the losses.
        max_tokens: read of a text.
        list_size: of a query with more pairs, so many are drawn each time.
        teacher: float32[n], a cross-encoder's scores of the training pairs, or None.
        where: the setting that names the model.
    """

    reported: ClassVar[str] = "ndcg10"

    def __init__(
        self,
        model: str,
        train: Pairs,
        validation: Pairs | None,
        scale: Scale,
        lesson: Lesson,
        *,
        max_tokens: int,
        list_size: int,
        teacher: Float32 | None = None,
        where: str = "bi_encoder.model",
    ) -> None:
        self.model, self.where = model, where
        self.scale, self.lesson, self.list_size = scale, lesson, list_size
        backbone, tokenizer = open_model(model, where=where)
        max_tokens = min(max_tokens, longest_input(backbone) or max_tokens)
        self.queries = text_tokens(tokenizer, train.queries, max_tokens)
        self.items = text_tokens(tokenizer, train.items, max_tokens)
        self.train, self.teacher = train, teacher
        self.target, self.level = scale.share(train.grade), scale.level(train.grade)
        self.lists = train.lists()
        count = np.bincount(train.item, minlength=len(train.items))
        self.log_q = np.log(np.maximum(count, 1) / max(1, len(train))).astype(np.float32)
        self.validation = validation
        self.held_out: tuple[TextTokens, TextTokens] | None = None
        if validation is not None:
            self.held_out = (
                text_tokens(tokenizer, validation.queries, max_tokens),
                text_tokens(tokenizer, validation.items, max_tokens),
            )
        self.criterion = "ndcg10" if lesson.loss in BY_LIST else "rmse"  # type: ignore[misc]
        self.maximise = lesson.loss in BY_LIST  # type: ignore[misc]

    def build(self) -> nn.Module:
        """See `Objective.build`."""
        backbone, _ = open_model(self.model, where=self.where)
        thresholds = len(self.scale.levels) - 1 if self.lesson.loss == "ordinal" else 0
        return BiEncoder(backbone, thresholds)

    def lengths(self) -> Int64:
        """See `Objective.lengths`."""
        items = self.items.lengths
        return np.array(
            [
                self.queries.lengths[self.train.query[rows[0]]]
                + items[self.train.item[rows[: self.list_size]]].sum()
                for rows in self.lists
            ],
            dtype=np.int64,
        )

    def collate(self, rows: Int64, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Objective.collate`; each text of the batch is there once."""
        size, train = self.list_size, self.train
        drawn = [self.lists[row] for row in rows]
        drawn = [rng.choice(x, size, replace=False) if len(x) > size else x for x in drawn]
        of = np.concatenate(drawn)
        items = np.unique(train.item[of])
        batch = _texts(self.queries, self.items, train, of) | {
            "target": torch.from_numpy(self.target[of]),
            "level": torch.from_numpy(self.level[of]),
            "weight": torch.from_numpy(train.weight[of]),
            "log_q": torch.from_numpy(self.log_q[items]),
        }
        if self.teacher is not None:
            batch["teacher"] = torch.from_numpy(self.teacher[of])
        return batch

    def identity(self) -> Identity:
        """See `Objective.identity`."""
        held = self.validation
        return {
            "lesson": self.lesson,
            "levels": self.scale.levels,
            "list_size": self.list_size,
            "texts": [self.queries.ids, self.queries.starts, self.items.ids, self.items.starts],
            "pairs": [self.train.query, self.train.item],
            "judged": [self.target, self.level, self.train.weight],
            "teacher": self.teacher,
            "validation": None if held is None else [held.grade, held.query, held.weight],
        }

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """See `Objective.loss`: of the grades, of the contrast and of the distillation, summed."""
        lesson, pairs = self.lesson, batch["pairs"]
        scores, cosines, thresholds = module(
            batch["queries"], batch["query_mask"], batch["items"], batch["item_mask"], pairs
        )
        target, weight, query = batch["target"], batch["weight"], pairs[0]
        match lesson.loss:
            case "cross_entropy":
                total = losses.cross_entropy(scores, target, weight, smoothing=lesson.smoothing)
            case "ordinal":
                total = losses.ordinal(
                    scores, batch["level"], thresholds, weight, smoothing=lesson.smoothing
                )
            case "mse":
                total = losses.mean_squared_error(torch.sigmoid(scores), target, weight)
            case "margin":
                total = losses.margin(scores, target, query, weight, size=4.0)
            case "listwise":
                total = losses.listwise(
                    scores, target, query, weight, temperature=lesson.temperature
                )
        if lesson.contrast:
            total = total + lesson.contrast * self._contrast(cosines, batch)
        if lesson.distillation and "teacher" in batch:
            total = total + lesson.distillation * losses.margin_mse(
                scores, batch["teacher"], query, weight
            )
        return total

    def _contrast(self, cosines: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Softmax of each query's good items against the items that were judged for others."""
        query, item = batch["pairs"]
        good = batch["target"] >= self.lesson.positive_from
        positive = torch.zeros_like(cosines, dtype=torch.bool)
        positive[query[good], item[good]] = True
        between = torch.zeros_like(positive)  # judged, but neither good nor bad: says nothing here
        some = (batch["target"] > 0) & ~good
        between[query[some], item[some]] = True
        return losses.sampled_softmax_loss(
            cosines.masked_fill(between & ~positive, NOWHERE),
            positive,
            batch["log_q"] * self.lesson.popularity_correction,
            self.lesson.contrast_temperature,
        )

    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """As `CrossEncoding.evaluate`."""
        if self.validation is None or self.held_out is None or not len(self.validation):
            return {}
        held, device = self.validation, next(module.parameters()).device
        queries, items = self.held_out
        scores = np.empty(len(held), dtype=np.float32)
        thresholds = None
        lists = held.lists()
        for at in range(0, len(lists), 16):
            rows = np.concatenate(lists[at : at + 16])
            texts = _texts(queries, items, held, rows)
            found, _, limits = module(**{name: x.to(device) for name, x in texts.items()})
            scores[rows] = found.float().cpu().numpy()
            thresholds = None if limits is None else limits.float().cpu().numpy()
        kind = self.lesson.loss
        line = fitted_line(scores, held.grade, held.weight) if kind in BY_LIST else None
        guessed = to_grades(scores, kind, self.scale, thresholds, line)
        error = np.average((guessed - held.grade) ** 2, weights=held.weight)
        gain = (held.grade - self.scale.low).clip(0).astype(np.float32)
        return {"rmse": float(error**0.5), "ndcg10": mean_ndcg(scores, gain, held.query)}

    def save(self, module: nn.Module, folder: Path) -> None:
        """See `Objective.save`."""
        assert isinstance(module, BiEncoder)
        _, tokenizer = open_model(self.model, where=self.where)
        _write(module, tokenizer, folder)


def _texts(queries: TextTokens, items: TextTokens, pairs: Pairs, rows: Int64) -> dict[str, Tensor]:
    """What `BiEncoder.forward` takes for some pairs; each text of theirs is there once."""
    query, of_query = np.unique(pairs.query[rows], return_inverse=True)
    item, of_item = np.unique(pairs.item[rows], return_inverse=True)
    query_ids, query_mask = queries.batch(query)
    item_ids, item_mask = items.batch(item)
    return {
        "queries": query_ids,
        "query_mask": query_mask,
        "items": item_ids,
        "item_mask": item_mask,
        "pairs": torch.from_numpy(np.stack([of_query, of_item])),
    }


@torch.inference_mode()
def vectors_of(encoder: BiEncoder, tokens: TextTokens) -> Float32:
    """Unit vectors float32[n, d]; texts of like length are read together."""
    device = next(encoder.parameters()).device
    backbone: Any = encoder.backbone
    vectors = np.zeros((len(tokens.lengths), int(backbone.config.hidden_size)), dtype=np.float32)
    for rows in by_length(tokens.lengths, TOKENS_PER_BATCH):
        ids, mask = tokens.batch(rows)
        with autocast(device):
            found = encoder.embed(ids.to(device), mask.to(device))
        vectors[rows] = found.float().cpu().numpy()
    return vectors


class TextVectors:
    """A trained bi-encoder as a function of texts; safe in many threads at once.

    Args:
        folder: what `BiEncoding.save` wrote.
        max_tokens: read of a text.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        backbone, self.tokenizer = open_model(str(folder / ENCODER), where=str(folder))
        head = load_file(folder / HEAD)
        self.encoder = BiEncoder(backbone, len(head.get("thresholds", ()))).eval()
        assert not self.encoder.load_state_dict(head, strict=False).unexpected_keys
        halve(self.encoder)
        self.max_tokens = min(max_tokens, longest_input(backbone) or max_tokens)
        self._tokenizing = threading.Lock()  # a fast tokenizer is borrowed by one at a time

    @property
    def line(self) -> tuple[float, float]:
        """Slope and offset from a cosine to a score."""
        return float(self.encoder.slope.item()), float(self.encoder.offset.item())

    @property
    def thresholds(self) -> Float32 | None:
        """float32[k] of an ordinal loss."""
        found = self.encoder.thresholds
        return None if found is None else found.detach().cpu().numpy()

    def encode(self, texts: Sequence[str]) -> Float32:
        """Unit vectors float32[len(texts), d]; an empty text gets zeros."""
        some = np.array([at for at, text in enumerate(texts) if text.strip()], dtype=np.int64)
        backbone: Any = self.encoder.backbone
        found = np.zeros((len(texts), int(backbone.config.hidden_size)), dtype=np.float32)
        if len(some):
            with self._tokenizing:
                tokens = text_tokens(self.tokenizer, [texts[at] for at in some], self.max_tokens)
            found[some] = vectors_of(self.encoder, tokens)
        return found

    def save(self, folder: Path) -> None:
        """Write what the constructor reads."""
        _write(self.encoder, self.tokenizer, folder)


def _write(encoder: BiEncoder, tokenizer: Any, folder: Path) -> None:
    backbone: Any = encoder.backbone
    backbone.save_pretrained(folder / ENCODER)
    tokenizer.save_pretrained(folder / ENCODER)
    state = encoder.state_dict().items()
    head = {n: x.detach().contiguous() for n, x in state if not n.startswith("backbone.")}
    save_file(head, folder / HEAD)
