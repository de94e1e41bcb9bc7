"""What is trained of a tagger: the likelihood of the tags, judged by F1 of spans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raysys.errors import UserError
from raysys.text.entity_network import EntityNetwork, Pooling, Shape, Window, chain_of, collate
from raysys.text.half_weights import halve
from raysys.text.models import open_model
from raysys.text.reader import LabelledText, Reader
from raysys.text.span_probabilities import apart, candidates
from raysys.text.tags import Scheme, Tags
from raysys.text.training import Objective
from raysys.text.training.objective import Identity, Tensors

NETWORK, WEIGHTS, TRANSFORMER = "network.json", "network.safetensors", "transformer"
IGNORED = -100
MOST_TOKENS = 512


@dataclass(frozen=True)
class NetworkPlan:
    """All that is needed to build a network.

    Attributes:
        tags: whose potentials come out.
        crf: see `Shape`.
        surface: see `Shape`.
        dropout: see `Shape`.
        model: the transformer, see `EntityTaggerSettings`; None: none.
        pooling: see `EntityTaggerSettings`.
        where: the setting that names the model, for errors.
    """

    tags: Tags
    crf: bool
    surface: int
    dropout: float
    model: str | None = None
    pooling: Pooling = "first"
    where: str = ""

    def open(self) -> tuple[Any, Any]:
        """The transformer without its pooler, and its tokenizer; None without a model.

        Raises:
            UserError: there is no such model, see `open_model`.
        """
        if self.model is None:
            return None, None
        backbone, tokenizer = open_model(self.model, where=self.where)
        if hasattr(backbone, "pooler"):
            backbone.pooler = None  # read by nobody, and its idle weights would stall DDP
        return backbone, tokenizer

    def tokenizer(self) -> Any:
        """See `open`."""
        return self.open()[1]

    def most_tokens(self) -> int:
        """What the transformer can read at once."""
        backbone, _ = self.open()
        places = getattr(getattr(backbone, "config", None), "max_position_embeddings", None)
        return min(MOST_TOKENS, int(places)) if places else MOST_TOKENS

    def shape(self) -> Shape:
        """Of the network."""
        return Shape(self.tags, self.crf, self.surface, self.dropout)

    def build(self) -> EntityNetwork:
        """A network with a new head."""
        return EntityNetwork(self.shape(), self.open()[0])

    @classmethod
    def of(cls, network: EntityNetwork, tags: Tags) -> NetworkPlan:
        """Of a network that there is."""
        surface = 0 if network.surface is None else network.surface.embedding_dim
        return cls(tags, network.crf, surface, float(network.dropout.p))

    def save(self, network: EntityNetwork, reader: Reader, folder: Path) -> None:
        """Write network and reader into a folder, as `load_network` reads them."""
        own = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in network.state_dict().items()
            if not name.startswith("backbone.")
        }
        save_file(own, folder / WEIGHTS)
        content = {
            "labels": list(self.tags.labels),
            "scheme": self.tags.scheme,
            "crf": self.crf,
            "surface": self.surface,
            "dropout": self.dropout,
        }
        (folder / NETWORK).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        reader.save(folder)
        if network.has_transformer:
            backbone: Any = network.backbone
            backbone.save_pretrained(folder / TRANSFORMER)
            assert reader.tokenizer is not None
            reader.tokenizer.save_pretrained(folder / TRANSFORMER)


def load_network(folder: Path) -> tuple[EntityNetwork, Reader, Tags]:
    """What `NetworkPlan.save` wrote, in eval mode."""
    content = json.loads((folder / NETWORK).read_text(encoding="utf-8"))
    scheme: Scheme = content["scheme"]
    tags = Tags(tuple(content["labels"]), scheme)
    has_model = (folder / TRANSFORMER).is_dir()
    plan = NetworkPlan(
        tags, content["crf"], content["surface"], content["dropout"],
        str(folder / TRANSFORMER) if has_model else None,
    )  # fmt: skip
    backbone, tokenizer = plan.open()
    network = EntityNetwork(plan.shape(), backbone)
    missing, unknown = network.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    if unknown or any(not name.startswith("backbone.") for name in missing):
        raise UserError(
            f"weights do not fit: missing {missing}, unknown {unknown}", where=str(folder)
        )
    halve(network.eval())
    return network, Reader.load(folder, tokenizer), tags


class EntityObjective(Objective):
    """Negative log likelihood of tag sequences, by unit.

    Args:
        plan: of the network.
        reader: saved beside it.
        windows: of the training texts.
        tags: int64[units] of each training text.
        validation: texts and their spans.
        longest: units of the longest span.
    """

    criterion: ClassVar[str] = "f1"
    maximise: ClassVar[bool] = True

    def __init__(
        self,
        plan: NetworkPlan,
        reader: Reader,
        windows: Sequence[Window],
        tags: Sequence[npt.NDArray[np.int64]],
        validation: Sequence[LabelledText],
        longest: int,
    ) -> None:
        self.plan = plan
        self.reader = reader
        self.training = list(windows)
        self.tags = [plan.tags.part(tags[w.text], w.first, w.first + len(w)) for w in windows]
        self.longest = longest
        self.judged_units = [reader.splitter(text) for text, _ in validation]
        self.judged = reader.windows(self.judged_units)
        self.truth = [set(spans) for _, spans in validation]

    def build(self) -> EntityNetwork:
        """See `Objective.build`."""
        return self.plan.build()

    def identity(self) -> Identity:
        """See `Objective.identity`."""
        return {
            "labels": self.plan.tags.labels,
            "scheme": self.plan.tags.scheme,
            "network": [self.plan.crf, self.plan.surface, self.plan.dropout, self.plan.pooling],
            "windows": [repr(each) for each in self.training],
            "tags": self.tags,
            "validation": [repr(sorted(spans)) for spans in self.truth],
        }

    def lengths(self) -> npt.NDArray[np.int64]:
        """See `Objective.lengths`."""
        return np.array([max(len(w.ids), len(w)) for w in self.training], dtype=np.int64)

    def collate(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> Tensors:
        """See `Objective.collate`."""
        batch = collate([self.training[row] for row in rows], self.reader.pad)
        tags = np.full(batch["features"].shape[:2], IGNORED, dtype=np.int64)
        for at, row in enumerate(rows):
            tags[at, : len(self.tags[row])] = self.tags[row]
        return {**batch, "tags": torch.from_numpy(tags)}

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        """See `Objective.loss`."""
        chain = chain_of(module, batch)
        if self.plan.crf:
            tags = batch["tags"].clamp(min=0)
            return chain.negative_log_likelihood(tags).sum() / chain.lengths.sum()
        return nn.functional.cross_entropy(
            chain.emissions.flatten(0, 1), batch["tags"].flatten(), ignore_index=IGNORED
        )

    def weight(self, rows: npt.NDArray[np.int64], batch: Tensors) -> float:
        """See `Objective.weight`: the loss is a mean over units."""
        return float((batch["tags"] != IGNORED).sum())

    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """Micro F1 of the spans that are likelier right than wrong, 0 … 1."""
        if not any(self.truth):
            return {}
        device = next(module.parameters()).device
        right = said = 0
        order = sorted(range(len(self.judged)), key=lambda at: (len(self.judged[at]), at))
        for at in range(0, len(order), 64):
            windows = [self.judged[each] for each in order[at : at + 64]]
            batch = {k: v.to(device) for k, v in collate(windows, self.reader.pad).items()}
            found = candidates(chain_of(module, batch), self.plan.tags, self.longest)
            for window, spans in zip(windows, found, strict=True):
                units = self.judged_units[window.text]
                first, last = self.reader.owned(window, len(units))
                for c in apart([each for each in spans if each.probability > 0.5]):
                    start = c.first + window.first
                    if first <= start < last:
                        span = self.plan.tags.span(units, start, c.last + window.first, c.label)
                        said += 1
                        right += span in self.truth[window.text]
        return {"f1": 2 * right / (said + sum(map(len, self.truth)))}

    def save(self, module: nn.Module, folder: Path) -> None:
        """See `Objective.save`."""
        assert isinstance(module, EntityNetwork)
        self.plan.save(module, self.reader, folder)
