"""A transformer that reads query and item together and says one score.

Its head begins as the cosine between what it makes of the query's words and of the item's, each in
the sight of the other: a sentence encoder ranks sensibly before the first step, and the few steps
that a CPU affords improve on that.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raysys.text import losses
from raysys.text.compression.runtime import tells_parts_apart
from raysys.text.encoder import autocast, exact
from raysys.text.half_weights import halve
from raysys.text.models import longest_input, open_model, readable
from raysys.text.pairs import Float32, Int64, Pairs, Scale, by_length, mean_ndcg
from raysys.text.training import Objective
from raysys.text.training.objective import Identity

Loss = Literal["cross_entropy", "ordinal", "mse", "margin", "listwise"]
BY_LIST: Final = ("margin", "listwise")
"""Losses that compare the pairs of one query, and so need them in one batch."""
TOKENS_PER_BATCH: Final = 4096
HEAD: Final = "head.safetensors"
ENCODER: Final = "encoder"


class CrossEncoder(nn.Module):
    """Pairs of texts to scores.

    Args:
        backbone: a transformer whose first output is its hidden states.
        width: of them.
        thresholds: of an ordinal loss; 0: there are none.
    """

    def __init__(self, backbone: nn.Module, width: int, thresholds: int = 0) -> None:
        super().__init__()
        if getattr(backbone, "pooler", None) is not None:
            backbone.register_module(
                "pooler", None
            )  # not read, and its idle weights would stall DDP
        self.backbone = backbone
        self.slope = nn.Parameter(torch.tensor([4.0]))
        self.offset = nn.Parameter(torch.tensor([-2.0]))
        self.joint = nn.Linear(3 * width, 1, bias=False)
        nn.init.zeros_(self.joint.weight)
        spread = torch.linspace(-2.0, 2.0, thresholds) if thresholds > 1 else torch.zeros(1)
        self.thresholds = nn.Parameter(spread) if thresholds else None

    def forward(
        self, part: Tensor, attention_mask: Tensor, **inputs: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Scores float32[b], and the thresholds if there are any.

        Args:
            part: int64[b, t]: 1 for the query's tokens, 2 for the item's, 0 for marks and padding.
            attention_mask: int64[b, t].
            inputs: `input_ids`, and `token_type_ids` for models that have them.
        """
        hidden = self.backbone(attention_mask=attention_mask, **inputs)[0].float()
        query, item = _mean(hidden, part == 1), _mean(hidden, part == 2)
        both = _mean(hidden, attention_mask > 0)
        cosine = nn.functional.cosine_similarity(query, item, dim=1)
        features = torch.cat([query * item, (query - item).abs(), both], dim=1)
        scores = self.slope * cosine + self.offset + exact(self.joint, features)[:, 0]
        # times one: an output that is a bare parameter DDP takes for unused, and for ready twice
        return scores, None if self.thresholds is None else self.thresholds * 1.0


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weight = mask[:, :, None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)


@dataclass(frozen=True)
class PairTokens:
    """n pairs as token ids, one after the other; plain arrays, cheap to send to a worker.

    Attributes:
        ids: int32[t].
        part: int8[t], see `CrossEncoder.forward`.
        kind: int8[t], token types; None for models without.
        starts: int64[n + 1].
        padding: the id that fills a batch.
    """

    ids: npt.NDArray[np.int32]
    part: npt.NDArray[np.int8]
    kind: npt.NDArray[np.int8] | None
    starts: Int64
    padding: int

    @property
    def lengths(self) -> Int64:
        """Tokens of each pair: int64[n]."""
        return np.diff(self.starts)

    def batch(self, rows: Int64) -> dict[str, Tensor]:
        """Some pairs side by side, as `CrossEncoder` takes them."""
        lengths = self.lengths[rows]
        place = np.arange(int(lengths.max()))
        held = place[None, :] < lengths[:, None]
        index = np.minimum(self.starts[rows][:, None] + place[None, :], len(self.ids) - 1)
        batch = {
            "input_ids": np.where(held, self.ids[index], self.padding),
            "attention_mask": held,
            "part": np.where(held, self.part[index], 0),
        }
        if self.kind is not None:
            batch["token_type_ids"] = np.where(held, self.kind[index], 0)
        return {name: torch.from_numpy(each.astype(np.int64)) for name, each in batch.items()}


def pair_tokens(tokenizer: Any, pairs: Pairs, max_tokens: int, *, typed: bool = True) -> PairTokens:
    """Tokens of pairs, of each at least one; the longer text is cut first where both do not fit.

    Args:
        tokenizer: of the model.
        pairs: n of them.
        max_tokens: read of a pair.
        typed: whether the model has token types (`tells_parts_apart`): a tokenizer gives them to
            models that have one type for all, and no embedding for a second.
    """
    read_queries = [readable(text, max_tokens) for text in pairs.queries]
    read_items = [readable(text, max_tokens) for text in pairs.items]
    queries = [read_queries[at] for at in pairs.query]
    items = [read_items[at] for at in pairs.item]
    typed = typed and "token_type_ids" in tokenizer.model_input_names
    padding = int(tokenizer.pad_token_id or 0)
    ids, parts, kinds, lengths = [], [], [], []
    for at in range(0, len(queries), 4096):
        found = tokenizer(
            queries[at : at + 4096],
            items[at : at + 4096],
            truncation="longest_first",
            max_length=max_tokens,
            return_token_type_ids=typed,
            return_attention_mask=False,
        )
        for row, tokens in enumerate(found["input_ids"]):  # a GPT may make nothing of a pair
            ids.append(np.array(tokens or [padding], dtype=np.int32))
            lengths.append(len(ids[-1]))
            of = found.sequence_ids(row) or [None]
            parts.append(np.array([0 if each is None else each + 1 for each in of], dtype=np.int8))
            if typed:
                kinds.append(np.array(found["token_type_ids"][row] or [0], dtype=np.int8))
    return PairTokens(
        ids=np.concatenate([np.empty(0, np.int32), *ids]),
        part=np.concatenate([np.empty(0, np.int8), *parts]),
        kind=np.concatenate([np.empty(0, np.int8), *kinds]) if typed else None,
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        padding=padding,
    )


class CrossEncoding(Objective):
    """Training of a cross-encoder; an example is a pair, or for `BY_LIST` a query with its pairs.

    Args:
        model: what `open_model` opens.
        train: pairs with grades.
        validation: to judge by; None: nothing.
        scale: of the grades.
        loss: which.
        max_tokens: read of a pair.
        list_size: of a query with more pairs, so many are drawn each time.
        temperature: of the grades' softmax in `listwise`; the grades lie between 0 and 1.
        smoothing: of the labels of `cross_entropy` and `ordinal`.
        where: the setting that names the model.
    """

    reported: ClassVar[str] = "ndcg10"

    def __init__(
        self,
        model: str,
        train: Pairs,
        validation: Pairs | None,
        scale: Scale,
        *,
        loss: Loss,
        max_tokens: int,
        list_size: int,
        temperature: float,
        smoothing: float = 0.0,
        where: str = "cross_encoder.model",
    ) -> None:
        self.model, self.where = model, where
        self.scale, self.kind = scale, loss
        self.list_size, self.temperature = list_size, temperature
        self.smoothing = smoothing
        backbone, tokenizer = open_model(model, where=where)
        max_tokens = min(max_tokens, longest_input(backbone) or max_tokens)
        typed = tells_parts_apart(backbone.config)
        self.tokens = pair_tokens(tokenizer, train, max_tokens, typed=typed)
        self.train = train
        self.target = scale.share(train.grade)
        self.level = scale.level(train.grade)
        self.lists = train.lists() if loss in BY_LIST else None
        if self.lists is not None:
            self.lists = [rows for rows in self.lists if len(rows) > 1]
        self.validation = validation
        self.held_out: PairTokens | None = None
        if validation is not None:
            self.held_out = pair_tokens(tokenizer, validation, max_tokens, typed=typed)
        # what ranks is judged as a ranking, what guesses grades by its error
        self.criterion = "ndcg10" if loss in BY_LIST else "rmse"  # type: ignore[misc]
        self.maximise = loss in BY_LIST  # type: ignore[misc]

    def build(self) -> nn.Module:
        """See `Objective.build`."""
        backbone, _ = open_model(self.model, where=self.where)
        thresholds = len(self.scale.levels) - 1 if self.kind == "ordinal" else 0
        return CrossEncoder(backbone, int(backbone.config.hidden_size), thresholds)

    def lengths(self) -> Int64:
        """See `Objective.lengths`."""
        if self.lists is None:
            return self.tokens.lengths
        lengths = self.tokens.lengths
        return np.array([lengths[rows[: self.list_size]].sum() for rows in self.lists], np.int64)

    def collate(self, rows: Int64, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Objective.collate`."""
        if self.lists is not None:
            drawn = [self.lists[row] for row in rows]
            size = self.list_size
            rows = np.concatenate(
                [rng.choice(each, size, replace=False) if len(each) > size else each
                 for each in drawn]
            )  # fmt: skip
        return self.tokens.batch(rows) | {
            "target": torch.from_numpy(self.target[rows]),
            "level": torch.from_numpy(self.level[rows]),
            "query": torch.from_numpy(self.train.query[rows]),
            "weight": torch.from_numpy(self.train.weight[rows]),
        }

    def identity(self) -> Identity:
        """See `Objective.identity`."""
        held = self.validation
        return {
            "loss": self.kind,
            "levels": self.scale.levels,
            "list_size": self.list_size,
            "temperature": self.temperature,
            "smoothing": self.smoothing,
            "texts": [self.tokens.ids, self.tokens.part],
            "judged": [self.target, self.level, self.train.query, self.train.weight],
            "validation": None if held is None else [held.grade, held.query, held.weight],
        }

    def weight(self, rows: npt.NDArray[np.int64], batch: dict[str, Tensor]) -> float:
        """See `Objective.weight`: pointwise losses are means by the pairs' weights."""
        if self.kind in ("cross_entropy", "ordinal", "mse"):
            return float(batch["weight"].sum())
        return float(len(rows))

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """See `Objective.loss`."""
        about = ("target", "level", "query", "weight")
        target, level, query, weight = (batch[name] for name in about)
        scores, thresholds = module(**{n: each for n, each in batch.items() if n not in about})
        match self.kind:
            case "cross_entropy":
                return losses.cross_entropy(scores, target, weight, smoothing=self.smoothing)
            case "ordinal":
                return losses.ordinal(scores, level, thresholds, weight, smoothing=self.smoothing)
            case "mse":
                return losses.mean_squared_error(torch.sigmoid(scores), target, weight)
            case "margin":
                return losses.margin(scores, target, query, weight, size=4.0)
            case "listwise":
                return losses.listwise(scores, target, query, weight, temperature=self.temperature)

    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """Root mean squared error in units of the grades, and NDCG@10 with gains above the lowest.

        For losses that rank, scores are put on the grades' scale by a line first.
        """
        if self.validation is None or self.held_out is None or not len(self.validation):
            return {}
        scores, thresholds = score_pairs(module, self.held_out)
        grade, weight = self.validation.grade, self.validation.weight
        line = fitted_line(scores, grade, weight) if self.kind in BY_LIST else None
        found = to_grades(scores, self.kind, self.scale, thresholds, line)
        error = np.average((found - grade) ** 2, weights=weight)
        gain = (grade - self.scale.low).clip(0)
        ndcg = mean_ndcg(scores, gain.astype(np.float32), self.validation.query)
        return {"rmse": float(error**0.5), "ndcg10": ndcg}

    def save(self, module: nn.Module, folder: Path) -> None:
        """See `Objective.save`."""
        assert isinstance(module, CrossEncoder)
        module.backbone.save_pretrained(folder / ENCODER)  # type: ignore[operator]
        _, tokenizer = open_model(self.model, where=self.where)
        tokenizer.save_pretrained(folder / ENCODER)
        head = {
            name: each.detach().contiguous().float()
            for name, each in module.state_dict().items()
            if not name.startswith("backbone.")
        }
        save_file(head, folder / HEAD)


@torch.inference_mode()
def score_pairs(module: nn.Module, tokens: PairTokens) -> tuple[Float32, Float32 | None]:
    """Scores float32[n] and thresholds; pairs of like length are read together."""
    device = next(module.parameters()).device
    scores = np.empty(len(tokens.lengths), dtype=np.float32)
    thresholds = None
    for rows in by_length(tokens.lengths, TOKENS_PER_BATCH):
        batch = {name: each.to(device) for name, each in tokens.batch(rows).items()}
        with autocast(device):
            found, limits = module(**batch)
        scores[rows] = found.float().cpu().numpy()
        thresholds = None if limits is None else limits.float().cpu().numpy()
    return scores, thresholds


def fitted_line(scores: Float32, grade: Float32, weight: Float32) -> tuple[float, float]:
    """Slope (never negative) and offset that turn scores into grades: weighted least squares."""
    total = float(weight.sum())
    if not total:
        return 0.0, float(grade.mean())
    x, y = np.average(scores, weights=weight), np.average(grade, weights=weight)
    spread = np.average((scores - x) ** 2, weights=weight)
    both = np.average((scores - x) * (grade - y), weights=weight)
    slope = max(0.0, float(both / spread)) if spread > 0 else 0.0
    return slope, float(y - slope * x)


def to_grades(
    scores: Float32,
    loss: str,
    scale: Scale,
    thresholds: Float32 | None,
    line: Sequence[float] | None,
) -> Float32:
    """Scores in the units of the judgements, within their range: float32[n].

    Args:
        scores: float32[n].
        loss: with which they were learned.
        scale: of the grades.
        thresholds: float32[k] of an ordinal loss.
        line: slope and offset for losses that only rank.
    """
    if line is not None:
        found = line[0] * scores + line[1]
        return np.asarray(found.clip(scale.low, scale.high), dtype=np.float32)
    if loss == "ordinal":
        assert thresholds is not None
        found = losses.expected_level(
            torch.from_numpy(scores), torch.from_numpy(thresholds), torch.tensor(scale.levels)
        ).numpy()
        return np.asarray(found.clip(scale.low, scale.high), dtype=np.float32)
    return scale.grade((1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32))


class PairScorer:
    """A trained cross-encoder as a function of pairs; safe in many threads at once.

    Args:
        folder: what `CrossEncoding.save` wrote.
        max_tokens: read of a pair.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        backbone, self.tokenizer = open_model(str(folder / ENCODER), where=str(folder))
        head = load_file(folder / HEAD)
        self._typed = tells_parts_apart(backbone.config)
        width = int(backbone.config.hidden_size)
        self.module = CrossEncoder(backbone, width, len(head.get("thresholds", ())))
        missing = self.module.load_state_dict(head, strict=False)
        assert not missing.unexpected_keys
        halve(self.module.eval())
        self.max_tokens = min(max_tokens, longest_input(backbone) or max_tokens)
        self._tokenizing = threading.Lock()  # a fast tokenizer is borrowed by one at a time

    def scores(self, pairs: Pairs) -> tuple[Float32, Float32 | None]:
        """See `score_pairs`."""
        with self._tokenizing:
            tokens = pair_tokens(self.tokenizer, pairs, self.max_tokens, typed=self._typed)
        return score_pairs(self.module, tokens)

    def save(self, folder: Path) -> None:
        """Write what the constructor reads."""
        self.module.backbone.save_pretrained(folder / ENCODER)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder / ENCODER)
        state = self.module.state_dict().items()
        save_file({n: x for n, x in state if not n.startswith("backbone.")}, folder / HEAD)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with its non-ASCII letters as they are."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
