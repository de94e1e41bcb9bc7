"""Fewer layers: a student of every second layer, say, taught to say what its teacher says.

The student begins as a copy of some of the teacher's layers (Sanh et al. 2019, arXiv:1910.01108)
and learns the teacher's last hidden states on unlabelled texts of the shop (as Jiao et al. 2020,
arXiv:1909.10351, do for every layer). Whatever stood on the teacher, a pooled vector or the head of
a classifier, then stands on the student unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysys.errors import UserError
from raysys.text.compression.runtime import tells_parts_apart
from raysys.text.models import layers_of
from raysys.text.training import Objective
from raysys.text.training.objective import Identity

Tensors = dict[str, Tensor]
Texts = Sequence[str] | Sequence[tuple[str, str]]
JUDGED_PER_BATCH = 64


def kept_layers(there: int, wanted: int) -> list[int]:
    """Which of a teacher's layers a student begins with: evenly spread, the last among them.

    >>> kept_layers(6, 3), kept_layers(6, 4), kept_layers(12, 1)
    ([1, 3, 5], [1, 2, 4, 5], [11])
    """
    return [round((at + 1) * there / wanted) - 1 for at in range(wanted)]


def shallower(backbone: Any, layers: int) -> Any:
    """A copy of a backbone with fewer layers.

    Raises:
        UserError: not from 1 to one less than it has.
    """
    there = len(layers_of(backbone))
    if not 1 <= layers < there:
        raise UserError(
            f"cannot keep {layers} of {there} layers", mend=f"choose from 1 to {there - 1}"
        )
    student = copy.deepcopy(backbone)
    stack = layers_of(student)
    kept = [stack[at] for at in kept_layers(there, layers)]
    del stack[layers:]
    for at, layer in enumerate(kept):
        stack[at] = layer
        _renumber(layer, at)
    name = "n_layer" if hasattr(student.config, "n_layer") else "num_hidden_layers"
    setattr(student.config, name, layers)
    for kind in ("layer_types",):  # a list with one entry a layer
        listed = getattr(student.config, kind, None)
        if listed is not None and len(listed) == there:
            setattr(student.config, kind, [listed[at] for at in kept_layers(there, layers)])
    return student


def _renumber(layer: nn.Module, number: int) -> None:
    """Tell a layer its new number, by which decoders find their cache."""
    for part in layer.modules():
        if getattr(part, "layer_idx", None) is not None:
            part.layer_idx = number  # type: ignore[assignment]


class Pupil(nn.Module):
    """A student, without its teacher: what is trained and saved is the student alone."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, **inputs: Tensor) -> Tensor:
        """Hidden states float[b, t, d]."""
        hidden: Tensor = self.backbone(**inputs)[0]
        return hidden


class HiddenStateDistillation(Objective):
    """Mean squared error between the last hidden states of student and teacher.

    Args:
        teacher: a Hugging Face model without head.
        tokenizer: of both.
        layers: of the student.
        texts: unlabelled, or pairs of them where the teacher reads two together; the last
            `held_out` share of them judges.
        max_tokens: read of each text, or pair.
        held_out: share.
    """

    criterion: ClassVar[str] = "hidden_state_error"
    maximise: ClassVar[bool] = False

    def __init__(
        self,
        teacher: Any,
        tokenizer: Any,
        layers: int,
        texts: Texts,
        *,
        max_tokens: int = 64,
        held_out: float = 0.05,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.layers = layers
        distinct = list(dict.fromkeys(each for each in texts if "".join(each).strip()))
        if len(distinct) < 2:
            raise UserError(
                f"{len(distinct)} distinct texts are too few to distil on",
                mend="give the texts of the catalogue, queries or reviews",
            )
        typed = tells_parts_apart(teacher.config)
        found = tokenizer(
            distinct,
            truncation=True,
            max_length=max_tokens,
            return_attention_mask=False,
            return_token_type_ids=typed,
        )
        padding = int(tokenizer.pad_token_id or 0)
        ids: list[list[int]] = [each or [padding] for each in found["input_ids"]]  # GPT marks none
        kinds: list[list[int]] = found["token_type_ids"] if typed else [[] for _ in ids]
        read = list(zip(ids, kinds, strict=True))
        cut = max(1, round(held_out * len(read)))
        self.read, self.judged = read[:-cut], read[-cut:]

    def build(self) -> nn.Module:
        """The student."""
        student = shallower(self.teacher, self.layers)
        student.requires_grad_(True)
        return Pupil(student)

    def identity(self) -> Identity:
        """See `Objective.identity`."""
        return {
            "layers": self.layers,
            "texts": [repr(each) for each in self.read],
        }

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every text."""
        return np.array([len(ids) for ids, _ in self.read], dtype=np.int64)

    def collate(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> Tensors:
        """Padded ids, their mask and, where the teacher reads them, their types."""
        return self._padded([self.read[row] for row in rows])

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        """Mean over the real tokens and their width."""
        mask = batch["attention_mask"]
        with torch.no_grad():
            wanted = self.teacher.to(mask.device)(**batch)[0]
        return _error(module(**batch), wanted, mask).mean()

    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """Error and mean cosine of the mean vectors, on the texts held out."""
        device = next(module.parameters()).device
        errors, cosines = [], []
        for at in range(0, len(self.judged), JUDGED_PER_BATCH):
            padded = self._padded(self.judged[at : at + JUDGED_PER_BATCH])
            batch = {name: each.to(device) for name, each in padded.items()}
            mask = batch["attention_mask"]
            wanted = self.teacher.to(device)(**batch)[0]
            found = module(**batch)
            errors.append(_error(found, wanted, mask).detach())
            cosines.append(
                nn.functional.cosine_similarity(mean(found.detach(), mask), mean(wanted, mask))
            )
        return {
            "hidden_state_error": float(torch.cat(errors).mean()),
            "cosine": float(torch.cat(cosines).mean()),
        }

    def save(self, module: nn.Module, folder: Path) -> None:
        """The student and its tokenizer, as any model's folder."""
        student: Any = module.backbone
        student.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _padded(self, read: Sequence[tuple[list[int], list[int]]]) -> Tensors:
        longest = max(len(ids) for ids, _ in read)
        padded = torch.full((len(read), longest), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros((len(read), longest), dtype=torch.int64)
        kind = torch.zeros_like(mask)
        for row, (ids, kinds) in enumerate(read):
            padded[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
            kind[row, : len(kinds)] = torch.tensor(kinds, dtype=torch.int64)
        typed = {"token_type_ids": kind} if any(kinds for _, kinds in read) else {}
        return {"input_ids": padded, "attention_mask": mask, **typed}


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: float[b, d] of float[b, t, d]."""
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def _error(found: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Squared error of each text, the mean over its tokens and the width: float[b]."""
    squared = (found.float() - wanted.float()).square().mean(2) * mask
    return squared.sum(1) / mask.sum(1).clamp(min=1)
