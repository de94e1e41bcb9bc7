"""Small objectives for tests of the loop; a module of its own, for workers import it too."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raysys.text.training import Objective
from raysys.text.training.batches import placed
from raysys.text.training.objective import Tensors

WORDS = 50
WIDTH = 16


def tiny(kind: str = "bert", layers: int = 2, dropout: float = 0.1) -> Any:
    """A transformer of some architecture with random weights."""
    import transformers as t

    if kind in ("bert", "roberta"):
        config, model = (t.BertConfig, t.BertModel) if kind == "bert" else (
            t.RobertaConfig, t.RobertaModel
        )  # fmt: skip
        return model(
            config(
                vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=layers,
                num_attention_heads=2, intermediate_size=2 * WIDTH, max_position_embeddings=40,
                pad_token_id=0, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
            )
        )  # fmt: skip
    if kind == "distilbert":
        return t.DistilBertModel(
            t.DistilBertConfig(
                vocab_size=WORDS, dim=WIDTH, n_layers=layers, n_heads=2, hidden_dim=2 * WIDTH,
                max_position_embeddings=40, dropout=dropout, attention_dropout=dropout,
            )
        )  # fmt: skip
    return t.GPT2Model(
        t.GPT2Config(
            vocab_size=WORDS, n_embd=WIDTH, n_layer=layers, n_head=2, n_positions=40,
            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        )
    )  # fmt: skip


def device_of(module: nn.Module) -> torch.device:
    """Where its weights are."""
    return next(module.parameters()).device


class Marker(nn.Module):
    """Says of a text whether it holds a certain word: the mean of states, then a linear map."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        out: Tensor = self.head(mean)
        return out


class FindsWord(Objective):
    """Does word 7 occur? Random texts of 3 to 20 words.

    Args:
        n: training examples.
        kind: of the transformer.
        dropout: of it.
        layers: of it.
    """

    criterion = "loss"

    def __init__(
        self, n: int = 40, kind: str = "bert", dropout: float = 0.1, layers: int = 2
    ) -> None:
        rng = np.random.default_rng(0)
        self.kind, self.dropout, self.layers = kind, dropout, layers
        self.texts = [
            rng.integers(1, WORDS, rng.integers(3, 21)).astype(np.int64) for _ in range(n + 20)
        ]
        for text in self.texts[::2]:
            text[rng.integers(len(text))] = 7
        self.labels = np.array([int(7 in text) for text in self.texts])
        self.n = n

    def build(self) -> nn.Module:
        return Marker(tiny(self.kind, self.layers, self.dropout))

    def lengths(self) -> Any:
        return np.array([len(text) for text in self.texts[: self.n]], dtype=np.int64)

    def collate(self, rows: Any, rng: np.random.Generator) -> Tensors:
        longest = max(len(self.texts[row]) for row in rows)
        ids = np.zeros((len(rows), longest), dtype=np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(self.texts[row])] = self.texts[row]
        return {
            "ids": torch.from_numpy(ids),
            "mask": torch.from_numpy((ids > 0).astype(np.int64)),
            "label": torch.from_numpy(self.labels[rows]),
        }

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        found: Tensor = nn.functional.cross_entropy(
            module(batch["ids"], batch["mask"]), batch["label"]
        )
        return found

    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        rows = np.arange(self.n, len(self.texts))
        batch = placed(self.collate(rows, np.random.default_rng(0)), device_of(module))
        return {"loss": float(self.loss(module, batch))}

    def save(self, module: nn.Module, folder: Path) -> None:
        save_file(
            {name: each.clone() for name, each in module.state_dict().items()},
            folder / "model.safetensors",
        )


class DiesOnce(FindsWord):
    """Kills its own process with SIGKILL when it first collates after so many batches.

    Args:
        marker: a file that says that it has been dead before.
        after: batches.
    """

    def __init__(self, marker: Path, after: int, **how: Any) -> None:
        super().__init__(**how)
        self.marker, self.after, self.batches = marker, after, 0

    def collate(self, rows: Any, rng: np.random.Generator) -> Tensors:
        self.batches += 1
        if self.batches > self.after and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().collate(rows, rng)
