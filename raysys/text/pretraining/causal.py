"""Causal language modelling: say each token from those before it, for models of the GPT family.

Short texts are packed into blocks, so that hardly anything is padding; a token sees its own text
only, and positions begin anew with each (Krell et al. 2021, arXiv:2107.02027).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from raysys.config import Settings
from raysys.errors import UserError
from raysys.text.models import open_with_head
from raysys.text.pretraining.masked import IGNORED, check_length
from raysys.text.pretraining.tokens import Int64, Tokens
from raysys.text.training import Objective, TrainingSettings
from raysys.text.training.objective import Identity, Tensors

MARKS = 2
"""Around a piece: of its beginning and of its end."""
PROBE = 4
"""Tokens of a text by which `check_apart` looks."""


class CausalSettings(Settings):
    """Causal language modelling.

    Attributes:
        block: tokens that go through the model side by side: as many texts as fit.
        judge_on: held-out blocks that perplexity is measured on, at most.
        training: steps, rates and the like; an example is a block.
    """

    kind: Literal["causal"] = "causal"
    block: int = Field(256, ge=8)
    judge_on: int = Field(500, ge=1)
    training: TrainingSettings = TrainingSettings(epochs=1, batch_size=8)


class CausalModel(nn.Module):
    """A decoder with its head, over blocks of texts that do not see each other.

    Args:
        model: as `open_with_head("clm", …)` gives it.
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

    def forward(self, input_ids: Tensor, texts: Tensor, position_ids: Tensor) -> Tensor:
        """Logits [b, t, v] of what follows each token.

        Args:
            input_ids: int64[b, t].
            texts: int64[b, t], which text of the block each token is of, -1: padding.
            position_ids: int64[b, t], from 0 in each text.
        """
        same = texts[:, :, None] == texts[:, None, :]
        before = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
        found: Tensor = self.model(
            input_ids=input_ids, attention_mask=self._added((same & before)[:, None]),
            position_ids=position_ids, use_cache=False,
        ).logits  # fmt: skip
        return found

    def _added(self, seen: Tensor) -> Tensor:
        """What is added to the scores of attention for a token to see what it may: 0, or as little
        as there is.

        Families that know no SDPA (GPT-Neo, GPT-J) add whatever they are given: true would be 1,
        and hide nothing.
        """
        device = seen.device.type
        if torch.is_autocast_enabled(device):  # in float32 it would be -inf once it is cast
            dtype = torch.get_autocast_dtype(device)
        else:
            dtype = next(self.model.parameters()).dtype
        added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return added.masked_fill_(~seen, torch.finfo(dtype).min)


@torch.inference_mode()
def check_apart(model: Any, *, where: str) -> None:
    """Look whether a decoder keeps the texts of a block apart, by two short blocks.

    Args:
        model: as `open_with_head("clm", …)` gives it, in eval mode.
        where: the setting that names it.

    Raises:
        UserError: it takes no mask of which token sees which, or heeds none.
    """
    ids = (torch.arange(2 * PROBE) % int(model.config.vocab_size))[None]
    texts = torch.arange(2 * PROBE)[None] // PROBE
    places = torch.arange(2 * PROBE)[None] % PROBE
    blocks = CausalModel(model)
    mend = "take a decoder such as GPT-2, Llama or Qwen"
    try:
        said = blocks(ids, texts, places)
        sides = []
        for side in (0, 1):  # other words in one text: the other must read as before
            other = torch.where(texts == side, ids.flip(1), ids)
            sides.append((said - blocks(other, texts, places))[texts != side])
    except Exception as error:  # each family has words of its own for it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"a {model.config.model_type} cannot be told which tokens see each other, so texts "
            f"cannot be packed into blocks: {reason}",
            where=where,
            mend=mend,
        ) from error
    if not all(bool((each.abs() <= 1e-5 * said.abs().max()).all()) for each in sides):
        raise UserError(
            f"a {model.config.model_type} lets texts of one block see each other",
            where=where,
            mend=mend,
        )


class CausalObjective(Objective):
    """Say what follows.

    A piece reads: mark of beginning, its tokens, mark of end. GPT-2 has one mark for both.

    Args:
        model: packaged, a folder or a hub id.
        train, held_out: pieces of at most `block` - MARKS tokens, of its tokenizer.
        settings: lengths and steps.
        seed: of how pieces are packed.
    """

    title = "causal language modelling"

    def __init__(
        self, model: str, train: Tokens, held_out: Tokens, settings: CausalSettings, seed: int = 0
    ) -> None:
        self.model = model
        self.train = train
        self.held_out = held_out
        self.settings = settings
        opened, tokenizer = open_with_head("clm", model, where="model")
        check_length(opened, settings.block)
        check_apart(opened, where="model")
        end = tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"the tokenizer of {model!r} has no mark for the end of a text",
                where="model",
                mend="name one as `eos_token` in tokenizer_config.json",
            )
        begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.marks = int(begin), int(end)
        self.blocks = pack(train.lengths + MARKS, settings.block, seed)
        judged = pack(held_out.lengths + MARKS, settings.block, seed)
        few = np.linspace(0, len(judged) - 1, min(len(judged), settings.judge_on))
        self.judged = [judged[at] for at in few.astype(int)]  # long pieces are in the first

    def build(self) -> nn.Module:
        """See `Objective.build`."""
        return CausalModel(open_with_head("clm", self.model, where="model")[0])

    def identity(self) -> Identity:
        """See `Objective.identity`."""
        return {
            "settings": self.settings,
            "texts": [self.train.ids, self.held_out.ids],
            "blocks": self.blocks,
        }

    def lengths(self) -> Int64:
        """See `Objective.lengths`."""
        each = self.train.lengths + MARKS
        return np.array([each[block].sum() for block in self.blocks], np.int64)

    def collate(self, rows: Int64, rng: np.random.Generator) -> Tensors:
        """See `Objective.collate`."""
        return self._batch(self.train, [self.blocks[row] for row in rows.tolist()])

    def _batch(self, tokens: Tokens, blocks: list[Int64]) -> Tensors:
        begin, end = self.marks
        rows = []
        for block in blocks:
            ids: list[int] = []
            texts: list[int] = []
            positions: list[int] = []
            labels: list[int] = []
            for at, piece in enumerate(block.tolist()):
                text = [begin, *tokens.ids[tokens.piece(piece)].tolist(), end]
                ids += text
                texts += [at] * len(text)
                positions += range(len(text))
                labels += [*text[1:], IGNORED]
            rows.append((ids, texts, positions, labels))
        longest = max(len(ids) for ids, *_ in rows)
        fills = {"input_ids": end, "texts": -1, "position_ids": 0, "labels": IGNORED}
        return {
            name: torch.tensor([row[at] + [fill] * (longest - len(row[at])) for row in rows])
            for at, (name, fill) in enumerate(fills.items())
        }

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        """See `Objective.loss`: mean over tokens."""
        return self._loss(module, batch, self.settings.training.label_smoothing)

    def _loss(self, module: nn.Module, batch: Tensors, smoothing: float = 0.0) -> Tensor:
        labels = batch["labels"].flatten()
        logits = module(**{name: each for name, each in batch.items() if name != "labels"})
        return nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels, ignore_index=IGNORED, label_smoothing=smoothing
        )

    def weight(self, rows: Int64, batch: Tensors) -> float:
        """See `Objective.weight`: tokens that are said."""
        return float((batch["labels"] != IGNORED).sum())

    @torch.inference_mode()
    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """Perplexity of held-out texts: of a token, and of a character.

        e to the mean surprise (nats). Tokenizers cut texts into more tokens or fewer, so only the
        figure of characters can be held against another tokenizer's; an end counts as one.
        """
        device = next(module.parameters()).device
        surprise, count, characters = 0.0, 0, 0
        size = max(1, 4096 // self.settings.block)
        for at in range(0, len(self.judged), size):
            blocks = self.judged[at : at + size]
            batch = self._batch(self.held_out, blocks)
            n = int((batch["labels"] != IGNORED).sum())
            moved = {name: each.to(device) for name, each in batch.items()}
            surprise += float(self._loss(module, moved)) * n
            count += n
            characters += sum(int((self.held_out.characters[block] + 1).sum()) for block in blocks)
        if not count:
            return {}
        return {
            "loss": surprise / count,
            "perplexity": math.exp(min(surprise / count, 700.0)),
            "character_perplexity": math.exp(min(surprise / characters, 700.0)),
        }

    def save(self, module: nn.Module, folder: Path) -> None:
        """Write the decoder, its head and its tokenizer: `open_model` reads the folder."""
        whole: Any = module
        whole.model.save_pretrained(folder)
        open_with_head("clm", self.model, where="model")[1].save_pretrained(folder)


def pack(lengths: npt.NDArray[np.int64], block: int, seed: int) -> list[Int64]:
    """Put pieces into as few blocks as best-fit decreasing finds.

    Args:
        lengths: int64[n], none above `block`.
        block: what one holds.
        seed: of the order among pieces of one length.

    Returns:
        The pieces of each block.

    Raises:
        ValueError: a piece that no block holds.
    """
    if len(lengths) and int(lengths.max()) > block:
        raise ValueError(f"a piece of {int(lengths.max())} tokens, a block of {block}")
    mixed = np.random.default_rng(seed).permutation(len(lengths))
    order = mixed[np.argsort(-lengths[mixed], kind="stable")]
    blocks: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(block + 1)]  # blocks by the room they have left
    rooms = 0  # bit r: some block has room for r tokens
    for piece in order.tolist():
        length = int(lengths[piece])
        fitting = rooms >> length << length
        if fitting:
            room = (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = block, len(blocks)
            blocks.append([])
        blocks[chosen].append(piece)
        with_room[room - length].append(chosen)
        rooms |= 1 << (room - length)
    return [np.array(each, np.int64) for each in blocks]
