"""The network that labels texts, and how it is trained: a transformer, its mean, one linear layer.

Labels of a hierarchy are learned at every level at once: either each level's probability is the
sum of those of the labels below it (`marginal`), or each level has outputs of its own, and a
label's score is the sum over the levels of its path (`heads`). Either way what is said of one level
agrees with what is said of the next. Ratings are one more output, learned by squared error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysys.learners.text_labels import Codes, Float32, LabelledTexts, LabelSet
from raysys.text.encoder import autocast, exact
from raysys.text.half_weights import halve
from raysys.text.models import open_model, readable
from raysys.text.training.objective import Identity, Objective, Tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Hierarchy = Literal["marginal", "heads"]
_LEAST = 1e-6  # of a sum of weights that is divided by: a batch may hold nothing that is known
TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, one after the other.

    Attributes:
        ids: int32[t].
        starts: int64[n], where each text begins.
        lengths: int64[n].
        padding: the id that fills a batch.
    """

    ids: npt.NDArray[np.int32]
    starts: Codes
    lengths: Codes
    padding: int

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(
        cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_tokens: int
    ) -> Tokens:
        """With the model's marks of beginning and end; of each text what is read of it."""
        lines = [readable(text, max_tokens) for text in texts]
        found: list[list[int]] = []
        if lines:
            told = {"truncation": True, "max_length": max_tokens, "return_attention_mask": False}
            found = tokenizer(lines, **told)["input_ids"]
        padding = int(tokenizer.pad_token_id or 0)
        found = [each or [padding] for each in found]  # a GPT adds no marks to what it cannot read
        lengths = np.array([len(each) for each in found], dtype=np.int64)
        flat = np.fromiter((token for each in found for token in each), np.int32, lengths.sum())
        return cls(flat, np.cumsum(lengths) - lengths, lengths, padding)

    def batch(self, rows: Codes) -> Tensors:
        """Some texts side by side: `input_ids` and `attention_mask`, int64[m, longest]."""
        lengths = self.lengths[rows]
        place = np.arange(lengths.max())
        mask = place[None, :] < lengths[:, None]
        at = self.starts[rows][:, None] + np.minimum(place[None, :], lengths[:, None] - 1)
        ids = np.where(mask, self.ids[at], self.padding).astype(np.int64)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }

    def batches(self) -> Iterator[Codes]:
        """All texts, those of like length together, about TOKENS_PER_BATCH tokens a time."""
        order = np.argsort(-self.lengths, kind="stable")
        at = 0
        while at < len(order):
            size = max(1, TOKENS_PER_BATCH // int(self.lengths[order[at]]))
            yield order[at : at + size]
            at += size


class Reader(nn.Module):
    """A transformer, the mean of its last states, dropout, one linear layer.

    Args:
        backbone: a Hugging Face model without a head.
        outputs: labels, nodes of the levels above where these have outputs, a rating.
        dropout: of the mean.
    """

    def __init__(self, backbone: nn.Module, outputs: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        config: Any = backbone.config
        self.head = nn.Linear(int(config.hidden_size), outputs)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Outputs float32[n, outputs] of token ids and mask, both int64[n, longest]."""
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask)[0].float()
        weights = attention_mask[:, :, None].to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return exact(self.head, self.dropout(mean))


@dataclass(frozen=True)
class Outputs:
    """Which output of a reader says what.

    Attributes:
        labels: what is told apart.
        hierarchy: how levels above the labels are learned.
        rated: whether the last output is a rating, in standard units.
    """

    labels: LabelSet
    hierarchy: Hierarchy
    rated: bool

    @property
    def _above(self) -> tuple[Any, ...]:
        return self.labels.levels[:-1]

    def __len__(self) -> int:
        nodes = sum(len(level.nodes) for level in self._above) if self.hierarchy == "heads" else 0
        return len(self.labels) + nodes + self.rated

    def by_level(self, outputs: Tensor) -> list[Tensor]:
        """Logarithms of probabilities, from the top level to the labels: each [n, nodes].

        Those of the labels are what predictions come from.
        """
        k = len(self.labels)
        leaf = outputs[:, :k].float()
        found = []
        if self.hierarchy == "marginal":
            whole = torch.log_softmax(leaf, 1)
            for level in self._above:
                node = torch.from_numpy(level.of_label).to(outputs.device)
                shape = (len(outputs), len(level.nodes))
                share = torch.zeros(shape, device=outputs.device).index_add(1, node, whole.exp())
                found.append(share.clamp(min=1e-12).log())
            return [*found, whole]
        at = k
        for level in self._above:
            logits = outputs[:, at : at + len(level.nodes)].float()
            found.append(torch.log_softmax(logits, 1))
            leaf = leaf + logits[:, torch.from_numpy(level.of_label).to(outputs.device)]
            at += len(level.nodes)
        return [*found, torch.log_softmax(leaf, 1)]

    def rating(self, outputs: Tensor) -> Tensor:
        """In standard units: float32[n]."""
        return outputs[:, -1].float()


@dataclass(frozen=True)
class Losses:
    """How much each part of the loss counts.

    Attributes:
        class_weights: float32[labels], mean 1 over training texts.
        level_weight: of each level above the labels.
        rating_weight: of the squared error of standardised ratings.
        label_smoothing: share of a label's target that all labels divide among them.
    """

    class_weights: Float32
    level_weight: float
    rating_weight: float
    label_smoothing: float


@dataclass
class ReadingObjective(Objective):
    """Labels of texts, at all levels, and ratings.

    Attributes:
        model: where the transformer comes from, see `open_model`; where: the setting that says so.
        tokenizer: its tokenizer, saved beside it.
        tokens: of the training texts; held: of the validation texts.
        train: what is known of the former; validation: of the latter.
        outputs: what the network says.
        losses: how it is weighed.
        dropout: of the head.
        center: mean and standard deviation of the ratings of training.
    """

    title: ClassVar[str] = "text_classifier"
    reported: ClassVar[str] = "macro_f1"

    model: str
    where: str
    tokenizer: Any
    tokens: Tokens
    held: Tokens
    train: LabelledTexts
    validation: LabelledTexts
    outputs: Outputs
    losses: Losses
    dropout: float
    center: tuple[float, float]

    def build(self) -> nn.Module:
        """See `Objective.build`."""
        backbone, _ = open_model(self.model, where=self.where)
        whole: Any = backbone
        whole.pooler = None  # of no use to a mean, and its idle weights would stall DDP
        return Reader(backbone, len(self.outputs), self.dropout)

    def identity(self) -> Identity:
        """See `Objective.identity`."""
        return {
            "labels": self.outputs.labels.names,
            "hierarchy": self.outputs.hierarchy,
            "losses": self.losses,
            "dropout": self.dropout,
            "texts": self.tokens.ids,
            "known": [self.train.codes, self.train.rating, self.train.weight],
            "validation": [self.validation.codes, self.validation.rating],
        }

    def lengths(self) -> Codes:
        """See `Objective.lengths`."""
        return self.tokens.lengths

    def collate(self, rows: Codes, rng: np.random.Generator) -> Tensors:
        """See `Objective.collate`."""
        batch = self.tokens.batch(rows)
        batch["codes"] = torch.from_numpy(self.train.codes[rows])
        mean, deviation = self.center
        batch["rating"] = torch.from_numpy((self.train.rating[rows] - mean) / deviation).float()
        batch["weight"] = torch.from_numpy(self.train.weight[rows])
        return batch

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        """See `Objective.loss`."""
        outputs = module(batch["input_ids"], batch["attention_mask"])
        codes, losses = batch["codes"], self.losses
        known = (codes >= 0) * batch["weight"]
        some = known.sum().clamp(min=_LEAST)
        target = codes.clamp(min=0)
        levels = self.outputs.by_level(outputs)
        picked = levels[-1].gather(1, target[:, None])[:, 0]
        smooth = losses.label_smoothing
        entropy = -(1 - smooth) * picked - smooth * levels[-1].mean(1)
        weight = torch.from_numpy(losses.class_weights).to(outputs.device)[target] * known
        total = (entropy * weight).sum() / some
        for level, said in zip(self.outputs.labels.levels[:-1], levels[:-1], strict=True):
            node = torch.from_numpy(level.of_label).to(outputs.device)[target]
            missed = -said.gather(1, node[:, None])[:, 0] * known
            total = total + losses.level_weight * missed.sum() / some
        if self.outputs.rated:
            rated = torch.isfinite(batch["rating"]) * batch["weight"]
            error = self.outputs.rating(outputs) - torch.nan_to_num(batch["rating"])
            squared = (error**2 * rated).sum() / rated.sum().clamp(min=_LEAST)
            total = total + losses.rating_weight * squared
        return total

    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """Log loss and macro F1 of validation labels, root mean squared error of its ratings."""
        codes = self.validation.codes
        if not (codes >= 0).any():
            return {}
        from sklearn.metrics import f1_score

        logits, rating = read(module, self.held, self.outputs)
        known = np.flatnonzero(codes >= 0)
        best = logits[known].argmax(axis=1)
        figures = {
            "loss": -float(logits[known, codes[known]].mean()),
            "macro_f1": float(f1_score(codes[known], best, average="macro")),
        }
        told = np.isfinite(self.validation.rating)
        if rating is not None and told.any():
            mean, deviation = self.center
            error = rating[told] * deviation + mean - self.validation.rating[told]
            figures["rmse"] = float(np.sqrt((error**2).mean()))
        return figures

    def save(self, module: nn.Module, folder: Path) -> None:
        """See `Objective.save`."""
        save_reader(module, self.tokenizer, folder)


def save_reader(module: Any, tokenizer: Any, folder: Path) -> None:
    """Write the transformer as `open_model` reads it, and the head beside it."""
    from safetensors.torch import save_file
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    module.backbone.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    head = {name: each.contiguous() for name, each in module.head.state_dict().items()}
    save_file(head, folder / "head.safetensors")


def load_reader(folder: Path) -> tuple[Reader, Any]:
    """The module, in eval mode, and its tokenizer, as `save_reader` wrote them."""
    from safetensors.torch import load_file

    backbone, tokenizer = open_model(str(folder / "backbone"), where=str(folder))
    whole: Any = backbone
    whole.pooler = None
    head = load_file(folder / "head.safetensors")
    reader = Reader(backbone, len(head["bias"]), 0.0)
    reader.head.load_state_dict(head)
    halve(reader.eval())
    return reader, tokenizer


@torch.inference_mode()
def read(module: nn.Module, tokens: Tokens, outputs: Outputs) -> tuple[Float32, Float32 | None]:
    """Logarithms of label probabilities float32[n, labels], and ratings in standard units."""
    device = next(module.parameters()).device
    found = np.zeros((len(tokens), len(outputs.labels)), dtype=np.float32)
    rating = np.zeros(len(tokens), dtype=np.float32) if outputs.rated else None
    for rows in tokens.batches():
        batch = {name: each.to(device) for name, each in tokens.batch(rows).items()}
        with autocast(device):
            said = module(**batch)
        found[rows] = outputs.by_level(said)[-1].cpu().numpy()
        if rating is not None:
            rating[rows] = outputs.rating(said).cpu().numpy()
    return found, rating
