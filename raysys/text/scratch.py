"""A small transformer from nothing, with a tokenizer trained on the shop's own text.

For shops whose language or words no pre-trained model knows. Its weights are drawn; what it knows
it gets by pre-training. The folder is read as any other model's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import Field, model_validator
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from raysys.config import Settings
from raysys.errors import UserError
from raysys.text.models import readable

_BERT: Final = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_GPT: Final = {"pad": "<|pad|>", "unk": "<|unknown|>", "bos": "<|endoftext|>",
               "eos": "<|endoftext|>"}  # fmt: skip
_SEGMENTS: Final = {"bert": ["token_type_ids"], "gpt2": []}
_BEGINS: Final = "\u2581"
_SPARE: Final = 10_000
"""Merges beyond those wanted: how many go into signs alone is known afterwards."""


class ScratchSettings(Settings):
    """A model without a past.

    Attributes:
        architecture: bert reads both ways, gpt2 from left to right.
        layers: of the transformer.
        width: of hidden states, a multiple of `heads`; the inner layer has four times as many.
        heads: of attention.
        vocabulary: tokens at most, those for padding, masking and so on included.
        max_tokens: the longest text.
        tokenizer: wordpiece (Chinese sign by sign, as BERT does), bpe (of bytes: nothing is
            unknown), unigram (Kudo 2018, arXiv:1804.10959), or characters.
        lower_case: whether case is left out; wordpiece then leaves accents out as well.
    """

    architecture: Literal["bert", "gpt2"] = "bert"
    layers: int = Field(4, ge=1, le=48)
    width: int = Field(256, ge=8)
    heads: int = Field(4, ge=1)
    vocabulary: int = Field(8_000, ge=64, le=250_000)
    max_tokens: int = Field(128, ge=8, le=4096)
    tokenizer: Literal["wordpiece", "bpe", "unigram", "characters"] = "wordpiece"
    lower_case: bool = True

    @model_validator(mode="after")
    def _fits(self) -> ScratchSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.tokenizer == "bpe" and self.vocabulary < 512:
            raise ValueError("vocabulary must be 512 or more for bpe: 256 of it are single bytes")
        return self


@dataclass(frozen=True)
class Scratch:
    """What was made.

    Attributes:
        folder: model and tokenizer.
        texts: read for the tokenizer; those without a sign are not counted.
        characters: of those texts, before normalisation.
        vocabulary: tokens; fewer than asked for where the texts have no more.
        parameters: weights of the model.
    """

    folder: Path
    texts: int
    characters: int
    vocabulary: int
    parameters: int


def make_model(settings: ScratchSettings, texts: Iterable[str], seed: int, folder: Path) -> Scratch:
    """Train the tokenizer, draw the weights, write both; the same for the same texts and seed.

    Args:
        settings: of the model.
        texts: read once, one by one, of each what the model could read; not held.
        seed: of the weights.
        folder: new or empty; `models.open_model` reads it.

    Raises:
        UserError: no text with a sign in it.
    """
    from transformers import PreTrainedTokenizerFast

    reading = _Reading(texts, settings.max_tokens)
    names = _BERT if settings.architecture == "bert" else _GPT
    tokenizer = _trained(settings, reading, list(dict.fromkeys(names.values())))
    if not reading.texts:
        raise UserError("no text to train a tokenizer on", mend="give texts that are not empty")
    if settings.architecture == "bert":
        marks = [(names[each], tokenizer.token_to_id(names[each])) for each in ("cls", "sep")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=settings.max_tokens,
        model_input_names=["input_ids", *_SEGMENTS[settings.architecture], "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    ).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _drawn(settings, tokenizer, names)
    model.save_pretrained(folder)
    return Scratch(
        folder,
        reading.texts,
        reading.characters,
        tokenizer.get_vocab_size(),
        sum(each.numel() for each in model.parameters()),
    )


class _Reading:
    """Texts one by one, counted as they pass."""

    def __init__(self, texts: Iterable[str], max_tokens: int) -> None:
        self._all = texts
        self._max_tokens = max_tokens
        self.texts = 0
        self.characters = 0
        self.signs: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        for text in self._all:
            text = readable(text, self._max_tokens)
            if text:
                self.texts += 1
                self.characters += len(text)
                yield text

    def counted(self, normalizer: normalizers.Normalizer) -> Iterator[str]:
        """The texts as they are normalised, their signs counted."""
        for text in self:
            text = normalizer.normalize_str(text)
            self.signs.update(text)
            yield text

    def alphabet(self, most: int) -> list[str]:
        """The signs seen most often; in order of their code where as often."""
        order = sorted(self.signs.items(), key=lambda pair: (-pair[1], pair[0]))
        return [sign for sign, _ in order[:most]]


def _trained(settings: ScratchSettings, reading: _Reading, special: list[str]) -> Tokenizer:
    make = {
        "wordpiece": _wordpiece,
        "bpe": _bpe,
        "unigram": _unigram,
        "characters": _characters,
    }[settings.tokenizer]
    tokenizer = make(settings, reading, special)
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in special])
    return tokenizer


def _wordpiece(settings: ScratchSettings, reading: _Reading, special: list[str]) -> Tokenizer:
    """The library's own trainer numbers letters in the order of a hash table, and what it merges
    first where counts are equal hangs on that. So words are marked at their beginning and merged
    as BPE, which is the same merging, and then named as WordPiece names them.
    """
    normalizer = normalizers.BertNormalizer(lowercase=settings.lower_case)
    cut = pre_tokenizers.BertPreTokenizer()
    merging = Tokenizer(models.BPE())
    merging.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.Metaspace(_BEGINS, prepend_scheme="always", split=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary + _SPARE, min_frequency=2, show_progress=False
    )
    merging.train_from_iterator(reading.counted(normalizer), trainer)
    signs = [each for each in reading.alphabet((settings.vocabulary - len(special)) // 2)
             if not each.isspace()]  # fmt: skip
    pieces = list(special)
    for sign in signs:
        alone = len(cut.pre_tokenize_str(f"a{sign}")) > 1 or _is_han(sign)
        pieces += [sign] if alone else [sign, f"##{sign}"]
    known = set(signs)
    merged = sorted(merging.get_vocab().items(), key=lambda pair: pair[1])
    for piece, _ in merged:
        bare = piece.removeprefix(_BEGINS)
        if bare and known.issuperset(bare):
            pieces.append(bare if piece.startswith(_BEGINS) else f"##{bare}")
    pieces = list(dict.fromkeys(pieces))[: settings.vocabulary]
    tokenizer = Tokenizer(
        models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token=special[1])
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, cut
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _bpe(settings: ScratchSettings, reading: _Reading, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _plain(settings, normalizers.NFC())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(reading), trainer)
    return tokenizer


def _unigram(settings: ScratchSettings, reading: _Reading, special: list[str]) -> Tokenizer:
    """The library gives signs that are no piece of their own the least score, 0.0001 apart in the
    order of a hash table; here they share it.
    """
    normalizer = _plain(settings, normalizers.NFKC())
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(_BEGINS)
    trainer = trainers.UnigramTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=special,
        unk_token=special[1],
        show_progress=False,
    )
    try:
        trained.train_from_iterator(reading.counted(normalizer), trainer)
    except Exception:
        if len(reading.signs) + len(special) < settings.vocabulary:
            raise
        raise UserError(
            f"a vocabulary of {settings.vocabulary} does not hold the {len(reading.signs)} signs "
            "of the texts, and unigram leaves out none",
            mend="take more, or the tokenizer wordpiece or bpe",
        ) from None
    found = {
        piece: score
        for piece, score in json.loads(trained.to_str())["model"]["vocab"]
        if piece not in special
    }
    least = min(found.values(), default=0.0)
    shared = least + 0.0001 * (sum(len(piece) == 1 for piece in found) + 1)
    scores = {
        piece: least if len(piece) == 1 and score < shared else round(score, 4)
        for piece, score in found.items()
    }
    own = sorted(scores.items(), key=lambda each: (-each[1], each[0]))
    tokenizer = Tokenizer(models.Unigram([(each, 0.0) for each in special] + own, 1, False))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.Metaspace(_BEGINS)
    tokenizer.decoder = decoders.Metaspace(_BEGINS)
    return tokenizer


def _characters(settings: ScratchSettings, reading: _Reading, special: list[str]) -> Tokenizer:
    normalizer = _plain(settings, normalizers.NFC())
    for _ in reading.counted(normalizer):
        pass
    pieces = [*special, *reading.alphabet(settings.vocabulary - len(special))]
    tokenizer = Tokenizer(
        models.WordLevel({piece: at for at, piece in enumerate(pieces)}, unk_token=special[1])
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _plain(settings: ScratchSettings, form: normalizers.Normalizer) -> normalizers.Normalizer:
    """One Unicode form, one space between words, no control characters."""
    steps = [form, normalizers.Replace(Regex(r"[\s\x00-\x1f\x7f]+"), " "), normalizers.Strip()]
    return normalizers.Sequence(
        [*steps, *([normalizers.Lowercase()] if settings.lower_case else [])]
    )


def _is_han(sign: str) -> bool:
    """Whether BERT's normaliser stands it alone."""
    return " " in normalizers.BertNormalizer().normalize_str(f"a{sign}")


def _drawn(settings: ScratchSettings, tokenizer: Tokenizer, names: dict[str, str]) -> Any:
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

    shared: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "max_position_embeddings": settings.max_tokens,
        "pad_token_id": tokenizer.token_to_id(names["pad"]),
    }
    if settings.architecture == "bert":
        config = BertConfig(**shared, intermediate_size=4 * settings.width)
        return BertModel(config, add_pooling_layer=False)
    end = tokenizer.token_to_id(names["eos"])
    return GPT2Model(GPT2Config(**shared, bos_token_id=end, eos_token_id=end))
