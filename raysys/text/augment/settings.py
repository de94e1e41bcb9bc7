"""What `augmentation:` in a YAML may say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raysys.config import Settings

LAYOUTS = {
    "qwerty": ("1234567890-=", "qwertyuiop[]", "asdfghjkl;'", "zxcvbnm,./"),
    "qwertz": ("1234567890ß´", "qwertzuiopü+", "asdfghjklöä#", "yxcvbnm,.-"),
    "azerty": ("&é\"'(-è_çà)=", "azertyuiop^$", "qsdfghjklmù*", "wxcvbn,;:!"),
}
"""Rows of keys, top to bottom."""


class Method(Settings):
    """What all methods have.

    Attributes:
        kind: its name, and the label of its copies.
        probability: that a row gets a copy of this kind; drawn for each row and copy.
    """

    kind: str
    probability: float = Field(1.0, gt=0, le=1)


class TextMethod(Method):
    """A method that changes texts."""


class HistoryMethod(Method):
    """A method that changes what a user did last."""


class SynonymReplacement(TextMethod):
    """Words give way to words of like meaning.

    Attributes:
        strength: share of the words that have synonyms; at least one is replaced.
        thesaurus: one or several of: `wordnet` (English, needs the extra `augment`), a folder
            with WordNet's files, a Parquet file that `Thesaurus.save` wrote, a text file with a
            line `sofa, couch, divan` a group.
        most: synonyms of a word that are considered, the nearest first.
        least_score: synonyms that are further away are left out, 0 … 1.
    """

    kind: Literal["synonym_replacement"] = "synonym_replacement"
    strength: float = Field(0.2, gt=0, le=1)
    thesaurus: tuple[str, ...] = ("wordnet",)
    most: int = Field(5, ge=1)
    least_score: float = Field(0.3, ge=0, le=1)

    @field_validator("thesaurus", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class SpellingNoise(TextMethod):
    """Slips of the finger, one in each chosen word; never in a word with a digit, never the first
    letter but of a Chinese word.

    Attributes:
        strength: share of the words of four letters or two Chinese signs or more; at least one.
        neighbour: how often, relative to the others, a key beside the right one is hit.
        transposition: two letters trade places.
        doubling: a letter comes twice.
        omission: a letter is left out.
        layout: `qwerty`, `qwertz`, `azerty`, or rows of keys from top to bottom.
    """

    kind: Literal["spelling_noise"] = "spelling_noise"
    strength: float = Field(0.2, gt=0, le=1)
    neighbour: float = Field(1.0, ge=0)
    transposition: float = Field(1.0, ge=0)
    doubling: float = Field(1.0, ge=0)
    omission: float = Field(1.0, ge=0)
    layout: Literal["qwerty", "qwertz", "azerty"] | tuple[str, ...] = "qwerty"

    @model_validator(mode="after")
    def _something_happens(self) -> SpellingNoise:
        if self.neighbour + self.transposition + self.doubling + self.omission <= 0:
            raise ValueError("neighbour, transposition, doubling and omission are all 0")
        return self

    @property
    def rows(self) -> tuple[str, ...]:
        """Of the keyboard."""
        return LAYOUTS[self.layout] if isinstance(self.layout, str) else self.layout


class WordDropout(TextMethod):
    """Words are left out; one always stays, and so does every word with a digit.

    Attributes:
        strength: share of the words; at least one.
    """

    kind: Literal["word_dropout"] = "word_dropout"
    strength: float = Field(0.2, gt=0, le=1)


class WordSwap(TextMethod):
    """Neighbouring words trade places.

    Attributes:
        strength: share of the places between words; at least one pair.
    """

    kind: Literal["word_swap"] = "word_swap"
    strength: float = Field(0.2, gt=0, le=1)


class BackTranslation(TextMethod):
    """Into another language and back, by two models.

    Attributes:
        there: id of a translation model on the Hugging Face hub, or a folder.
        back: the one that translates back.
        there_prefix: put before each text, where a model wants that (`>>fra<<`,
            `translate English to German:`).
        back_prefix: the same for the way back.
        beams: of the beam search; 1: the likeliest word at each step.
        temperature: above 0 each word is drawn, so that copies differ; needs `beams: 1`. 0: not.
        max_tokens: of a text and of a translation.
        batch_size: texts translated at once.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        cache: a folder that keeps translations; null: none is kept.
    """

    kind: Literal["back_translation"] = "back_translation"
    there: str = "Helsinki-NLP/opus-mt-en-de"
    back: str = "Helsinki-NLP/opus-mt-de-en"
    there_prefix: str = ""
    back_prefix: str = ""
    beams: int = Field(4, ge=1)
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(128, ge=4)
    batch_size: int = Field(32, ge=1)
    device: str = "auto"
    cache: str | None = None

    @model_validator(mode="after")
    def _beams_or_draws(self) -> BackTranslation:
        if self.temperature > 0 and self.beams > 1:
            raise ValueError("a temperature needs `beams: 1`")
        return self


class Crop(HistoryMethod):
    """Only a stretch of the history is kept.

    Attributes:
        strength: share that is kept.
    """

    kind: Literal["crop"] = "crop"
    strength: float = Field(0.6, gt=0, lt=1)


class Mask(HistoryMethod):
    """Items of the history become unknown ones.

    Attributes:
        strength: share that is hidden; at least one item, and one always stays.
    """

    kind: Literal["mask"] = "mask"
    strength: float = Field(0.3, gt=0, lt=1)


class Reorder(HistoryMethod):
    """A stretch of the history is shuffled.

    Attributes:
        strength: share of the history that the stretch has; at least two items.
    """

    kind: Literal["reorder"] = "reorder"
    strength: float = Field(0.4, gt=0, le=1)


class Substitute(HistoryMethod):
    """Items give way to ones that are bought together with them.

    Attributes:
        strength: share of the items; at least one.
        most: neighbours of an item that are considered, the nearest first.
    """

    kind: Literal["substitute"] = "substitute"
    strength: float = Field(0.2, gt=0, le=1)
    most: int = Field(5, ge=1)


class Insert(HistoryMethod):
    """Items that are bought together with some of the history are put beside those.

    Attributes:
        strength: share of the items that get one; at least one.
        most: neighbours of an item that are considered, the nearest first.
    """

    kind: Literal["insert"] = "insert"
    strength: float = Field(0.2, gt=0, le=1)
    most: int = Field(5, ge=1)


AnyMethod = Annotated[
    SynonymReplacement | SpellingNoise | WordDropout | WordSwap | BackTranslation
    | Crop | Mask | Reorder | Substitute | Insert,
    Field(discriminator="kind"),
]  # fmt: skip


class Augmentation(Settings):
    """How training rows are multiplied; off by default.

    Attributes:
        methods: each makes copies of its own; empty: none.
        copies: of each row and method.
        weights: `shared`: an example and its copies weigh together what it weighed alone;
            `full`: each copy weighs as much as the example.
        seed: of everything drawn.
    """

    methods: tuple[AnyMethod, ...] = ()
    copies: int = Field(1, ge=1, le=100)
    weights: Literal["shared", "full"] = "shared"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _each_kind_once(self) -> Augmentation:
        kinds = [method.kind for method in self.methods]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise ValueError(f"methods: {', '.join(twice)} twice; copies are named by their kind")
        return self

    def __bool__(self) -> bool:
        return bool(self.methods)

    @property
    def text_methods(self) -> tuple[TextMethod, ...]:
        """Those that change texts, in order."""
        return tuple(each for each in self.methods if isinstance(each, TextMethod))

    @property
    def history_methods(self) -> tuple[HistoryMethod, ...]:
        """Those that change histories, in order."""
        return tuple(each for each in self.methods if isinstance(each, HistoryMethod))
