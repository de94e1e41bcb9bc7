"""Masked language modelling: guess the words that are hidden from what stands around them.

Whole words are hidden (Cui et al. 2021, arXiv:1906.08101, for Chinese; BERT's own whole-word
models for English): a word of which some tokens show would be guessed from its own spelling.
Masks are drawn anew each time a text comes up (RoBERTa, Liu et al. 2019, arXiv:1907.11692).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from raysys.config import Settings
from raysys.errors import UserError
from raysys.text.models import longest_input, open_with_head
from raysys.text.pretraining.tokens import Frame, Int32, Int64, Row, Tokens
from raysys.text.training import Objective, TrainingSettings
from raysys.text.training.objective import Identity, Tensors

IGNORED = -100
"""Label of a token that is not guessed."""
HEADS = ("cls", "lm_head")
"""What heads are called that read states: those of BERT and its kin; of RoBERTa, XLM-R, MPNet."""
TOKENS_A_BATCH = 4096
"""Of held-out texts side by side."""


class MaskedSettings(Settings):
    """Masked language modelling.

    Attributes:
        share: of each text's words that are guessed; at least one is.
        whole_words: hide all tokens of a word together; False: each token by itself.
        max_tokens: of a piece, marks included; longer texts are cut into several.
        judge_on: held-out pieces that perplexity is measured on, at most.
        training: steps, rates and the like.
    """

    kind: Literal["masked"] = "masked"
    share: float = Field(0.15, gt=0, lt=1)
    whole_words: bool = True
    max_tokens: int = Field(128, ge=8)
    judge_on: int = Field(2000, ge=1)
    training: TrainingSettings = TrainingSettings(epochs=1)


@dataclass(frozen=True)
class Masking:
    """What masks are made of.

    Attributes:
        share: of the words that are guessed.
        mask: the token that hides one.
        plain: int32[v], ids that stand for text: what a hidden token may be replaced by.
    """

    share: float
    mask: int
    plain: Int32

    @classmethod
    def of(cls, tokenizer: Any, share: float) -> Masking:
        """For the vocabulary of a tokenizer."""
        special = set(tokenizer.all_special_ids)
        plain = sorted(set(tokenizer.get_vocab().values()) - special)
        return cls(share, int(tokenizer.mask_token_id), np.array(plain, np.int32))

    def hide(
        self, ids: Int32, words: Int32, rng: np.random.Generator
    ) -> tuple[Int32, npt.NDArray[np.bool_]]:
        """Hide some words of one text.

        Of the words drawn 80% become masks, 10% random tokens, 10% stay as they are (Devlin et al.
        2019, arXiv:1810.04805), each word as a whole.

        Args:
            ids: int32[t], without marks; words: int32[t], numbered from 0 without a gap.
            rng: for the draws.

        Returns:
            The ids, changed, and which of them are to be guessed: bool[t].
        """
        if not len(ids):
            return ids, np.zeros(0, bool)
        n = int(words.max()) + 1
        count = max(1, math.floor(self.share * n + rng.random()))
        fate = np.full(n, np.nan)
        fate[rng.permutation(n)[:count]] = rng.random(count)
        of_token = fate[words]
        hidden = np.where(of_token < 0.8, self.mask, ids)
        other = self.plain[rng.integers(len(self.plain), size=len(ids))]
        hidden = np.where((of_token >= 0.8) & (of_token < 0.9), other, hidden)
        return hidden.astype(np.int32), ~np.isnan(of_token)


class MaskedModel(nn.Module):
    """A transformer with its head for masked language modelling, applied to hidden words only.

    The head costs as much as the whole of a small transformer, and six words of seven are seen.

    Args:
        model: as `open_with_head("mlm", …)` gives it; its output weights are its input embeddings.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.head_is_new = bool(getattr(model, "head_is_new", False))

    @property
    def backbone(self) -> nn.Module:
        """The transformer without the head."""
        found: nn.Module = self.model.base_model
        return found

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        guessed: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits [k, v] of the k tokens at which bool[b, t] `guessed` is true, row by row."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        return self.read(given)[1](guessed)

    def read(self, given: dict[str, Tensor]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """States [b, t, d] of the last layer, and what gives the logits of the tokens picked."""
        heads = (getattr(self.model, name, None) for name in HEADS)
        head = next((each for each in heads if each is not None), None)
        if head is None:  # it lies in parts: of all tokens then
            whole = self.model(**given, output_hidden_states=True)
            return whole.hidden_states[-1], lambda picked: whole.logits[picked]
        hidden: Tensor = self.backbone(**given)[0]
        return hidden, lambda picked: head(hidden[picked])


class MaskedObjective(Objective):
    """Guess hidden words.

    Args:
        model: packaged, a folder or a hub id; its head is taken or made anew.
        train, held_out: pieces of texts, of its tokenizer.
        settings: shares and lengths.
        seed: of the masks of held-out texts.
    """

    title = "masked language modelling"

    def __init__(
        self, model: str, train: Tokens, held_out: Tokens, settings: MaskedSettings, seed: int = 0
    ) -> None:
        self.model = model
        self.train = train
        self.held_out = held_out
        self.settings = settings
        self.seed = seed
        opened, tokenizer = open_with_head("mlm", model, where="model")
        self.frame = Frame.of(tokenizer, opened)
        self.masking = Masking.of(tokenizer, settings.share)
        check_length(opened, settings.max_tokens)

    def build(self) -> nn.Module:
        """See `Objective.build`."""
        return MaskedModel(open_with_head("mlm", self.model, where="model")[0])

    def identity(self) -> Identity:
        """See `Objective.identity`."""
        return {
            "settings": self.settings,
            "texts": [self.train.ids, self.held_out.ids],
            "words": self.train.words,
        }

    def lengths(self) -> Int64:
        """See `Objective.lengths`."""
        return self.train.lengths

    def collate(self, rows: Int64, rng: np.random.Generator) -> Tensors:
        """See `Objective.collate`."""
        return self._batch(self.train, rows, [rng] * len(rows))

    def _batch(self, tokens: Tokens, rows: Int64, rngs: list[np.random.Generator]) -> Tensors:
        framed: list[Row] = []
        labels: list[list[int]] = []
        for row, rng in zip(rows.tolist(), rngs, strict=True):
            where = tokens.piece(row)
            ids = np.asarray(tokens.ids[where])
            words = tokens.words[where] if self.settings.whole_words else np.arange(len(ids))
            hidden, guessed = self.masking.hide(ids, np.asarray(words, np.int32), rng)
            framed.append(self.frame.one(hidden))
            label = np.where(guessed, ids, IGNORED).tolist()
            labels.append([IGNORED] * len(self.frame.begin) + label)
        batch = self.frame.batch(framed)
        return {**batch, "labels": padded_labels(labels, batch["input_ids"].shape[1])}

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        """See `Objective.loss`: mean over the guessed tokens."""
        return self._loss(module, batch, self.settings.training.label_smoothing)

    def _loss(self, module: nn.Module, batch: Tensors, smoothing: float = 0.0) -> Tensor:
        labels = batch["labels"]
        guessed = labels != IGNORED
        logits = module(**{k: v for k, v in batch.items() if k != "labels"}, guessed=guessed)
        return nn.functional.cross_entropy(
            logits.float(), labels[guessed], label_smoothing=smoothing
        )

    def weight(self, rows: Int64, batch: Tensors) -> float:
        """See `Objective.weight`: tokens that are guessed."""
        return float((batch["labels"] != IGNORED).sum())

    @torch.inference_mode()
    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """Perplexity: e to the mean surprise (nats) over guessed tokens of held-out texts.

        The masks are the same at every call.
        """
        device = next(module.parameters()).device
        total, count = 0.0, 0
        for rows in by_length(self.held_out.lengths, self.settings.judge_on):
            rngs = [np.random.default_rng([self.seed, row]) for row in rows.tolist()]
            batch = self._batch(self.held_out, rows, rngs)
            n = int(self.weight(rows, batch))
            moved = {name: each.to(device) for name, each in batch.items()}
            total += float(self._loss(module, moved)) * n
            count += n
        return perplexity(total, count)

    def save(self, module: nn.Module, folder: Path) -> None:
        """Write the transformer, its head and its tokenizer: `open_model` reads the folder."""
        whole: Any = module
        whole.model.save_pretrained(folder)
        open_with_head("mlm", self.model, where="model")[1].save_pretrained(folder)


def check_length(model: nn.Module, max_tokens: int) -> None:
    """Refuse pieces that the model has no positions for.

    Raises:
        UserError: naming how many it has.
    """
    most = longest_input(model)
    if most is not None and max_tokens > most:
        raise UserError(
            f"the model reads {most} tokens, not {max_tokens}",
            where="max_tokens",
            mend=f"give at most {most}",
        )


def padded_labels(labels: list[list[int]], longest: int) -> Tensor:
    """Labels side by side, `IGNORED` behind: int64[b, longest]."""
    found = torch.full((len(labels), longest), IGNORED, dtype=torch.int64)
    for at, row in enumerate(labels):
        found[at, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return found


def by_length(lengths: Int64, at_most: int, tokens: int = TOKENS_A_BATCH) -> Iterator[Int64]:
    """Rows, evenly drawn where there are more than `at_most`, those of like length together."""
    n = len(lengths)
    rows = np.arange(n) if n <= at_most else np.linspace(0, n - 1, at_most).astype(np.int64)
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    at = 0
    while at < len(rows):
        size = max(1, tokens // max(1, int(lengths[rows[at]]) + 3))
        yield rows[at : at + size]
        at += size


def perplexity(surprise: float, count: int) -> dict[str, float]:
    """`loss` (nats a token) and `perplexity`; nothing where nothing was guessed."""
    if not count:
        return {}
    loss = surprise / count
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
