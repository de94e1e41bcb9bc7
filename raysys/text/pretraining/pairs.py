"""Next-sentence prediction in its shop form: do these two texts belong together?

Does this title belong to this description; does this query lead to this product. As in BERT
(Devlin et al. 2019, arXiv:1810.04805) half of the pairs are true, and words may be hidden at the
same time, the two losses added. The false ones are harder here: mostly of the same category, since
a random one is told by its subject alone (which is why later models gave the task up).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raysys.config import Settings
from raysys.errors import UserError
from raysys.text.models import model_folder, open_with_head
from raysys.text.pretraining.behaviour import Pairs, PairSettings
from raysys.text.pretraining.known import Known
from raysys.text.pretraining.masked import (
    IGNORED,
    MaskedModel,
    Masking,
    by_length,
    check_length,
    padded_labels,
)
from raysys.text.pretraining.tokens import Frame, Int64, Row, Tokens
from raysys.text.training import Objective, TrainingSettings
from raysys.text.training.objective import Identity, Tensors

HEAD = "pair_head.safetensors"
TRIES = 10
"""Draws of a negative before one settles for a lesser one."""


class PairsSettings(Settings):
    """Next-sentence prediction, alone or with masked words.

    Attributes:
        pairs: which texts belong together.
        hard: share of the negatives that are of the right text's category.
        masked: share of the words that are hidden and guessed as well; 0: none.
        max_tokens: of a pair, marks included; of each text half of it is read.
        judge_on: held-out pairs that accuracy is measured on, at most.
        training: steps, rates and the like; an example is a true pair and a false one.
    """

    kind: Literal["pairs"] = "pairs"
    pairs: PairSettings
    hard: float = Field(0.5, ge=0, le=1)
    masked: float = Field(0.15, ge=0, lt=1)
    max_tokens: int = Field(128, ge=16)
    judge_on: int = Field(2000, ge=1)
    training: TrainingSettings = TrainingSettings(epochs=1, batch_size=16)


class Negatives:
    """Texts that do not belong to a left text, drawn from the right sides of other pairs.

    Other pairs of the same source: a negative of another kind would be told by its kind.

    Args:
        pairs: all, held-out ones as well; whatever belongs together is no negative.
        rows: int64[k], the pairs whose right sides may be drawn.
    """

    def __init__(self, pairs: Pairs, rows: Int64) -> None:
        self.pairs = pairs
        self.known = Known(pairs)
        source = pairs.source[rows].astype(np.int64)
        category = pairs.category[pairs.right[rows]].astype(np.int64)
        self._width = int(category.max(initial=0)) + 2
        keys = source * self._width + category + 1
        order = np.argsort(keys, kind="stable")
        self._rows, self._keys = rows[order], keys[order]

    def draw(self, row: int, hard: bool, rng: np.random.Generator) -> int | None:
        """Code of a text for the left side of a pair.

        Args:
            row: the pair.
            hard: of the category of its right side.
            rng: for the draw.

        Returns:
            None: whatever there is belongs to it.
        """
        pairs = self.pairs
        first = int(pairs.source[row]) * self._width
        key = first + int(pairs.category[pairs.right[row]]) + 1
        whole = np.searchsorted(self._keys, [first, first + self._width])
        spans = [np.searchsorted(self._keys, [key, key + 1]), whole] if hard else [whole]
        for low, high in spans:
            if low == high:
                continue
            drawn = pairs.right[self._rows[rng.integers(low, high, size=TRIES)]]
            left = np.full(TRIES, pairs.left[row])
            right = np.full(TRIES, pairs.right[row])
            other = drawn[~self.known.together(left, right, drawn)]
            if len(other):
                return int(other[0])
        return None


class PairModel(MaskedModel):
    """A transformer that says whether two texts belong together, and may guess hidden words too.

    Args:
        model: as `open_with_head("mlm", …)` gives it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        width = model.config.hidden_size
        self.pair_head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        guessed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [b] of belonging together; logits [k, v] of the words where `guessed` is given.

        Read off the first token, as in BERT.
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        if guessed is None:
            return self.pair_head(self.backbone(**given)[0][:, 0])[:, 0], None
        hidden, logits = self.read(given)
        return self.pair_head(hidden[:, 0])[:, 0], logits(guessed)


class PairsObjective(Objective):
    """Tell pairs that belong together from pairs that do not.

    Args:
        model: packaged, a folder or a hub id.
        pairs: of the shop.
        tokens: of `pairs.texts`, one piece a text (`tokenise(…, pieces=False)`).
        settings: shares and lengths.
        seed: of the negatives of held-out pairs.
    """

    criterion = "accuracy"
    maximise = True
    title = "next-sentence prediction"

    def __init__(
        self, model: str, pairs: Pairs, tokens: Tokens, settings: PairsSettings, seed: int = 0
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.tokens = tokens
        self.settings = settings
        self.seed = seed
        opened, tokenizer = open_with_head("mlm", model, where="model")
        check_length(opened, settings.max_tokens)
        self.frame = Frame.of(tokenizer, opened)
        self.masking = Masking.of(tokenizer, settings.masked)
        self.rows = np.flatnonzero(~pairs.held_out)
        self.negatives = Negatives(pairs, self.rows)
        self.judged = few(np.flatnonzero(pairs.held_out), settings.judge_on)
        if not any(
            self.negatives.draw(int(row), False, np.random.default_rng(0))
            for row in self.rows[:100]
        ):
            raise UserError(
                "every text belongs to every other: there are no false pairs",
                where="pairs",
                mend="take columns that differ between items",
            )

    def build(self) -> nn.Module:
        """See `Objective.build`."""
        module = PairModel(open_with_head("mlm", self.model, where="model")[0])
        head = model_folder(self.model, where="model") / HEAD
        module.head_is_new = not head.is_file()  # figures are of pairs alone
        if head.is_file():
            module.pair_head.load_state_dict(load_file(head))
        if not self.settings.masked:  # the head of words is carried along, idle
            body = {id(weight) for weight in module.backbone.parameters()}
            for weight in module.model.parameters():
                weight.requires_grad_(id(weight) in body)
        return module

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
        """Tokens that are read of each text."""
        marks = len(self.frame.begin) + len(self.frame.between) + len(self.frame.end)
        return (self.settings.max_tokens - marks) // 2

    def collate(self, rows: Int64, rng: np.random.Generator) -> Tensors:
        """See `Objective.collate`: a true pair for each row, and a false one."""
        chosen: list[tuple[int, int, bool]] = []
        for row in self.rows[rows].tolist():
            left = int(self.pairs.left[row])
            chosen.append((left, int(self.pairs.right[row]), True))
            other = self.negatives.draw(row, rng.random() < self.settings.hard, rng)
            if other is not None:
                chosen.append((left, other, False))
        return self._batch(chosen, rng if self.settings.masked else None)

    def _batch(
        self, chosen: list[tuple[int, int, bool]], rng: np.random.Generator | None
    ) -> Tensors:
        room = self._room()
        framed: list[Row] = []
        labels: list[list[int]] = []
        for left, right, _ in chosen:
            sides, guesses = [], []
            for code in (left, right):
                where = self.tokens.piece(code)
                ids = np.asarray(self.tokens.ids[where])[:room]
                words = np.asarray(self.tokens.words[where])[:room]
                guessed = np.zeros(len(ids), bool)
                hidden = ids
                if rng is not None:
                    hidden, guessed = self.masking.hide(ids, words, rng)
                sides.append(hidden)
                guesses.append(np.where(guessed, ids, IGNORED).tolist())
            framed.append(self.frame.two(*sides))
            begin, between = len(self.frame.begin), len(self.frame.between)
            labels.append([IGNORED] * begin + guesses[0] + [IGNORED] * between + guesses[1])
        batch = self.frame.batch(framed)
        batch["together"] = torch.tensor([float(true) for *_, true in chosen])
        if rng is not None:
            batch["labels"] = padded_labels(labels, batch["input_ids"].shape[1])
        return batch

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        """See `Objective.loss`: of the pairs, plus that of the hidden words if there are any."""
        together, logits = module(**_given(batch))
        loss = nn.functional.binary_cross_entropy_with_logits(together.float(), batch["together"])
        if logits is None:
            return loss
        labels = batch["labels"]
        smoothing = self.settings.training.label_smoothing
        return loss + nn.functional.cross_entropy(
            logits.float(), labels[labels != IGNORED], label_smoothing=smoothing
        )

    @torch.inference_mode()
    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """Accuracy on held-out pairs, half of them true; nothing is hidden.

        `accuracy` with as many hard negatives as in training, `hard_accuracy` with hard ones only.
        The negatives are the same at every call, drawn from the pairs that are trained on.
        """
        found = {}
        for name, hard in (("accuracy", self.settings.hard), ("hard_accuracy", 1.0)):
            chosen: list[tuple[int, int, bool]] = []
            for row in self.judged.tolist():
                rng = np.random.default_rng([self.seed, row])
                other = self.negatives.draw(row, rng.random() < hard, rng)
                if other is not None:
                    left = int(self.pairs.left[row])
                    chosen += [(left, int(self.pairs.right[row]), True), (left, other, False)]
            if not chosen:
                return {}
            right, loss = self._judge(module, chosen)
            found[name] = right
            found.setdefault("loss", loss)
        return found

    def _judge(self, module: nn.Module, chosen: list[tuple[int, int, bool]]) -> tuple[float, float]:
        """Share that is told right, and mean loss."""
        device = next(module.parameters()).device
        each = np.minimum(self.tokens.lengths, self._room())
        lengths = np.array([each[left] + each[right] for left, right, _ in chosen], np.int64)
        right, loss = 0, 0.0
        for rows in by_length(lengths, len(lengths)):
            batch = self._batch([chosen[row] for row in rows.tolist()], None)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            together, _ = module(**_given(batch))
            true = batch["together"]
            right += int(((together > 0) == (true > 0.5)).sum())
            loss += float(
                nn.functional.binary_cross_entropy_with_logits(
                    together.float(), true, reduction="sum"
                )
            )
        return right / len(chosen), loss / len(chosen)

    def save(self, module: nn.Module, folder: Path) -> None:
        """Write the transformer, both heads and the tokenizer: `open_model` reads the folder."""
        whole: Any = module
        whole.model.save_pretrained(folder)
        save_file(
            {name: each.contiguous() for name, each in whole.pair_head.state_dict().items()},
            folder / HEAD,
        )
        open_with_head("mlm", self.model, where="model")[1].save_pretrained(folder)


def _given(batch: Tensors) -> Tensors:
    """What the module takes of a batch."""
    given = {k: v for k, v in batch.items() if k not in ("together", "labels")}
    return {**given, "guessed": batch["labels"] != IGNORED} if "labels" in batch else given


def few(rows: npt.NDArray[np.int64], at_most: int) -> Int64:
    """All rows, or so many of them, evenly."""
    if len(rows) <= at_most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, at_most).astype(np.int64)]
