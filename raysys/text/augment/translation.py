"""Texts into another language and back, by any translation pair of the Hugging Face hub.

Back-translation as augmentation: Sennrich, Haddow and Birch 2016 (arXiv:1511.06709), Edunov et al.
2018 (arXiv:1808.09381), who find that drawing words varies more, and helps more, than beams.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from raysys.cluster import device_here
from raysys.errors import UserError, missing_extra
from raysys.storage import digest
from raysys.text.augment.draws import UInt64, derived, keys_of, uniform
from raysys.text.augment.settings import BackTranslation

WHERE = "augmentation.methods.back_translation"


def back_translated(texts: pl.Series, settings: BackTranslation, seed: int, copy: int) -> pl.Series:
    """n texts, there and back; equal texts are translated once.

    Args:
        texts: n texts, none empty.
        settings: which models, and how.
        seed: of the draws, where there is a temperature.
        copy: number of the copy; without a temperature all copies are the same.

    Raises:
        UserError: a model that is not there, or cannot be used.
    """
    distinct = texts.unique().sort()
    known = _Cache(settings, seed, copy)
    missing = distinct.filter(~distinct.is_in(known.frame["text"].implode()))
    if len(missing):
        there = Translator.open(settings.there, settings.device)
        back = Translator.open(settings.back, settings.device)
        keys = keys_of(missing, seed, "back_translation", copy)
        abroad = there.translate(missing.to_list(), settings, settings.there_prefix, keys)
        home = back.translate(abroad, settings, settings.back_prefix, derived(keys, "back"))
        known.add(pl.DataFrame({"text": missing, "translation": home}))
    pairs = pl.DataFrame({"text": texts}).join(
        known.frame, on="text", how="left", maintain_order="left"
    )
    return pairs["translation"].alias("text")


class Translator:
    """One direction: a sequence-to-sequence model and its tokenizer.

    Args:
        model: a Hugging Face encoder-decoder (Marian, T5, M2M100, NLLB, …).
        tokenizer: its tokenizer.
        device: where it runs.
    """

    def __init__(self, model: Any, tokenizer: Any, device: Any) -> None:
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.device = device

    @classmethod
    def open(cls, model: str, device: str) -> Translator:
        """A folder, or a model of the hub; opened once a process.

        Raises:
            UserError: no such model, no network to fetch it, no such device, a missing package.
        """
        return _opened(model, device)

    def translate(
        self, texts: Sequence[str], settings: BackTranslation, prefix: str, keys: UInt64
    ) -> list[str]:
        """The texts in the other language, texts of like length together.

        Args:
            texts: n texts.
            settings: batch size, beams, temperature, longest.
            prefix: put before each text.
            keys: uint64[n], for drawing.
        """
        import torch
        from transformers import LogitsProcessorList

        found = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda at: (-len(texts[at]), texts[at]))
        for start in range(0, len(order), settings.batch_size):
            which = order[start : start + settings.batch_size]
            inputs = self.tokenizer(
                [prefix + texts[at] for at in which],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=settings.max_tokens,
            ).to(self.device)
            inputs.pop("token_type_ids", None)
            processors = LogitsProcessorList()
            if settings.temperature > 0:
                processors.append(_Drawn(keys[which], settings.temperature))
            with torch.inference_mode():
                outputs = self.model.generate(
                    **inputs,
                    num_beams=settings.beams,
                    do_sample=False,
                    max_new_tokens=settings.max_tokens,
                    logits_processor=processors,
                )
            lines = self.tokenizer.batch_decode(outputs, skip_special_tokens=True)
            for at, line in zip(which, lines, strict=True):
                found[at] = " ".join(line.split())
        return found


class _Drawn:
    """Draws each word with its probability, by numbers that belong to the text.

    The largest of logit / temperature + Gumbel noise is a draw from the softmax (the Gumbel-max
    trick), so a greedy search over noisy logits samples, and a text gets the same noise whatever
    texts are beside it.
    """

    def __init__(self, keys: UInt64, temperature: float) -> None:
        self._keys, self._temperature = keys, temperature
        self._step = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Noisy logits float[b, vocabulary]."""
        import torch

        keys = derived(self._keys, self._step)[:, None]
        self._step += 1
        draws = uniform(keys, np.arange(scores.shape[1])[None, :])
        noise = -np.log(-np.log(np.clip(draws, 1e-300, 1 - 1e-16)))
        return scores / self._temperature + torch.from_numpy(noise).to(scores)


class _Cache:
    """Translations on disk: a folder a pair of models and way of translating, Parquet in it.

    Every process adds files of its own, named by what is in them, so that several may write.
    """

    def __init__(self, settings: BackTranslation, seed: int, copy: int) -> None:
        self.frame = pl.DataFrame(schema={"text": pl.String, "translation": pl.String})
        self._folder: Path | None = None
        if settings.cache is None:
            return
        matters = settings.model_dump(
            include={"there", "back", "there_prefix", "back_prefix", "beams", "temperature",
                     "max_tokens"}
        )  # fmt: skip
        drawn = [seed, copy] if settings.temperature > 0 else []
        self._folder = Path(settings.cache) / digest([matters, drawn])
        files = sorted(self._folder.glob("*.parquet"))
        if files:
            self.frame = pl.read_parquet(files).unique("text", keep="first", maintain_order=True)

    def add(self, fresh: pl.DataFrame) -> None:
        """Keep more translations."""
        self.frame = pl.concat([self.frame, fresh])
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("\0".join(fresh["text"]).encode()).hexdigest()[:16]
        half = self._folder / f".{name}.{os.getpid()}.tmp"
        fresh.write_parquet(half)
        half.replace(self._folder / f"{name}.parquet")


@lru_cache(maxsize=4)
def _opened(model: str, device: str) -> Translator:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    local = Path(model).is_dir()
    if not local and model.startswith((".", "/", "~")):
        raise UserError(f"no model folder {model!r}", where=WHERE)
    try:
        place = torch.device(device_here() if device == "auto" else device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"no device {device!r}: {str(error).splitlines()[0]}",
            where=f"{WHERE}.device",
            mend="take auto, cpu or cuda",
        ) from None
    try:
        how = {"local_files_only": local, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(model, **how)
        weights = AutoModelForSeq2SeqLM.from_pretrained(model, **how)
    except ImportError:
        if find_spec("sentencepiece") is None:
            raise missing_extra("sentencepiece", "augment") from None
        raise
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        raise UserError(
            f"cannot open the translation model {model!r}: {lines[0]}",
            where=WHERE,
            mend="give a folder with a sequence-to-sequence model, or the id of one on the hub, "
            f"such as Helsinki-NLP/opus-mt-en-de; without a network here, run `hf download {model} "
            "--local-dir FOLDER` where there is one and give FOLDER",
        ) from None
    return Translator(weights, tokenizer, place)
